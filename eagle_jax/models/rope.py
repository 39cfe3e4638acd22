"""Rotary position embeddings with the scalings that published configs use.

Sources: RoFormer (arXiv 2104.09864); linear interpolation (arXiv 2306.15595); YaRN (arXiv 2309.00071, section 3);
"llama3" as the Llama 3.1 model card defines it. Rotate-half layout: dimension d is rotated together with d + D/2.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.models.config import ModelConfig, RopeScaling


@functools.cache
def frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> tuple[np.ndarray, float]:
    """Rotation per position of each plane in radians, f32[D/2], and the factor of cosine and sine."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    inverse = (1.0 / np.float32(theta) ** exponents).astype(np.float32)
    if scaling.kind == "linear":
        return inverse / np.float32(scaling.factor), 1.0
    if scaling.kind == "llama3":
        return _llama3(inverse, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(inverse, head_dim, theta, scaling), _yarn_attention_factor(scaling)
    if scaling.kind == "default":
        return inverse, 1.0
    raise ValueError(f"RoPE scaling {scaling.kind!r} is not one of default, linear, llama3, yarn")


def _llama3(inverse: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Interpolates slow planes, leaves fast ones, and blends between by rotations within the original context."""
    turns = scaling.original_max_positions * inverse / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return (keep * inverse + (1 - keep) * inverse / scaling.factor).astype(np.float32)


def _yarn(inverse: np.ndarray, head_dim: int, theta: float, scaling: RopeScaling) -> np.ndarray:
    """As llama3, but the blend is linear in the index of the plane between two rotation counts."""

    def plane_turning(times: float) -> float:
        """Index of the plane that makes `times` rotations within the original context."""
        return head_dim * math.log(scaling.original_max_positions / (times * 2 * math.pi)) / (2 * math.log(theta))

    low, high = plane_turning(scaling.beta_fast), plane_turning(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    keep = 1 - np.clip((np.arange(head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return (keep * inverse + (1 - keep) * inverse / scaling.factor).astype(np.float32)


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def angles(config: ModelConfig, positions: jax.Array, *, local: bool = False) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine for `positions` i32[B, T]: two f32[B, T, 1, D/2], ready to broadcast over heads.

    `local`: those of layers with a window, where the model has a base of their own for them.
    """
    theta, scaling = config.rope_theta, config.rope_scaling
    if local and config.local_rope_theta is not None:
        theta, scaling = config.local_rope_theta, RopeScaling()
    inverse, factor = frequencies(config.head_dim, theta, scaling)
    turned = positions[:, :, None, None].astype(jnp.float32) * inverse[None, None, None, :]
    return jnp.cos(turned) * factor, jnp.sin(turned) * factor


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Rotate x [B, T, heads, D] by the given angles."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x.dtype)
