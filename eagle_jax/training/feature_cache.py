"""Features on disk, for text that is read many times.

about.json                         whose features these are, and how wide; there once the files are
taps.bin, hidden.bin, choice.bin   all documents, one after the other
done.bin                           a byte a document: whether it is there
lock                               held by the process that fills them; others read, or are refused

They are filled batch by batch, and after an interruption from where that stopped. All of them must fit on the disk;
`row_features` does with less.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from eagle_jax import sharding
from eagle_jax.checkpoint.assemble import DTYPES
from eagle_jax.files import Record, allocate, local, lock
from eagle_jax.journal import check_recorded, read_settings, write_settings
from eagle_jax.kernels import packed
from eagle_jax.training.conversations import Example
from eagle_jax.training.data import PackedRow, assemble_row, pack
from eagle_jax.training.features import compute_features
from eagle_jax.training.records import Batch, Features
from eagle_jax.types import Params, Target

ABOUT = "about.json"
FIELDS = ("taps", "hidden", "choice")
BY_ROW = "rows"
"""The `kind` of directories that `row_features` fills; those of this module name none."""


class FeatureCache:
    """Features of a set of documents on disk; one process at a time fills it, any number read it.

    Args:
      directory: created where it does not exist.
      examples: the documents.
      identity: their `fingerprint`.
      dtype: what features are stored in: float32, bfloat16 or float16.

    Raises:
      ValueError: an unknown dtype, a directory with the features of another text, target or dtype, or half a copy.
    """

    def __init__(
        self, directory: str | os.PathLike[str], examples: Sequence[Example], identity: str, dtype: str = "float16"
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"features cannot be stored as {dtype!r}; {', '.join(DTYPES)} are supported")
        self.directory, self.examples, self.dtype = local(directory), examples, dtype
        self.offsets = np.cumsum([0, *(len(example.tokens) for example in examples)])
        self._about = {"identity": identity, "dtype": dtype, "tokens": int(self.offsets[-1])}
        self._arrays: dict[str, np.memmap] = {}
        self._open("r")

    @property
    def complete(self) -> bool:
        """Whether all documents are in it."""
        return bool(self._arrays) and bool(self._arrays["done"].all())

    @property
    def num_bytes(self) -> int:
        """What the files take on the disk; 0 as long as there are none."""
        return sum(array.nbytes for array in self._arrays.values())

    def fill(
        self,
        target: Target,
        params: Params,
        *,
        length: int,
        batch: int,
        everywhere: bool = False,
        mesh: Mesh | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> bool:
        """Compute what is missing; returns whether everything is there now.

        Args:
          target, params: the target.
          length: tokens a row; no document may be longer.
          batch: rows a pass.
          everywhere: as `compute_features` takes it.
          mesh: the devices that the target is placed on; the rows of a pass are sharded over its axis `data`.
          stop: called after every pass; True ends the work, and the next call goes on.
          progress: called with (passes done, passes in all), the first time before the first pass.

        Raises:
          ValueError: a document longer than a row, rows of a pass that do not divide over the mesh, another process
            that fills the directory, or a feature that the dtype does not hold.
          OSError: there is not enough room on the disk.
        """
        for document, example in enumerate(self.examples):
            if len(example.tokens) > length:
                tokens = len(example.tokens)
                raise ValueError(f"conversation {document} has {tokens} tokens, features.length is {length}")
        if mesh is not None:
            sharding.check_batch(mesh, batch)
        compute = make_pass(target, params, self.dtype, everywhere, mesh)
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as file:
            lock(file, f"{self.directory}: another process is filling it")
            self._open("r+")  # with what that process has written since
            if not self._arrays:
                self._create(target, params)
            packing = pack(self.examples, length, documents=np.flatnonzero(self._arrays["done"] == 0))
            passes = [packing.rows[start : start + batch] for start in range(0, len(packing.rows), batch)]
            progress(0, len(passes))
            for index, documents in enumerate(passes):
                rows = [*documents, *[[]] * (batch - len(documents))]
                self._write(rows, compute([assemble_row(packing, row) for row in rows]))
                progress(index + 1, len(passes))
                if stop():
                    break
        return self.complete

    def lookup(self, document: int) -> dict[str, np.ndarray]:
        """The features of one document: `taps`, `hidden` and `choice`, [n, ...] each."""
        place = slice(self.offsets[document], self.offsets[document + 1])
        return {name: self._arrays[name][place] for name in FIELDS}

    def _write(self, rows: Sequence[Sequence[int]], features: Features) -> None:
        for row, documents in enumerate(rows):
            start = 0
            for document in documents:
                place = slice(self.offsets[document], self.offsets[document + 1])
                end = start + place.stop - place.start
                for name in FIELDS:
                    self._arrays[name][place] = getattr(features, name)[row, start:end]
                start = end
        for name in FIELDS:
            self._arrays[name].flush()
        self._arrays["done"][[document for documents in rows for document in documents]] = 1  # once the rest is safe
        self._arrays["done"].flush()

    def _create(self, target: Target, params: Params) -> None:
        """Take the room on the disk."""
        widths = widths_of(target, params)
        for name, (dtype, shape) in self._layouts(widths).items():
            allocate(self.directory / f"{name}.bin", math.prod(shape) * np.dtype(dtype).itemsize)
        write_settings(self.directory / ABOUT, {**self._about, "widths": widths})
        self._open("r+")

    def _open(self, mode: Literal["r", "r+"]) -> None:
        """Open the files if there are any, and see that they are these features and all of them."""
        recorded = check_about(self.directory, self._about)
        if recorded is None:
            return
        for name, (dtype, shape) in self._layouts(recorded["widths"]).items():
            path = self.directory / f"{name}.bin"
            size, wanted = path.stat().st_size, math.prod(shape) * np.dtype(dtype).itemsize
            if size < wanted:
                raise ValueError(f"{path} has {size} bytes instead of {wanted}: the copy is incomplete")
            self._arrays[name] = np.memmap(path, dtype=dtype, mode=mode, shape=shape)

    def _layouts(self, widths: Mapping[str, int]) -> dict[str, tuple[Any, tuple[int, ...]]]:
        """Type and shape of each file."""
        size, stored = int(self.offsets[-1]), DTYPES[self.dtype]
        return {
            "taps": (stored, (size, widths["taps"])),
            "hidden": (stored, (size, widths["hidden"])),
            "choice": (np.int32, (size,)),
            "done": (np.uint8, (len(self.examples),)),
        }


def check_about(directory: pathlib.Path, wanted: Record) -> Record | None:
    """What a directory says about its features; None where it has none yet.

    Raises:
      ValueError: they are others than wanted.
    """
    kind = (read_settings(directory / ABOUT) or wanted).get("kind")
    if kind != wanted.get("kind"):
        advice = "by row: add --features_budget" if kind == BY_ROW else "of conversations: leave --features_budget out"
        raise ValueError(f"{directory} holds features {advice}, or give another directory")
    return check_recorded(directory / ABOUT, wanted, directory, "set of features", derived=("widths",))


def widths_of(target: Target, params: Params) -> dict[str, int]:
    """Numbers a token in the features that have an axis for them."""
    one = jnp.zeros((1, 1), jnp.int32)
    text = Batch(tokens=one, segments=one, positions=one, supervised=one > 0, slots=one)
    features = jax.eval_shape(lambda params: compute_features(target, params, text), params)
    return {"taps": features.taps.shape[-1], "hidden": features.hidden.shape[-1]}


def make_pass(
    target: Target, params: Params, dtype: str, everywhere: bool, mesh: Mesh | None = None
) -> Callable[[Sequence[PackedRow]], Features]:
    """Rows of text -> their features in host memory, as they are stored.

    Raises:
      ValueError: a feature that `dtype` does not hold.
    """
    wanted = jnp.dtype(DTYPES[dtype])
    params = packed.pack(params)  # kernels have no gradients, and here none is taken

    @jax.jit
    def run(params: Params, text: Batch) -> tuple[Features, jax.Array]:
        features = compute_features(target, params, text, everywhere=everywhere)
        small = dataclasses.replace(features, taps=features.taps.astype(wanted), hidden=features.hidden.astype(wanted))
        return small, jnp.maximum(jnp.abs(features.taps).max(), jnp.abs(features.hidden).max())

    def compute(rows: Sequence[PackedRow]) -> Features:
        text = Batch(**{name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]})
        if mesh is not None:
            text = sharding.place_rows(mesh, text)
        with sharding.active(mesh):
            features, size = jax.device_get(run(params, text))
        largest = float(size)
        if not math.isfinite(largest):
            raise ValueError(f"the target gives a feature of {largest}: look at its weights and its own dtype")
        if largest > float(jnp.finfo(wanted).max):
            raise ValueError(f"a feature reaches {largest:g}, too large for {dtype}: store bfloat16")
        return features

    return compute
