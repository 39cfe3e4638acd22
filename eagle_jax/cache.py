"""The key/value cache: made empty, then grown only by `commit`.

A pass over a tree never writes the cache. After verification the rows of the accepted path are gathered from what the
pass returned and written contiguously after the old ones. RoPE stays right, because the depth of a node on the path is
its offset in the text.
"""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from eagle_jax.platforms import platform
from eagle_jax.types import KVCache

Tree = TypeVar("Tree")

HEADS_FIRST = ("gpu",)
"""Platforms whose caches are [B, K, S, D].

Products on GPUs have rows and heads as their outer axes: XLA would transpose every cache at the start of a call and
back at its end. A CPU attends to few queries faster with slots first.
"""


def init_cache(
    num_layers: int,
    batch: int,
    capacity: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: jnp.dtype,
    heads_first: bool | None = None,
) -> KVCache:
    """An empty cache of `capacity` slots for each of `batch` rows; by platform `heads_first`, where left out."""
    heads_first = platform() in HEADS_FIRST if heads_first is None else heads_first
    sizes = (num_kv_heads, capacity) if heads_first else (capacity, num_kv_heads)
    shape, layers = (batch, *sizes, head_dim), range(num_layers)
    return KVCache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
        values=tuple(jnp.zeros(shape, dtype) for _ in layers),
        length=jnp.zeros((batch,), jnp.int32),
        heads_first=heads_first,
    )


SHORTEST_REACH = 512
"""The fewest slots that a program is compiled for."""


def reach_of(needed: int, capacity: int) -> int | None:
    """Slots that passes read for texts that take `needed`: a power of two, so that few programs are compiled.

    None where that is the capacity. Where the host has to wait for the length of a loop, as on GPUs, a program attends
    to a number of slots that the host chooses from the longest text, call by call.
    """
    reach = max(SHORTEST_REACH, 1 << (needed - 1).bit_length())
    return reach if reach < capacity else None


def with_reach(tree: Tree, reach: int | None) -> Tree:
    """The same arrays, all caches among them with another `reach`."""

    def changed(node: Any) -> Any:
        return dataclasses.replace(node, reach=reach) if isinstance(node, KVCache) else node

    return jax.tree.map(changed, tree, is_leaf=lambda node: isinstance(node, KVCache))


def count_after(count: jax.Array, read: jax.Array) -> jax.Array:
    """`count` i32[B], with a data dependence on `read` bool[B], which is true at run time but not provably so.

    Without it XLA may schedule the write into the cache before the reads of the same cache, and then copies the cache
    first (measured: a plain loop of one token a round, 2.45 ms a layer against 0.92 at 4096 slots). In a round the
    verdict is such a dependence already; elsewhere derive `read` from a result of the pass: a token is not negative, a
    state is not -inf.
    """
    return jnp.where(read, count, 0)


def append(old: jax.Array, new: jax.Array, start: jax.Array, count: jax.Array, heads_first: bool = False) -> jax.Array:
    """`old` [B, S, ...] with the first `count` i32[B] of `new` [B, P, ...] written from slot `start` i32[B] on.

    With `heads_first` both have their axis of slots third. Entries that do not fit are dropped. The scatter is vmapped
    over rows, so that a batch sharded over devices needs no communication.
    """
    axis = 2 if heads_first else 1
    if heads_first and new.shape[axis] == 1:  # XLA takes a write of one entry apart into two kernels
        new = jnp.pad(new, ((0, 0), (0, 0), (0, 1), (0, 0)))
    steps = jnp.arange(new.shape[axis])[None, :]
    # Entries from `count` on get a slot out of range, which the scatter drops.
    slots = jnp.where(steps < count[:, None], start[:, None] + steps, old.shape[axis] + steps)

    def written(row: jax.Array, values: jax.Array, at: jax.Array) -> jax.Array:
        if heads_first:
            return row.at[:, at].set(values, mode="drop", unique_indices=True)
        return row.at[at].set(values, mode="drop")

    return jax.vmap(written)(old, new, slots)


def commit(
    cache: KVCache, keys: tuple[jax.Array, ...], values: tuple[jax.Array, ...], path: jax.Array, count: jax.Array
) -> KVCache:
    """Append the first `count` rows of `path` to the cache.

    Args:
      cache: the cache that the pass read.
      keys, values: L x [B, T, K, D], what the pass returned for its T tokens.
      path: i32[B, P], indices into T in text order; entries from `count` on are ignored.
      count: i32[B], rows to append; 0 leaves a row as it was.

    Returns:
      The cache with `length + count` rows. Nothing is written beyond its capacity: rows that do not fit are dropped,
      which `decode` rules out before it starts.
    """

    def grown(old: jax.Array, new: jax.Array) -> jax.Array:
        picked = jnp.take_along_axis(new, jnp.maximum(path, 0)[:, :, None, None], axis=1)
        picked = picked.swapaxes(1, 2) if cache.heads_first else picked
        return append(old, picked.astype(old.dtype), cache.length, count, cache.heads_first)

    return dataclasses.replace(
        cache,
        keys=tuple(map(grown, cache.keys, keys)),
        values=tuple(map(grown, cache.values, values)),
        length=cache.length + count,
    )
