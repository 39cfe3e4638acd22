"""Every notebook runs from top to bottom, small, on a tiny model."""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import pyplot as plt

from tests.docs.conftest import as_main
from tests.notebooks.notebooks import NOTEBOOKS, cells, source

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

SAME = re.compile(r"ANOTHER TEXT|OTHER TEXTS?")
"""What a notebook prints where a method changed the text."""


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, reader: Path) -> Iterator[None]:
    """The sizes of tests, figures that go nowhere, and all as it was afterwards."""
    monkeypatch.setenv("EAGLE_JAX_SMALL", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(tempfile, "tempdir", str(reader))
    monkeypatch.delenv("DISPLAY", raising=False)
    with mpl.rc_context():
        mpl.use("Agg")
        yield
    plt.close("all")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(notebook: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with as_main(f"notebook_{notebook.stem}") as names:
        for number, cell in enumerate(cells(notebook, "code"), start=1):
            exec(compile(source(cell), f"{notebook.name}, code cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert not SAME.search(said), said
    assert said.strip()
