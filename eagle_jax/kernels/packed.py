"""Weights in the layout of the CPU kernel: tiles of sixteen outputs, each contiguous over all inputs.

    matrix [K, N]                         tiles [N / 16, K, 16]
    in 0   w00 w01 ... w0f | w0g ...      tile 0: w00 ... w0f, w10 ... w1f, ...; tile 1: w0g ...
    in 1   w10 w11 ... w1f | w1g ...      the last tile is filled up with zeros

Several matrices that read the same input (q, k and v; gate and up) are packed as one, tile after tile: fewer, larger
products. A layer accepts a `PackedMatrix` in place of an array; nothing else knows of it. Weights are *stored* as
bfloat16 where that is their dtype, or where they are float32 and bfloat16 has every value, as in most published
checkpoints: half the bytes to read, and the same products bit for bit, since activations are float32 with either.
"""

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from eagle_jax.kernels import build
from eagle_jax.types import Params

TILE = 16
"""Outputs of a tile, as in matmul.cc."""

JOINT = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Neighbouring projections of one input, by their names in checkpoints."""

TABLES = ("embed_tokens", "lm_head")
"""Weights [V, E] that score hidden states; a tied embedding is looked up in the same tiles."""

INPUT_AXES = {"o_proj": 2}
"""Axes of a projection's kernel that are inputs, where that is not one: heads and head size."""

STORED = (jnp.float32.dtype, jnp.bfloat16.dtype)


