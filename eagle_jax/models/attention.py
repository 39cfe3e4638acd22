"""Attention of new tokens over a cached prefix and over each other.

The prefix needs only a length (and perhaps a window), the new tokens a small mask. One running softmax, as in
FlashAttention (arXiv 2205.14135, section 3.1), starts with the new tokens and then takes the prefix block by block up
to the longest live row, so that cost follows the text and not the capacity of the cache (DESIGN 4.4).

    new token 2 of a tree        prefix (slots 0..length-1)   new tokens 0 1 2 3
                                 [x x x x x x x . . . .]      [x . x .]

On GPUs the prefix is one block (`block_size`), for the host would have to wait for the length of a loop: there it says
beforehand how many slots the text takes (`KVCache.reach`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from eagle_jax.kernels import tree_attention as kernels
from eagle_jax.platforms import platform

BLOCK = 256
"""Prefix slots handled at a time, but on GPUs."""

SCORES = 2**28
"""Scores of one layer that a GPU computes at a time: a gibibyte."""

MASKED = -1e30
"""Score of a key that a query may not see; finite, so that a row without a prefix gives no NaN."""


class Prefix(NamedTuple):
    """One layer's cached keys and values."""

    keys: jax.Array  # [B, S, K, D]
    values: jax.Array  # [B, S, K, D]
    length: jax.Array  # i32[B]


