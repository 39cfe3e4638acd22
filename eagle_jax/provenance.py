"""Where a number comes from: the code, the weights, the questions and the files that it was measured with."""

import functools
import hashlib
import json
import math
import os
import pathlib
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from eagle_jax.kernels.packed import is_packed, unpack
from eagle_jax.sharding import to_host
from eagle_jax.types import Params

ROOT = pathlib.Path(__file__).parents[1]

DIGESTED = 64
"""Numbers of each weight that its digest is made of."""


@functools.cache
def git_commit() -> str | None:
    """The commit of the running code, followed by `-dirty` where files were changed; None without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def device_kind() -> str:
    """What jax calls the devices of this process."""
    return jax.devices()[0].device_kind


def weights_digest(params: Params) -> str:
    """A hash that tells weights apart: of their shapes and the first numbers of each."""
    digest = hashlib.sha256()
    shapes = jax.tree.leaves(jax.eval_shape(unpack, params))
    firsts = _first_unpacked(params) if is_packed(params) else jax.tree.map(_first, params)
    for shape, numbers in zip(shapes, jax.tree.leaves(firsts), strict=True):
        digest.update(repr((shape.shape, str(shape.dtype))).encode() + np.asarray(numbers).tobytes())
    return digest.hexdigest()


def first_numbers(array: jax.Array, count: int) -> np.ndarray:
    """The first of `array.ravel()`, without making that of a weight that is split over several devices."""
    below = [math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
    corner = array[tuple(slice(-(-count // max(size, 1))) for size in below)]
    return to_host(corner).ravel()[:count]


def json_digest(value: Any) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def texts_digest(texts: Mapping[int, Sequence[str]]) -> str:
    """A hash of the turns of questions by their place in a file."""
    return json_digest(dict(texts))


def file_digest(path: str | os.PathLike[str]) -> str:
    """The hash of a file, computed once as long as nobody writes to it."""
    path = pathlib.Path(path)
    return _file_digest(path, path.stat().st_mtime_ns)


@functools.cache
def _file_digest(path: pathlib.Path, changed: int) -> str:
    del changed
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first(leaf: jax.Array) -> np.ndarray:
    return first_numbers(leaf, DIGESTED)


@jax.jit
def _first_unpacked(params: Params) -> Params:
    """The same of packed weights, of which XLA unpacks no more than that."""
    return jax.tree.map(lambda leaf: leaf.ravel()[:DIGESTED], unpack(params))