@struct.dataclass
class PackedMatrix:
    """One matrix, or several of the same input."""

    tiles: jax.Array  # [tiles, K, 16], float32, or the bits of bfloat16 as uint16
    inputs: tuple[int, ...] = struct.field(pytree_node=False)  # axes that K stands for
    outputs: tuple[tuple[int, ...], ...] = struct.field(pytree_node=False)  # axes of each matrix's outputs
    dtype: jnp.dtype = struct.field(pytree_node=False)  # of the plain weights
    is_table: bool = struct.field(pytree_node=False, default=False)  # the plain weight is [outputs, inputs]

    def multiply(self, x: jax.Array) -> list[jax.Array]:
        """x [..., *inputs] times each matrix: f32[..., *outputs]."""
        leading = x.shape[: x.ndim - len(self.inputs)]
        if x.shape[len(leading) :] != self.inputs:
            raise ValueError(f"a packed matrix of inputs {self.inputs} got {x.shape}")
        rows = x.astype(jnp.float32).reshape(math.prod(leading), math.prod(self.inputs))
        result = jax.ShapeDtypeStruct((len(rows), len(self.tiles) * TILE), jnp.float32)
        y = jax.ffi.ffi_call(build.MATMUL, result)(rows, self.tiles)
        parts, first = [], 0
        for shape in self.outputs:
            size = math.prod(shape)
            parts.append(y[:, first : first + size].reshape(*leading, *shape))
            first += _num_tiles(size) * TILE
        return parts

    def rows(self, ids: jax.Array) -> jax.Array:
        """Embedding lookup in a table: ids i32[...] -> f32[..., E]."""
        values = self.tiles[ids // TILE, :, ids % TILE]
        if values.dtype == jnp.float32:
            return values
        return lax.bitcast_convert_type(values.astype(jnp.uint32) << 16, jnp.float32)

    def unpack(self) -> list[jax.Array]:
        """The plain weights."""
        weights, first = [], 0
        for shape in self.outputs:
            size = math.prod(shape)
            tiles = self.tiles[first : first + _num_tiles(size)]
            first += len(tiles)
            if tiles.dtype != jnp.float32:
                tiles = lax.bitcast_convert_type(tiles, jnp.bfloat16).astype(self.dtype)
            if self.is_table:
                matrix = jnp.swapaxes(tiles, 1, 2).reshape(-1, tiles.shape[1])[:size]
                weights.append(matrix.reshape(*shape, *self.inputs))
            else:
                matrix = jnp.moveaxis(tiles, 0, 1).reshape(tiles.shape[1], -1)[:, :size]
                weights.append(matrix.reshape(*self.inputs, *shape))
        return weights


def _num_tiles(outputs: int) -> int:
    return -(-outputs // TILE)


def pack_matrices(matrices: Sequence[Any], num_inputs: int = 1) -> PackedMatrix:
    """Pack matrices [*inputs, *outputs] of the same `num_inputs` input axes as one."""
    inputs = tuple(matrices[0].shape[:num_inputs])
    outputs = tuple(tuple(matrix.shape[num_inputs:]) for matrix in matrices)
    width = math.prod(inputs)
    tiles = np.zeros((sum(_num_tiles(math.prod(shape)) for shape in outputs), width, TILE), matrices[0].dtype)
    first = 0
    for matrix, shape in zip(matrices, outputs, strict=True):
        size = math.prod(shape)
        flat, full = np.asarray(matrix).reshape(width, size), size // TILE * TILE
        tiles[first : first + full // TILE] = flat[:, :full].reshape(width, -1, TILE).swapaxes(0, 1)
        if full < size:
            tiles[first + full // TILE, :, : size - full] = flat[:, full:]
        first += _num_tiles(size)
    return PackedMatrix(jnp.asarray(_stored(tiles)), inputs, outputs, jnp.dtype(tiles.dtype))


def _stored(tiles: np.ndarray) -> np.ndarray:
    """Tiles as the kernel reads them: float32, or the upper halves of its bits where the lower ones are zero."""
    # Integers, because XLA's CPU backend would convert all of a bfloat16 table before it looks up a row.
    if tiles.dtype != np.float32:
        return tiles.view(np.uint16)
    bits = tiles.view(np.uint32)
    if any((part & 0xFFFF).any() for part in bits):  # tile after tile: the first one decides in most cases
        return tiles
    return (bits >> 16).astype(np.uint16)


def pack_table(table: Any) -> PackedMatrix:
    """Pack a table [V, E], whose products are with hidden states [..., E]."""
    return dataclasses.replace(pack_matrices([np.asarray(table).T]), is_table=True)


def pack(params: Params, *, release: bool = False) -> Params:
    """Weights of a target, draft head or draft model with all packed that the kernel takes; others stay as they are.

    Without the kernel, or where weights are sharded over several devices, nothing is packed. Packed weights are left
    alone, and a weight packed for one tree is reused for another while both its plain and packed form exist.

    Args:
      params: dicts and frozen dataclasses of arrays, named as in Hugging Face checkpoints.
      release: take each plain weight out of its dict once it is packed, so that memory never holds more than one weight
        twice; the tree is used up.
    """
    if not build.available() or not all(map(_on_one_cpu, jax.tree.leaves(params))):
        return params
    return _Packing(release).tree(params)


def is_packed(params: Params) -> bool:
    """Whether weights are packed: then they decode on one CPU, and attention may use its kernel too."""
    leaves = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, PackedMatrix))
    return any(isinstance(leaf, PackedMatrix) for leaf in leaves)


def unpack(params: Params) -> Params:
    """The inverse of `pack`; of packed weights `jax.eval_shape` gives the plain shapes."""
    if isinstance(params, PackedMatrix):
        return params.unpack()[0]
    if dataclasses.is_dataclass(params) and not isinstance(params, type):
        fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
        return dataclasses.replace(params, **unpack(fields))
    if not isinstance(params, dict):
        return params
    plain: dict[str, Any] = {name: unpack(value) for name, value in params.items() if "+" not in name}
    for joint, value in params.items():
        if "+" in joint:
            for name, kernel in zip(joint.split("+"), value.unpack(), strict=True):
                plain[name] = {**plain.get(name, {}), "kernel": kernel}
    return plain


class _Packing:
    """One call of `pack`."""

    def __init__(self, release: bool) -> None:
        self.release = release

    def tree(self, node: Any) -> Any:
        """A node of the tree and all below it."""
        if dataclasses.is_dataclass(node) and not isinstance(node, PackedMatrix | type):
            fields = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
            return dataclasses.replace(node, **self.tree(fields))
        if not isinstance(node, dict):
            return node
        joints = [names for names in JOINT if _of_one_dtype([node.get(name) for name in names])]
        packed: dict[str, Any] = {
            "+".join(names): self.once([self.take(node[name], "kernel") for name in names]) for names in joints
        }
        in_joints = {name for names in joints for name in names}
        for name in list(node):
            if name in TABLES and _takes(node[name]):
                packed[name] = self.once([self.take(node, name)], is_table=True)
            elif name in in_joints:
                rest = {key: value for key, value in node[name].items() if key != "kernel"}
                packed |= {name: rest} if rest else {}
            elif _has_kernel(node[name]):
                kernel = self.once([self.take(node[name], "kernel")], INPUT_AXES.get(name, 1))
                packed[name] = {**node[name], "kernel": kernel}
            else:
                packed[name] = self.tree(node[name])
        return packed

    def take(self, node: dict[str, Any], name: str) -> Any:
        """A weight of a dict, taken out of it where the tree is used up."""
        return node.pop(name) if self.release else node[name]

    def once(self, weights: list[Any], num_inputs: int = 1, is_table: bool = False) -> PackedMatrix:
        """These weights packed, from `_PACKED` where the same arrays were packed before."""
        key = tuple(map(id, weights))
        before, packed_ref = _PACKED.get(key, ([], lambda: None))
        packed = packed_ref()
        if packed is not None and all(ref() is weight for ref, weight in zip(before, weights, strict=True)):
            return packed
        packed = pack_table(weights[0]) if is_table else pack_matrices(weights, num_inputs)
        if not self.release:
            _PACKED[key] = [weakref.ref(weight) for weight in weights], weakref.ref(packed)
        return packed


_PACKED: dict[tuple[int, ...], tuple[list[weakref.ref[Any]], Callable[[], PackedMatrix | None]]] = {}
"""By the ids of plain weights: references to them and to their packed form. Ids get reused, so objects are compared."""


def _takes(weight: Any) -> bool:
    """Whether the kernel takes a weight."""
    return isinstance(weight, jax.Array | np.ndarray) and weight.dtype in STORED and weight.ndim > 1


def _has_kernel(module: Any) -> bool:
    return isinstance(module, dict) and _takes(module.get("kernel"))


def _of_one_dtype(modules: Sequence[Any]) -> bool:
    return all(map(_has_kernel, modules)) and len({module["kernel"].dtype for module in modules}) == 1


def _on_one_cpu(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return isinstance(leaf, np.ndarray)
    devices = leaf.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"
