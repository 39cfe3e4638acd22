"""Attention by the CPU kernel; computes the same as the XLA form in `models.attention`, where it is described."""

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.kernels import build


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    prefix_keys: jax.Array,
    prefix_values: jax.Array,
    length: jax.Array,
    positions: jax.Array,
    key_positions: jax.Array,
    window: int | None,
) -> jax.Array:
    """Softmax attention over the keys that each query sees, in float32.

    Args:
      queries: [B, T, H, D], after RoPE, already scaled.
      keys, values: [B, M, K, D] of the new tokens.
      mask: bool[B, T, M], which new tokens a query sees, at least one.
      prefix_keys, prefix_values: [B, S, K, D], the cache; slot s holds position s.
      length: i32[B], slots that count.
      positions: i32[B, T] of the queries.
      key_positions: i32[B, M] of the new tokens.
      window: a query at i sees only keys j with i - j < window; None is no window.

    Returns:
      f32[B, T, H, D].
    """
    call = jax.ffi.ffi_call(build.ATTENTION, jax.ShapeDtypeStruct(queries.shape, jnp.float32))
    return call(
        queries,
        keys,
        values,
        mask,
        prefix_keys,
        prefix_values,
        length,
        positions,
        key_positions,
        window=np.int64(window or 0),
    )
