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
from eagle_jax.checkpoint.names import gguf_name, target_tensors
from eagle_jax.files import check_fetched
from eagle_jax.models.config import ModelConfig
from eagle_jax.types import Params

ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the RoPE frequencies (Llama 3.1 and later): they shape the config and are no weights."""

_NO_TOKEN = 0xFFFFFFFF  # -1 as the unsigned number that llama.cpp writes


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
            raise ValueError(
                f"{self.path}: tensor {name} has type {kind}, which the gguf package cannot read"
            ) from None
        return values.astype(np.float32, copy=False)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, outermost axis first."""
        return tuple(int(size) for size in reversed(self.tensors[name].shape))


class _Reader(gguf.GGUFReader):
    """The package's reader, three times as fast and with an eye on the end of the file.

    It gets a plain view of the mapped file, since slicing `np.memmap` itself is slow; and a slice beyond the end, which
    numpy would cut short in silence, is an error: an array of claimed length 2**60 would keep the reader busy for ever.
    """

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        return self._data

    @data.setter
    def data(self, mapped: np.memmap) -> None:
        self._data = mapped.view(np.ndarray)

    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        end = int(offset) + int(count) * np.dtype(dtype).itemsize
        if end > self._data.size:
            raise ValueError(f"it is cut short, or says that byte {end} is in use")
        return super()._get(offset, dtype, count, override_order)


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a file and read its metadata.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a GGUF file, cut short, or damaged in its header.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    check_fetched(path)
    try:
        reader = _Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    # A damaged header surfaces as whatever the reader does with it.
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, OSError) as error:
        size = path.stat().st_size
        raise ValueError(f"{path} ({size} bytes) is not a complete GGUF file: {error}") from error
    if reader.endianess is not gguf.GGUFEndian.LITTLE:
        raise ValueError(f"{path}: big-endian GGUF is not supported, only little-endian")
    if metadata.get("split.count", 1) > 1:
        raise ValueError(f"{path} is one of {metadata['split.count']} parts; join them with llama-gguf-split --merge")
    return GGUFFile(path, metadata, {tensor.name: tensor for tensor in reader.tensors})


def token_id(metadata: Mapping[str, Any], name: str) -> int | None:
    """A token that a file declares, such as `bos`; None where it declares none, or -1 for none.

    Raises:
      ValueError: not the number of one of its tokens.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    declared, tokens = metadata.get(key), metadata.get("tokenizer.ggml.tokens")
    size = len(tokens) if isinstance(tokens, list) else 0
    if declared in (None, -1, _NO_TOKEN):
        return None
    if not isinstance(declared, int) or declared < 0 or (size and declared >= size):
        raise ValueError(f"{key} is {str(declared)[:60]}, but there are {size} tokens")
    return declared


def load_params(
    file: GGUFFile,
    config: ModelConfig,
    *,
    dtype: str = "float32",
    place: Place | None = None,
    shardings: Params | None = None,
    progress: Progress | None = None,
) -> Params:
    """The parameter tree of a target; arguments and errors as for `assemble`."""
    specs = {gguf_name(name): spec for name, spec in target_tensors(config).items()}
    interleaved = file.metadata.get("general.architecture") == "llama"
    rotated = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}

    def read(name: str) -> np.ndarray:
        values = file.read(name)
        heads = rotated.get(name.split(".")[-2])
        return deinterleave(values, heads) if interleaved and heads else values

    shapes = {name: file.shape(name) for name in file.tensors if name != ROPE_FACTORS}
    source = TensorSource(str(file.path), shapes, read)
    return assemble(specs, source, dtype=dtype, place=place, shardings=shardings, progress=progress)


def deinterleave(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of each head from the order 0, D/2, 1, D/2+1, ... to 0, 1, 2, ...; [H*D, ...] -> [H*D, ...]."""
    split = rows.reshape(num_heads, -1, 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)
