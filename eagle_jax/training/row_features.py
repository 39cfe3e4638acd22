"""Features of packed rows on a budget: some are stored, the others are computed whenever they are read.

about.json   whose features these are
N.bin        those of the row whose first document is N: taps, hidden state and choice, one after the other
lock         held by the process that writes rows; others read what is there, compute the rest and write nothing

Every epoch reads each row once, in another order, so that no rule of replacement does better than a fixed set of rows.
It is written as training comes by: there is no pass beforehand. A row is always computed on its own, by one program,
and rounded to the stored dtype. So its features are the same bit for bit whether they are read or computed, and a run
ends at the same weights with any budget.
"""

import errno
import math
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from eagle_jax.checkpoint.assemble import DTYPES
from eagle_jax.files import local, lock, write_whole
from eagle_jax.journal import write_settings
from eagle_jax.provenance import json_digest
from eagle_jax.training.data import PackedRow
from eagle_jax.training.feature_cache import ABOUT, BY_ROW, check_about, make_pass, widths_of
from eagle_jax.types import Params, Target


class RowFeatures:
    """Gives the features of packed rows, one at a time; a context manager, inside of which rows are stored.

    Args:
      directory: created on entering where it does not exist.
      rows: documents of each row that is ever read, those first that should be stored first.
      length: tokens a row, T.
      identity: `fingerprint` of the documents and the target.
      target, params: the target.
      budget: bytes on the disk.
      dtype: what features are rounded to: float32, bfloat16 or float16.
      everywhere: as `compute_features` takes it.

    Raises:
      ValueError: an unknown dtype, a negative budget, or a directory with other features.
        On entering also one that another process has just begun to fill.
      OSError: on entering, where the disk has no room for what should be stored.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        rows: Sequence[Sequence[int]],
        length: int,
        identity: str,
        target: Target,
        params: Params,
        *,
        budget: float,
        dtype: str = "float16",
        everywhere: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"features cannot be stored as {dtype!r}; {', '.join(DTYPES)} are supported")
        if budget < 0:
            raise ValueError(f"a budget must be at least 0 bytes, got {budget:g}")
        self.directory = local(directory)
        self._lock: IO[str] | None = None
        widths = widths_of(target, params)
        self._layouts: dict[str, tuple[Any, tuple[int, ...]]] = {
            "taps": (np.dtype(DTYPES[dtype]), (length, widths["taps"])),
            "hidden": (np.dtype(DTYPES[dtype]), (length, widths["hidden"])),
            "choice": (np.dtype(np.int32), (length,)),
        }
        self.row_bytes = sum(math.prod(shape) * dtype.itemsize for dtype, shape in self._layouts.values())
        self.num_rows, self.num_stored = len(rows), int(min(len(rows), budget // self.row_bytes))
        self._stored = {documents[0] for documents in rows[: self.num_stored]}
        self._dropped = [documents[0] for documents in rows[self.num_stored :]]
        packed = json_digest([[int(document) for document in row] for row in rows])
        self._about = {"kind": BY_ROW, "identity": identity, "dtype": dtype, "length": length, "rows": packed}
        self._compute = make_pass(target, params, dtype, everywhere)
        check_about(self.directory, self._about)

    def __enter__(self) -> "RowFeatures":
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, documents: Sequence[int], row: PackedRow) -> PackedRow:
        """Features of the row of these documents by field name: `taps`, `hidden` and `choice`, [T, ...] each."""
        path = self._path(documents[0])
        fields = self._read(path)
        if fields is None:
            features = self._compute([row])
            fields = {name: np.asarray(getattr(features, name))[0] for name in self._layouts}
            if self._lock is not None and documents[0] in self._stored:
                write_whole(path, b"".join(fields[name].tobytes() for name in self._layouts))
        return fields

    def _open(self) -> None:
        """Claim the directory if no other process writes to it, and drop what is above the budget."""
        self.directory.mkdir(parents=True, exist_ok=True)
        file: IO[str] = (self.directory / "lock").open("w")
        try:
            lock(file, f"{self.directory}: another process is filling it")
        except ValueError:
            file.close()
            if check_about(self.directory, self._about) is None:
                raise  # with which features is not known yet
            return
        self._lock = file
        check_about(self.directory, self._about)
        for document in self._dropped:
            self._path(document).unlink(missing_ok=True)
        missing = sum(not self._path(document).exists() for document in self._stored) * self.row_bytes
        if missing > shutil.disk_usage(self.directory).free:
            self._close()
            raise OSError(errno.ENOSPC, f"{missing / 1e9:.1f} GB of features do not fit", str(self.directory))
        write_settings(self.directory / ABOUT, self._about)

    def _close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _read(self, path: os.PathLike[str]) -> PackedRow | None:
        """What a file has; None where there is none."""
        try:
            data = np.fromfile(path, np.uint8)
        except FileNotFoundError:
            return None
        if data.size != self.row_bytes:
            raise ValueError(f"{path} has {data.size} bytes instead of {self.row_bytes}: the copy is incomplete")
        fields, start = {}, 0
        for name, (dtype, shape) in self._layouts.items():
            end = start + math.prod(shape) * dtype.itemsize
            fields[name] = data[start:end].view(dtype).reshape(shape)
            start = end
        return fields

    def _path(self, document: int) -> pathlib.Path:
        return self.directory / f"{document}.bin"
