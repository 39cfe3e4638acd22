"""Meshes: which axis of which array is split over which devices, all of it from one table of rules.

A mesh has the axes `data`, over which rows of a batch are sharded, and `model`, over which each weight is split
(tensor parallelism: Shoeybi et al., arXiv 1909.08053, section 3). Weights name their axes where they are declared, and
`RULES` says where an axis of that name goes. Nothing else changes: the same programs are compiled for the mesh, and
XLA's partitioner adds the sums that go from device to device, two for each layer.

    target         split over `model`, the same for every row       k_proj [E, K, D], K over `model`
    experts        each split over `model`, as an MLP is            gate_proj [X, E, F], F over `model`
    draft head     replicated by default                            a pass gathers embeddings only
    texts, caches  rows over `data`, heads over `model`             keys [B, S, K, D], B over `data`, K over `model`

An axis that does not divide (3 key/value heads over 2 devices) is replicated, and the log says so once.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from eagle_jax.models.block_head import BlockHead
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.models.layers import WEIGHTS_AXIS
from eagle_jax.models.transformer import param_shapes
from eagle_jax.platforms import platform
from eagle_jax.sampling import ROWS_AXIS
from eagle_jax.types import KVCache, Params

DATA, MODEL = ROWS_AXIS, WEIGHTS_AXIS

RULES: Mapping[Any, str] = {"batch": DATA, "vocab": MODEL, "heads": MODEL, "kv_heads": MODEL, "mlp": MODEL}
"""Mesh axis of each logical axis; all others are replicated."""

UNCONSTRAINED = PartitionSpec.UNCONSTRAINED
"""In place of an axis name: XLA decides how this axis is sharded."""

ROWS, EVERYWHERE = PartitionSpec(DATA), PartitionSpec()
"""An array with rows in front, sharded by row; one that is the same in every group of devices."""

Names = tuple[Any, ...]
"""Names of the first axes of an array: logical ones, None or UNCONSTRAINED."""

Tree = TypeVar("Tree")


class Split(NamedTuple):
    """Whose caches are split by head over `model`: a cache is sharded like the weights that fill it."""

    target: bool
    drafter: bool


_log = logging.getLogger(__name__)


def make_mesh(data: int = 1, model: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` x `model` devices: the first of `devices`, or of all there are.

    Raises:
      ValueError: a size below 1, or too few devices.
    """
    devices = jax.devices() if devices is None else devices
    if data < 1 or model < 1:
        raise ValueError(f"the axes of a mesh have at least 1 device, got {data}x{model}")
    if data * model > len(devices):
        raise ValueError(f"a mesh of {data}x{model} takes {data * model} devices, there are {len(devices)}")
    # Linen knows nothing of jax's explicit axes, which are the default.
    types = (AxisType.Auto,) * 2
    return jax.make_mesh((data, model), (DATA, MODEL), axis_types=types, devices=devices[: data * model])


