"""What the frozen target says about a batch: taps, last hidden state, most probable next token.

One pure function, so that a training step can compute features online in its own compiled program. Where the same text
is read many times, `FeatureCache` keeps them on disk: three flat files over all documents one after the other, filled
batch by batch, resumable, and tied to the text and the target by a fingerprint.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax
from jax.sharding import Mesh

from eagle_jax import sharding
from eagle_jax.training.batch import NO_SLOT, Batch, Features
from eagle_jax.training.conversations import Example
from eagle_jax.training.data import assemble, pack
from eagle_jax.training.groups import EVERYWHERE, ROWS, by_group, most
from eagle_jax.types import NO_TOKEN, Params, Target

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
"""Types that features can be stored in."""

FIELDS = ("taps", "hidden", "choice")


def compute_features(
    target: Target, params: Params, batch: Batch, *, everywhere: bool = False, chunk: int = 128
) -> Features:
    """One pass of the frozen target over packed text; documents do not see each other.

    Args:
      target, params: the target.
      batch: the text.
      everywhere: find the most probable token behind every position (the official alignment asks for it), not only
        where `batch.slots` does.
      chunk: rows whose logits f32[chunk, V] exist at a time.
    """
    size, length = batch.tokens.shape
    causal = jnp.tril(jnp.ones((length, length), bool))
    mask = causal[None] & (batch.segments[:, :, None] == batch.segments[:, None, :])
    output = target.forward(params, batch.tokens, batch.positions, target.init_cache(size, 1), mask)
    if everywhere:
        asked = jnp.ones(size * length, bool)
    else:
        places = jnp.where(batch.slots == NO_SLOT, length, batch.slots + 1)
        mark = jax.vmap(lambda row, index: row.at[index].set(True, mode="drop"))
        asked = mark(jnp.zeros((size, length), bool), places).reshape(-1)
    hidden = output.hidden.reshape(size * length, -1)
    choice = _choices(target, params, hidden, asked, chunk).reshape(size, length)
    return jax.tree.map(lax.stop_gradient, Features(output.taps, output.hidden, choice))


def _choices(target: Target, params: Params, hidden: jax.Array, asked: jax.Array, chunk: int) -> jax.Array:
    """Most probable token behind hidden [N, E] where `asked` bool[N], else NO_TOKEN; costs as much as is asked."""
    find = functools.partial(_find_choices, target, chunk=chunk)
    return by_group(find, asked.shape[0], (EVERYWHERE, ROWS, ROWS), ROWS)(params, hidden, asked)


def _find_choices(
    target: Target, params: Params, hidden: jax.Array, asked: jax.Array, *, chunk: int, axis: str | None
) -> jax.Array:
    num_rows = asked.shape[0]
    (order,) = jnp.nonzero(asked, size=num_rows, fill_value=num_rows)
    order = jnp.pad(order, (0, -num_rows % chunk), constant_values=num_rows)

    def find(index: jax.Array, choices: jax.Array) -> jax.Array:
        some = lax.dynamic_slice_in_dim(order, index * chunk, chunk)
        found = target.unembed(params, hidden.at[some].get(mode="fill", fill_value=0)).argmax(-1)
        return choices.at[some].set(found.astype(jnp.int32), mode="drop")

    num_chunks = most((asked.sum() + chunk - 1) // chunk, axis)
    return lax.fori_loop(0, num_chunks, find, jnp.full(num_rows, NO_TOKEN, jnp.int32))


def fingerprint(
    examples: Sequence[Example], target_name: str, params: Params, everywhere: bool, tap_layers: Sequence[int] = ()
) -> str:
    """A hash of the text and of the target that reads it: the first numbers of every weight, and its own taps if any.

    Taps that a head picks from those of the target are not in it: the features are the same.
    """
    told = [target_name, everywhere, *([[*tap_layers]] if tap_layers else [])]
    digest = hashlib.sha256(json.dumps(told).encode())
    for example in examples:
        digest.update(np.int64(len(example.tokens)).tobytes() + example.tokens.tobytes())
        digest.update(np.packbits(example.supervised).tobytes())
    for leaf in jax.tree.leaves(params):
        digest.update(first_numbers(leaf, 64).tobytes())
    return digest.hexdigest()


def first_numbers(array: jax.Array, count: int) -> np.ndarray:
    """The first of `array.ravel()`, without making that of a weight that lies on several devices."""
    behind = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    corner = array[tuple(slice(-(-count // max(size, 1))) for size in behind)]
    return sharding.to_host(corner).ravel()[:count]


class FeatureCache:
    """Features of a set of documents on disk.

    Args:
      directory: created where it does not exist.
      examples: the documents.
      identity: their `fingerprint`.
      dtype: what features are stored in: float32, bfloat16 or float16.

    Raises:
      ValueError: an unknown dtype, or a directory with the features of another text, target or dtype.
    """

    def __init__(
        self, directory: str | os.PathLike[str], examples: Sequence[Example], identity: str, dtype: str = "float16"
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"features cannot be stored as {dtype!r}; {', '.join(DTYPES)} are supported")
        self.directory, self.examples, self.dtype = pathlib.Path(directory), examples, dtype
        self.offsets = np.cumsum([0, *(len(example.tokens) for example in examples)])
        self._about = {"identity": identity, "dtype": dtype, "tokens": int(self.offsets[-1])}
        self._arrays: dict[str, np.memmap] = {}
        known = self.directory / "about.json"
        if known.is_file():
            found = json.loads(known.read_text(encoding="utf-8"))
            for key, value in self._about.items():
                if found.get(key) != value:
                    raise ValueError(f"{self.directory} holds other features: {key} is {found.get(key)}, not {value}")
            self._open("r+", found["widths"])

    @property
    def complete(self) -> bool:
        """Whether all documents are in it."""
        return bool(self._arrays) and bool(self._arrays["done"].all())

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
          mesh: the devices that the target lies on; the rows of a pass are dealt out over its axis `data`.
          stop: asked after every pass; True ends the work, and the next call goes on.
          progress: called with (passes done, passes in all).

        Raises:
          ValueError: a document longer than a row, a feature too large for the dtype, or rows of a pass that do not
            divide over the mesh.
        """
        missing = np.flatnonzero(self._arrays["done"] == 0) if self._arrays else np.arange(len(self.examples))
        packing = pack(self.examples, length, documents=missing)
        passes = [packing.rows[start : start + batch] for start in range(0, len(packing.rows), batch)]
        wanted = jnp.dtype(DTYPES[self.dtype])

        @jax.jit
        def run(params: Params, text: Batch) -> tuple[Features, jax.Array]:
            found = compute_features(target, params, text, everywhere=everywhere)
            small = dataclasses.replace(found, taps=found.taps.astype(wanted), hidden=found.hidden.astype(wanted))
            return small, jnp.maximum(jnp.abs(found.taps).max(), jnp.abs(found.hidden).max())

        for index, documents in enumerate(passes):
            rows = [*documents, *[[]] * (batch - len(documents))]
            assembled = [assemble(packing, row) for row in rows]
            text = Batch(**{name: jnp.asarray(np.stack([row[name] for row in assembled])) for name in assembled[0]})
            if mesh is not None:
                text = sharding.place_rows(mesh, text)
            with sharding.active(mesh):
                found, largest = jax.device_get(run(params, text))
            if not largest <= float(jnp.finfo(wanted).max):
                raise ValueError(f"a feature reaches {largest:g}, too large for {self.dtype}: store bfloat16")
            self._write(rows, found)
            progress(index + 1, len(passes))
            if stop():
                break
        return self.complete

    def lookup(self, document: int) -> dict[str, np.ndarray]:
        """The features of one document: `taps`, `hidden` and `choice`, [n, ...] each."""
        place = slice(self.offsets[document], self.offsets[document + 1])
        return {name: self._arrays[name][place] for name in FIELDS}

    def _write(self, rows: Sequence[Sequence[int]], found: Features) -> None:
        if not self._arrays:
            widths = {"taps": found.taps.shape[-1], "hidden": found.hidden.shape[-1]}
            self.directory.mkdir(parents=True, exist_ok=True)
            self._open("w+", widths)
            _replace(self.directory / "about.json", json.dumps({**self._about, "widths": widths}))
        for row, documents in enumerate(rows):
            start = 0
            for document in documents:
                place = slice(self.offsets[document], self.offsets[document + 1])
                end = start + place.stop - place.start
                for name in FIELDS:
                    self._arrays[name][place] = getattr(found, name)[row, start:end]
                start = end
        for name in FIELDS:
            self._arrays[name].flush()
        self._arrays["done"][[document for documents in rows for document in documents]] = 1  # once the rest is safe
        self._arrays["done"].flush()

    def _open(self, mode: Any, widths: dict[str, int]) -> None:
        size, stored = int(self.offsets[-1]), DTYPES[self.dtype]
        layouts = {
            "taps": (stored, (size, widths["taps"])),
            "hidden": (stored, (size, widths["hidden"])),
            "choice": (np.int32, (size,)),
            "done": (np.uint8, (len(self.examples),)),
        }
        for name, (dtype, shape) in layouts.items():
            self._arrays[name] = np.memmap(self.directory / f"{name}.bin", dtype=dtype, mode=mode, shape=shape)


def _replace(path: pathlib.Path, text: str) -> None:
    """Write a file so that a crash leaves the old one or the new one."""
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
