"""Files that grow line by line, survive a killed process, and are continued by the same request only.

A line counts once its newline is on disk. What a crash left of another is cut off when the file is opened again. A
request that would give other numbers than those in the file is refused, and nothing is written.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from eagle_jax.files import Location, Parsed, local, lock, parse_jsonl, read_json, write_whole
from eagle_jax.files import Record as Record

_HEADER = b'{"settings": '


class LineFile(contextlib.AbstractContextManager["LineFile"]):
    """An open file of JSON lines, of one process at a time.

    Args:
      path: new, or a file to be continued.

    Raises:
      ValueError: another process has it open, or it is an address.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = local(path)
        self._file = self.path.open("a+b")
        try:
            lock(self._file, f"{self.path}: another process is writing it")
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, parse: Callable[[Record, Location], Parsed], what: str = "") -> tuple[list[Parsed], bytes]:
        """Complete lines, as `files.read_jsonl` reads them, and what a crash left of another.

        Raises:
          ValueError: a line that cannot be read.
        """
        self._file.seek(0)
        *lines, rest = self._file.read().split(b"\n")
        try:
            return parse_jsonl(lines, self.path, parse, what=what), rest
        except ValueError as error:
            raise ValueError(f"{error}; nothing was written") from error

    def cut(self, rest: bytes) -> None:
        """Drop the incomplete line at the end."""
        self._file.truncate(self.path.stat().st_size - len(rest))

    def append(self, lines: Iterable[str]) -> None:
        """Write lines, given without their newlines; on disk when this returns."""
        self._file.write("".join(line + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


class Journal(contextlib.AbstractContextManager["Journal"]):
    """Measurements in the order in which they were made, after a line with the settings that decide them.

        {"settings": {...}}
        {"key": ["mt_bench", 0.0, 0, 81], ...}

    A later line of settings has the entries that joined those of the first.

    Args:
      path: new, or a journal of the same settings.
      settings: JSON-able description of everything that decides the measurements.
      growing: names of mappings in it that may get further entries, but lose or change none.

    Raises:
      ValueError: the file is no journal, belongs to other settings, or another process has it open.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any], growing: Sequence[str] = ()) -> None:
        wanted = json.loads(json.dumps(settings))
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(LineFile(path))
            lines, rest = self._file.read(_check_line, "a line of a journal")
            joining = wanted
            if lines:
                recorded = _merged(line["settings"] for line in lines if "settings" in line)
                joining = _joining(recorded, wanted, growing)
                check_same(self._file.path, _merged([recorded, joining]), wanted)
            elif not (_HEADER.startswith(rest) or rest.startswith(_HEADER)):
                raise ValueError(f"{self._file.path} is no journal: nothing was written")
            self._file.cut(rest)
            if joining or not lines:
                self._append({"settings": joining})
            self.records: list[Record] = [line for line in lines if "settings" not in line]
            stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self._file.__exit__()

    def add(self, record: Record) -> None:
        """Write one measurement; on disk when this returns."""
        self._append(record)
        self.records.append(record)

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.append([json.dumps(record, allow_nan=False)])


def _check_line(record: Record, location: Location) -> Record:
    if location.number == 1 and "settings" not in record:
        raise ValueError("the first line has no settings")
    return record


def _merged(settings: Iterable[Record]) -> Record:
    """Settings of a first line, with the entries that later ones add to its mappings."""
    first, *later = settings
    merged = dict(first)
    for more in later:
        for name, entries in more.items():
            merged[name] = {**(merged.get(name) or {}), **entries}
    return merged


def _joining(recorded: Record, wanted: Record, growing: Iterable[str]) -> Record:
    """Entries of the growing mappings that are not recorded yet."""
    joining = {}
    for name in growing:
        known = recorded.get(name) or {}
        joining[name] = {key: value for key, value in (wanted.get(name) or {}).items() if key not in known}
    return {name: entries for name, entries in joining.items() if entries}


def check_same(place: str | os.PathLike[str], recorded: Any, wanted: Any, what: str = "run") -> None:
    """Refuse to continue what was begun with other settings.

    Args:
      place: file, directory or what else the message should name.
      recorded: the settings that it was begun with, as read from JSON.
      wanted: those of the request, JSON-able. A field that one of them lacks counts as None.
      what: is there, for the message.

    Raises:
      ValueError: the first difference.
    """
    difference = _difference(recorded, json.loads(json.dumps(wanted)))
    if difference:
        raise ValueError(f"{place} is another {what}: its {difference}; nothing was written")


def check_recorded(
    path: pathlib.Path, wanted: Any, place: str | os.PathLike[str], what: str = "run", derived: Sequence[str] = ()
) -> Record | None:
    """`check_same` with the settings that a file of their own holds, which are returned; None without such a file.

    Args:
      path: the file, as `write_settings` writes it.
      wanted, place, what: as `check_same` takes them.
      derived: fields of the file that follow from the others.
    """
    recorded = read_settings(path)
    if recorded is None:
        return None
    check_same(place, {name: value for name, value in recorded.items() if name not in derived}, wanted, what)
    return recorded


def read_settings(path: pathlib.Path) -> Record | None:
    """What `write_settings` has written; None where there is no such file."""
    return read_json(path) if path.is_file() else None


def write_settings(path: pathlib.Path, settings: Mapping[str, Any]) -> None:
    """Record the settings of what is about to begin, all of them or nothing."""
    write_whole(path, json.dumps(settings, indent=1, sort_keys=True) + "\n")


def _difference(recorded: Any, wanted: Any, name: str = "") -> str | None:
    """The first field in which two settings differ, by its dotted name, and its two values."""
    if not (isinstance(recorded, dict) and isinstance(wanted, dict)):
        return f"{name} is {recorded!r}, not {wanted!r}" if recorded != wanted else None
    for key in sorted(recorded.keys() | wanted.keys()):
        difference = _difference(recorded.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        if difference:
            return difference
    return None


def write_rows(path: str | os.PathLike[str], rows: list[Record]) -> None:
    """Replace a file of JSON lines, all of it or nothing."""
    write_whole(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
