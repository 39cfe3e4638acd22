"""A file that measurements are added to one by one, and that a killed process leaves whole.

The first line says what was asked for, every other line is one measurement:

    {"settings": {...}}
    {"key": ["mt_bench", 0.0, 0, 81], ...}

A line counts once its end is on disk; what a crash left of one is cut off when the journal is opened again.
"""

import json
import os
import pathlib
from collections.abc import Mapping
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

    Raises:
      ValueError: the file is no journal, belongs to other settings, or another process has it open.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = pathlib.Path(path)
        self._file = self.path.open("a+b")
        try:
            lock(self._file, f"{self.path}: another process is writing it")
            self._file.seek(0)
            text = self._file.read()
            whole = text.rfind(b"\n") + 1
            records = self._parse(text[:whole])
            if records:
                check_same(self.path, records[0]["settings"], json.loads(json.dumps(settings)))
            elif not (_HEADER.startswith(text) or text.startswith(_HEADER)):
                raise ValueError(f"{self.path} is no journal: nothing was written")
            self._file.truncate(whole)  # the line that a crash cut short
            if not records:
                self._append({"settings": settings})
        except BaseException:
            self._file.close()
            raise
        self.records: list[Record] = records[1:]

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

    def _parse(self, text: bytes) -> list[Record]:
        records = []
        for number, line in enumerate(text.splitlines(), start=1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or (number == 1) != ("settings" in record):
                raise ValueError(f"{self.path}, line {number}: not a line of a journal; nothing was written")
            records.append(record)
        return records


def write_rows(path: str | os.PathLike[str], rows: list[Record]) -> None:
    """Put a file of JSON lines in place of the one there was, whole or not at all."""
    write_whole(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
