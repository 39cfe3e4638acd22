"""A file that measurements are added to one by one, and that a killed process leaves whole.

The first line says what was asked for, every other line is one measurement:

    {"settings": {...}}
    {"key": ["mt_bench", 0.0, 0, 81], ...}

A later line of settings says what joined those of the first line. A line counts once its end is on disk; what a crash
left of one is cut off when the journal is opened again.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from eagle_jax.files import lock, write_whole
from eagle_jax.resume import check_same

Record = dict[str, Any]

_HEADER = b'{"settings": '


class Journal:
    """An open journal; a context manager, one process at a time.

    Args:
      path: new, or a journal of the same settings.
      settings: JSON-able description of everything that decides the measurements.
      growing: names of mappings in it that may get further entries, but lose or change none.

    Raises:
      ValueError: the file is no journal, belongs to other settings, or another process has it open.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any], growing: Sequence[str] = ()) -> None:
        self.path = pathlib.Path(path)
        self._file = self.path.open("a+b")
        try:
            lock(self._file, f"{self.path}: another process is writing it")
            self._file.seek(0)
            text = self._file.read()
            whole = text.rfind(b"\n") + 1
            lines = self._parse(text[:whole])
            wanted = json.loads(json.dumps(settings))
            if lines:
                joining = self._compare([line["settings"] for line in lines if "settings" in line], wanted, growing)
            elif not (_HEADER.startswith(text) or text.startswith(_HEADER)):
                raise ValueError(f"{self.path} is no journal: nothing was written")
            self._file.truncate(whole)  # the line that a crash cut short
            if not lines:
                self._append({"settings": wanted})
            elif joining:
                self._append({"settings": joining})
        except BaseException:
            self._file.close()
            raise
        self.records: list[Record] = [line for line in lines if "settings" not in line]

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, record: Record) -> None:
        """Write one measurement; on disk when this returns."""
        self._append(record)
        self.records.append(record)

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _compare(self, written: list[Record], wanted: Record, growing: Sequence[str]) -> Record:
        """Refuse other settings than those of the file; what joins them."""
        first, *later = written
        for name in growing:
            own = dict(first.get(name) or {})
            for more in later:
                own |= more.get(name, {})
            if own:
                first = {**first, name: own}
        joining = {
            name: {key: value for key, value in wanted[name].items() if key not in first.get(name, {})}
            for name in growing
            if name in wanted
        }
        joining = {name: more for name, more in joining.items() if more}
        known = {
            name: {key: one for key, one in value.items() if key not in joining[name]} or None
            if name in joining
            else value
            for name, value in wanted.items()
        }
        check_same(self.path, first, known)
        return joining

    def _parse(self, text: bytes) -> list[Record]:
        records = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or (number == 1 and "settings" not in record):
                raise ValueError(f"{self.path}, line {number}: not a line of a journal; nothing was written")
            records.append(record)
        return records


def write_rows(path: str | os.PathLike[str], rows: list[Record]) -> None:
    """Put a file of JSON lines in place of the one there was, whole or not at all."""
    write_whole(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