class _Running(NamedTuple):
    """State of an online softmax."""

    top: jax.Array  # f32[B, K, G, T], highest score so far
    total: jax.Array  # f32[B, K, G, T], sum of exp(score - top)
    mixed: jax.Array  # f32[B, K, G, T, D], sum of exp(score - top) * value


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    prefix: Prefix,
    positions: jax.Array,
    *,
    key_positions: jax.Array | None = None,
    window: int | None = None,
    scale: float | None = None,
    block: int | None = None,
    kernel: bool = False,
) -> jax.Array:
    """Softmax attention over the keys that each query sees.

    Args:
      queries: [B, T, H, D], after RoPE, not yet scaled.
      keys, values: [B, M, K, D] of the M new tokens (T = M unless a drafter adds nodes level by level).
      mask: bool[B, T, M], which new tokens a query sees; a query must see at least one.
      prefix: the cache; slot s holds position s.
      positions: i32[B, T] of the queries.
      key_positions: i32[B, M] of the new tokens; `positions` where left out.
      window: a query at i sees only keys j with i - j < window.
      scale: factor of the scores; the head size to the power -1/2 where left out.
      block: prefix slots handled at a time, at most the capacity; as `block_size` where left out.
      kernel: use the CPU kernel: for float32, where weights are packed for it.

    Returns:
      [B, T, H, D], in the dtype of `values`.
    """
    batch, num_queries, num_heads, head_dim = queries.shape
    num_kv_heads = keys.shape[2]
    queries = queries * jnp.asarray(head_dim**-0.5 if scale is None else scale, queries.dtype)
    if kernel:
        places = positions if key_positions is None else key_positions
        return kernels.attend(queries, keys, values, mask, *prefix, positions, places, window)
    if window is not None:
        seen_at = positions if key_positions is None else key_positions
        mask = mask & (positions[:, :, None] - seen_at[:, None, :] < window)
    capacity = prefix.keys.shape[1]
    size = min(block or block_size(batch * num_heads * num_queries), capacity)
    if size == capacity:
        visible = jnp.arange(capacity)[None, None, :] < prefix.length[:, None, None]  # [B, 1, S]
        if window is not None:
            visible = visible & (positions[:, :, None] - jnp.arange(capacity)[None, None, :] < window)
        return _in_one_block(queries, keys, values, mask, prefix, visible)
    grouped = queries.reshape(batch, num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = _scores(grouped, keys, mask)
    top = scores.max(-1)
    weights = jnp.exp(scores - top[..., None])
    running = _Running(top=top, total=weights.sum(-1), mixed=_mix(weights, values))

    def add_block(index: jax.Array, running: _Running) -> _Running:
        start = jnp.minimum(index * size, capacity - size)  # the last block may overlap the one before it
        slots = start + jnp.arange(size)
        visible = (slots >= index * size)[None, :] & (slots[None, :] < prefix.length[:, None])  # [B, size]
        visible = visible[:, None, :]
        if window is not None:
            visible = visible & (positions[:, :, None] - slots[None, None, :] < window)
        some_keys = lax.dynamic_slice_in_dim(prefix.keys, start, size, axis=1)
        some_values = lax.dynamic_slice_in_dim(prefix.values, start, size, axis=1)
        return _add_keys(running, _scores(grouped, some_keys, visible), some_values)

    if platform() == "gpu":  # of fixed length, for which the host need not wait
        running = lax.fori_loop(0, -(-capacity // size), add_block, running)
    else:
        num_blocks = (prefix.length.max() + size - 1) // size
        oldest = 0 if window is None else jnp.maximum(positions.min() - window + 1, 0) // size
        running = lax.fori_loop(oldest, num_blocks, add_block, running)
    mixed = running.mixed / running.total[..., None]
    return mixed.transpose(0, 3, 1, 2, 4).reshape(queries.shape).astype(values.dtype)


def block_size(num_rows: int) -> int:
    """Prefix slots handled at a time for this many queries, those of all heads and batch rows together.

    A loop follows the text, but on a GPU the host waits for its length in every layer: there all slots are one block,
    or as many as `SCORES` allows.
    """
    return max(BLOCK, SCORES // num_rows // BLOCK * BLOCK) if platform() == "gpu" else BLOCK


def _in_one_block(
    queries: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array, prefix: Prefix, visible: jax.Array
) -> jax.Array:
    """`attend` with all scores at once, in few kernels; `visible` bool[B, T or 1, S], which slots a query sees.

    Both softmaxes share their maximum and their sum, and products are plain batched ones of [T G, D] by head.
    """
    batch, num_queries, num_heads, head_dim = queries.shape
    num_kv_heads = keys.shape[2]
    group = num_heads // num_kv_heads
    rows = queries.reshape(batch, num_queries, num_kv_heads, group, head_dim).transpose(0, 2, 1, 3, 4)
    rows = rows.reshape(batch, num_kv_heads, num_queries * group, head_dim)

    def masked(keys: jax.Array, seen: jax.Array) -> jax.Array:
        scores = jnp.einsum("bkrd,bkmd->bkrm", rows, keys, preferred_element_type=jnp.float32)
        seen = seen if seen.shape[1] == 1 else jnp.repeat(seen, group, axis=1)
        return jnp.where(seen[:, None], scores, MASKED)

    def by_head(x: jax.Array) -> jax.Array:
        return x.swapaxes(1, 2)

    def mix(weights: jax.Array, values: jax.Array) -> jax.Array:
        weights = weights.astype(values.dtype)
        return jnp.einsum("bkrm,bkmd->bkrd", weights, by_head(values), preferred_element_type=jnp.float32)

    old, new = masked(by_head(prefix.keys), visible), masked(by_head(keys), mask)
    top = jnp.maximum(old.max(-1), new.max(-1))[..., None]
    old, new = jnp.exp(old - top), jnp.exp(new - top)
    total = old.sum(-1) + new.sum(-1)
    mixed = (mix(old, prefix.values) + mix(new, values)) / total[..., None]
    mixed = mixed.reshape(batch, num_kv_heads, num_queries, group, head_dim).transpose(0, 2, 1, 3, 4)
    return mixed.reshape(queries.shape).astype(values.dtype)


def _scores(queries: jax.Array, keys: jax.Array, visible: jax.Array) -> jax.Array:
    """Scaled queries [B, T, K, G, D] on keys [B, M, K, D]: f32[B, K, G, T, M], MASKED where not `visible` [B, T, M]."""
    scores = jnp.einsum("btkgd,bskd->bkgts", queries, keys, preferred_element_type=jnp.float32)
    return jnp.where(visible[:, None, None], scores, MASKED)


def _mix(weights: jax.Array, values: jax.Array) -> jax.Array:
    """Sums of values [B, M, K, D], weighted f32[B, K, G, T, M]: f32[B, K, G, T, D]."""
    weights = weights.astype(values.dtype)
    return jnp.einsum("bkgts,bskd->bkgtd", weights, values, preferred_element_type=jnp.float32)


def _add_keys(running: _Running, scores: jax.Array, values: jax.Array) -> _Running:
    """Add keys and values to an online softmax."""
    top = jnp.maximum(running.top, scores.max(-1))
    weights = jnp.exp(scores - top[..., None])
    shrink = jnp.exp(running.top - top)
    return _Running(
        top=top,
        total=running.total * shrink + weights.sum(-1),
        mixed=running.mixed * shrink[..., None] + _mix(weights, values),
    )
