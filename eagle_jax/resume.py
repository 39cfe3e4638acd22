"""Whether a file or directory may be gone on with: only by the request that began it."""

import os
from typing import Any


def check_same(place: str | os.PathLike[str], found: Any, wanted: Any, name: str = "") -> None:
    """Compare two descriptions, the one that `place` belongs to and the one asked for.

    Args:
      place: file, directory or what else the message shall name.
      found, wanted: nested mappings, as JSON keeps them; an entry that one lacks counts as None.
      name: dotted, of what is compared.

    Raises:
      ValueError: the first difference.
    """
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            check_same(place, found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif found != wanted:
        raise ValueError(f"{place} is another run: its {name} is {found!r}, not {wanted!r}; nothing was written")
