"""Reads a GGUF file (llama.cpp) into metadata and a parameter tree, dequantising every type the `gguf` package knows.

llama.cpp's `llama` architecture rotates neighbouring dimensions together, so its files hold the rows of q and k
interleaved; they are put back into the rotate-half order of `models.rope`. The other architectures store them plainly.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from eagle_jax.checkpoint.assemble import Place, Progress, TensorSource, assemble
from eagle_jax.checkpoint.names import TensorSpec, gguf_name, target_tensors
from eagle_jax.models.config import ModelConfig
from eagle_jax.types import Params

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the RoPE frequencies (Llama 3.1 and later): they shape the config and are no weights."""


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """An opened file; tensors are mapped from disk and read on demand."""

    path: pathlib.Path
    metadata: Mapping[str, Any]  # plain Python values by key
    tensors: Mapping[str, gguf.ReaderTensor]

    def read(self, name: str) -> np.ndarray:
        """One tensor in the row order of the file, dequantised to float32."""
        tensor = self.tensors[name]
        try:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise ValueError(f"{self.path}: tensor {name} has type {kind}, which the gguf package cannot read") from None
        return values.astype(np.float32, copy=False)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, outermost axis first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))


class _Reader(gguf.GGUFReader):
    """The package's reader over a plain view of the mapped file: slicing `np.memmap` itself takes three times as long."""

    @property
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._data = mapped.view(np.ndarray)


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a file and read its metadata.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a GGUF file, cut short, or damaged in its header.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        reader = _Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    # The reader checks neither lengths nor offsets: a cut or damaged header surfaces as whatever its slicing hits.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError) as error:
        size = path.stat().st_size
        raise ValueError(f"{path} ({size} bytes) is not a complete GGUF file: {error}") from error
    if reader.endianess is not gguf.GGUFEndian.LITTLE:
        raise ValueError(f"{path}: big-endian GGUF is not supported, only little-endian")
    return GGUFFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def load_params(
    file: GGUFFile,
    config: ModelConfig,
    *,
    dtype: str = "float32",
    place: Place | None = None,
    progress: Progress | None = None,
) -> Params:
    """The parameter tree of a target; arguments and errors as for `assemble`."""
    specs = {gguf_name(name): spec for name, spec in target_tensors(config).items()}
    interleaved = file.metadata.get("general.architecture") == "llama"

    def read(name: str) -> np.ndarray:
        values = file.read(name)
        heads = _rotated_heads(name, specs[name], config) if interleaved else None
        return values if heads is None else deinterleave(values, heads)

    shapes = {name: file.shape(name) for name in file.tensors if name != ROPE_FACTORS}
    return assemble(
        specs, TensorSource(str(file.path), shapes, read), dtype=dtype, place=place, progress=progress
    )


def _rotated_heads(name: str, spec: TensorSpec, config: ModelConfig) -> int | None:
    """Number of heads whose rows a `llama` file holds interleaved, None for every other tensor."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}
    return heads.get(spec.path[-2])


def deinterleave(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head from the order 0, D/2, 1, D/2+1, ... to 0, 1, 2, ...; [H*D, ...] -> [H*D, ...]."""
    split = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)
