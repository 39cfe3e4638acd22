"""Attention of new tokens over a cached prefix and over each other.

The prefix needs only a length (and perhaps a window), the new tokens a small mask. One running softmax, as in
FlashAttention (arXiv 2205.14135, section 3.1), starts with the new tokens and then takes the prefix block by block up
to the longest live row, so that cost follows the text and not the capacity of the cache (DESIGN 4.4).

    new token 2 of a tree        prefix (slots 0..length-1)   new tokens 0 1 2 3
                                 [x x x x x x x . . . .]      [x . x .]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

MASKED = -1e30
"""Score of a key that a query may not see; finite, so that a row without a prefix gives no NaN."""


class Prefix(NamedTuple):
    """One layer's cached keys and values."""

    keys: jax.Array  # [B, S, K, D]
    values: jax.Array  # [B, S, K, D]
    length: jax.Array  # i32[B]


class _Running(NamedTuple):
    """A softmax under way."""

    top: jax.Array  # f32[B, K, G, T], highest score so far
    total: jax.Array  # f32[B, K, G, T], sum of exp(score - top)
    mixed: jax.Array  # f32[B, K, G, T, D], values weighted likewise


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
    block: int = 256,
) -> jax.Array:
    """Mix the values that each query sees.

    Args:
      queries: [B, T, H, D], after RoPE, not yet scaled.
      keys, values: [B, M, K, D] of the M new tokens (T = M unless a drafter adds nodes level by level).
      mask: bool[B, T, M], which new tokens a query sees; a query must see at least one.
      prefix: the cache; slot s holds position s.
      positions: i32[B, T] of the queries.
      key_positions: i32[B, M] of the new tokens; `positions` where left out.
      window: a query at i sees only keys j with i - j < window.
      block: prefix slots handled at a time; the whole capacity at once where it is no larger.

    Returns:
      [B, T, H, D], in the dtype of `values`.
    """
    batch, num_queries, num_heads, head_dim = queries.shape
    num_kv_heads = keys.shape[2]
    grouped = queries.reshape(batch, num_queries, num_kv_heads, num_heads // num_kv_heads, head_dim)
    grouped = grouped * jnp.asarray(head_dim**-0.5, queries.dtype)

    def scores(some_keys: jax.Array) -> jax.Array:
        return jnp.einsum("btkgd,bskd->bkgts", grouped, some_keys, preferred_element_type=jnp.float32)

    def mix(weights: jax.Array, some_values: jax.Array) -> jax.Array:
        weights = weights.astype(some_values.dtype)
        return jnp.einsum("bkgts,bskd->bkgtd", weights, some_values, preferred_element_type=jnp.float32)

    if window is not None:
        seen_at = positions if key_positions is None else key_positions
        mask = mask & (positions[:, :, None] - seen_at[:, None, :] < window)
    first = jnp.where(mask[:, None, None], scores(keys), MASKED)
    top = first.max(-1)
    weights = jnp.exp(first - top[..., None])
    running = _Running(top=top, total=weights.sum(-1), mixed=mix(weights, values))

    def add_block(index: jax.Array, running: _Running) -> _Running:
        start = jnp.minimum(index * size, capacity - size)  # the last block may overlap the one before it
        slots = start + jnp.arange(size)
        visible = (slots >= index * size)[None, :] & (slots[None, :] < prefix.length[:, None])  # [B, size]
        visible = visible[:, None, :]
        if window is not None:
            visible = visible & (positions[:, :, None] - slots[None, None, :] < window)
        some_keys = lax.dynamic_slice_in_dim(prefix.keys, start, size, axis=1)
        some_values = lax.dynamic_slice_in_dim(prefix.values, start, size, axis=1)
        found = jnp.where(visible[:, None, None], scores(some_keys), MASKED)
        top = jnp.maximum(running.top, found.max(-1))
        weights = jnp.exp(found - top[..., None])
        shrink = jnp.exp(running.top - top)
        return _Running(
            top=top,
            total=running.total * shrink + weights.sum(-1),
            mixed=running.mixed * shrink[..., None] + mix(weights, some_values),
        )

    capacity = prefix.keys.shape[1]
    size = min(block, capacity)
    if size == capacity:  # one block: no loop, whose length the host of a GPU would have to wait for
        running = add_block(jnp.int32(0), running)
    else:
        num_blocks = (prefix.length.max() + size - 1) // size
        running = lax.fori_loop(0, num_blocks, add_block, running)
    mixed = running.mixed / running.total[..., None]
    return mixed.transpose(0, 3, 1, 2, 4).reshape(queries.shape).astype(values.dtype)
