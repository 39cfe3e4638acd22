"""A reader's folder with a tiny model under the name of the real one, as the pages are run in."""

from tests.docs.conftest import reader, shelf

__all__ = ["reader", "shelf"]