def active(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Context in which traced programs see the mesh (`keep_rows`); None is no mesh."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def spec(mesh: Mesh | AbstractMesh, names: Names, shape: tuple[int, ...]) -> PartitionSpec:
    """Mesh axis of each axis of an array by `RULES`; axes that do not divide are replicated."""
    axes: list[Any] = []
    for name, size in zip(names, shape, strict=False):
        axis = name if name is UNCONSTRAINED else RULES.get(name)
        if axis in mesh.shape and size % mesh.shape[axis]:
            _warn_replicated(str(name), size, axis, mesh.shape[axis])
            axis = None
        axes.append(axis)
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


@functools.cache
def _warn_replicated(name: str, size: int, axis: str, devices: int) -> None:
    """Cached, so that each case is logged once."""
    _log.warning("%s of %d do not divide over the %d devices of mesh axis %s: replicated", name, size, devices, axis)


def _shardings(mesh: Mesh | AbstractMesh, boxed: Params) -> Params:
    """Shardings of abstract weights that are boxed with the names of their axes."""

    def one(box: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(mesh, box.names, box.value.shape))

    return jax.tree.map(one, boxed, is_leaf=lambda node: isinstance(node, nn.Partitioned))


def target_shardings(mesh: Mesh | AbstractMesh, config: ModelConfig) -> Params:
    """A sharding for every weight of a target."""
    return _shardings(mesh, param_shapes(config))


def head_shardings(
    mesh: Mesh | AbstractMesh, head: Head | BlockHead, params: HeadParams, *, split: bool = False
) -> HeadParams:
    """A sharding for every weight of a draft head.

    Args:
      mesh: the devices.
      head: the head as functions.
      params: its weights, or their shapes.
      split: shard over `model`, as the target; else replicate. A replicated head sends only embeddings while drafting
        and, without an LM head of its own, the scores of the target's.
    """
    if not split:
        return jax.tree.map(lambda _: replicated(mesh), params)

    parts: dict[str, Any] = {
        "weights": _shardings(mesh, jax.eval_shape(head.init, jax.random.key(0))),
        "lm_head": _rows_split(mesh, params.lm_head),
        "target_ids": None if params.target_ids is None else replicated(mesh),
        "embedding": _rows_split(mesh, params.embedding),
    }
    return HeadParams(**parts)


def _rows_split(mesh: Mesh | AbstractMesh, table: Any) -> NamedSharding | None:
    """How the rows of a table [V, E] are split over `model`."""
    return None if table is None else NamedSharding(mesh, spec(mesh, ("vocab",), table.shape))


def place_draft_vocabulary(mesh: Mesh, params: HeadParams) -> HeadParams:
    """The weights of a draft model with its draft vocabulary on a mesh: split as the LM head of a target is."""
    parts = {"lm_head": _rows_split(mesh, params.lm_head), "target_ids": replicated(mesh)}
    return dataclasses.replace(params, **place({name: getattr(params, name) for name in parts}, parts))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The sharding of an array of which every device has all."""
    return NamedSharding(mesh, PartitionSpec())


def device_bytes(tree: Any) -> int:
    """Bytes of one device that arrays, or shapes with shardings, take, without the padding of their layouts."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _row_specs(mesh: Mesh | AbstractMesh, tree: Tree, heads: Any) -> Tree:
    """Specs for arrays with the batch in front; `heads` names the axis of heads in caches."""

    def of(node: Any) -> Any:
        names: Names = ("batch",)
        if isinstance(node, KVCache):
            names = ("batch", heads) if node.heads_first else ("batch", None, heads)
        return jax.tree.map(lambda x: spec(mesh, names, x.shape), node)

    return jax.tree.map(of, tree, is_leaf=lambda node: isinstance(node, KVCache))


def row_shardings(mesh: Mesh | AbstractMesh, tree: Tree, *, split: bool = True) -> Tree:
    """Shardings for arrays or shapes with the batch in front, such as a `DecodeState`; `split`: caches by head too."""
    specs = _row_specs(mesh, tree, "kv_heads" if split else None)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def keep_rows(tree: Tree, *, split: bool | None = None) -> Tree:
    """Inside a program: constrain arrays with the batch in front to stay sharded by row. Without a mesh, the identity.

    `split`: whether caches are split by head too; None leaves that to XLA. On TPUs XLA would split caches that
    replicated weights fill, so a state passed from program to program needs an explicit value.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    heads = UNCONSTRAINED if split is None else "kv_heads" if split else None
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, _row_specs(mesh, tree, heads))


def split_of(target_params: Params, drafter_params: Params) -> Split:
    """Which of two models have weights, or their shapes, that are split over `model`."""

    def split(leaf: Any) -> bool:
        return isinstance(leaf.sharding, NamedSharding) and MODEL in leaf.sharding.spec

    return Split(*(any(map(split, jax.tree.leaves(params))) for params in (target_params, drafter_params)))


def by_group(work: Callable[..., Any], num_rows: int, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`work` as each group of devices of axis `data` does it on its own rows.

    Where a program picks some of the rows (`over_rows`), XLA's partitioner cannot see that they stay in their group:
    left to itself it gathers all rows, and every group does the work of all. Without a mesh, or where the rows do not
    divide, `work` gets all of them.

    Args:
      work: takes arrays by position, and by name `axis`: that of the mesh, or None where it has all rows.
      num_rows: rows over which arrays are sharded.
      in_specs, out_specs: which axes of the arguments and results of `work` are rows, in terms of mesh axis `data`.
    """
    groups = dict(jax.sharding.get_abstract_mesh().shape).get(DATA, 1)
    if groups == 1 or num_rows % groups:
        return functools.partial(work, axis=None)
    work = functools.partial(work, axis=DATA)
    # Weights stay split over the other axis. `work` itself sums what is the same in every group.
    return jax.shard_map(work, in_specs=in_specs, out_specs=out_specs, axis_names={DATA}, check_vma=False)


ROWS_AT_A_TIME = {"cpu": 128}
"""Rows whose logits exist at a time by default, by platform: caches are small there."""

MOST_ROWS_AT_A_TIME = 2048
"""The same on accelerators: each step of the loop is some twenty launches, and on a GPU the host waits for it."""


def over_rows(
    work: Callable[[jax.Array, Tree], Tree], start: Tree, rows: jax.Array, chunk: int | None, axis: str | None
) -> Tree:
    """Chain `work` over some rows, a chunk at a time: the number of chunks is a run-time number.

    Args:
      work: (rows i32[chunk], what the chunk before gave) -> the same for the next; a chunk that is not full is
        filled up with N, which is no row.
      start: what the first chunk gets.
      rows: bool[N], which.
      chunk: rows at a time; None takes what suits this platform (`ROWS_AT_A_TIME`).
      axis: as `by_group` passes it. All groups run as many chunks, so that they reach the next sum together.
    """
    num_rows = rows.shape[0]
    (order,) = jnp.nonzero(rows, size=num_rows, fill_value=num_rows)
    chunk = chunk or ROWS_AT_A_TIME.get(platform(), MOST_ROWS_AT_A_TIME)
    order = jnp.pad(order, (0, -num_rows % chunk), constant_values=num_rows)
    num_chunks = (rows.sum() + chunk - 1) // chunk
    if axis is not None:
        num_chunks = jax.lax.pmax(num_chunks, axis)

    def step(index: jax.Array, carry: Tree) -> Tree:
        return work(jax.lax.dynamic_slice_in_dim(order, index * chunk, chunk), carry)

    return jax.lax.fori_loop(0, num_chunks, step, start)


def place(tree: Tree, shardings: Any) -> Tree:
    """Put arrays onto devices as `shardings`, a tree of the same structure, describes."""
    return jax.tree.map(_put, tree, shardings)


def place_rows(mesh: Mesh, tree: Tree) -> Tree:
    """Put arrays with the batch in front onto a mesh, by row.

    Raises:
      ValueError: the batch does not divide over the axis `data`.
    """
    check_batch(mesh, len(jax.tree.leaves(tree)[0]))
    return place(tree, row_shardings(mesh, tree))


def check_batch(mesh: Mesh, batch: int) -> None:
    """Raise a ValueError where `batch` rows do not divide evenly over the axis `data`."""
    devices = mesh.shape[DATA]
    if batch % devices:
        raise ValueError(f"a batch of {batch} rows does not divide over the {devices} devices of mesh axis {DATA}")


def place_weights(mesh: Mesh, params: Params) -> Params:
    """Replicate weights over a mesh; those already placed on it keep their sharding."""

    def one(leaf: Any) -> Any:
        there = isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh == mesh
        return leaf if there else _put(leaf, replicated(mesh))

    return jax.tree.map(one, params)


def _put(value: Any, sharding: Sharding) -> jax.Array:
    spread = isinstance(value, jax.Array) and not value.is_fully_addressable  # over processes, on a mesh already
    if spread or sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    host = np.asarray(value)  # every process has all of it and fills its own devices
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def to_host(value: jax.Array) -> np.ndarray:
    """All of an array as numpy, in every process."""
    if not value.is_fully_addressable:
        place: Any = value.sharding
        value = jax.device_put(value, replicated(place.mesh))
    return np.asarray(value)
