"""Random bits by the CPU kernel where there is one; the same bits as `jax.random.bits`, one for one."""

from typing import Any

import jax
import jax.numpy as jnp

from eagle_jax.kernels import build
from eagle_jax.platforms import platform


def keyed_bits(keys: jax.Array, count: int) -> jax.Array:
    """Random words u32[..., count] for keys [...] of Threefry-2x32."""
    flat = keys.reshape(-1)
    shape = jax.ShapeDtypeStruct((flat.size, count), jnp.uint32)
    if has_kernel():
        bits = jax.ffi.ffi_call(build.THREEFRY, shape)(jax.random.key_data(flat))
    else:
        bits = jax.vmap(lambda key: jax.random.bits(key, shape.shape[1:], shape.dtype))(flat)
    return bits.reshape(*keys.shape, count)


def has_kernel() -> bool:
    """Whether programs traced here draw by the kernel: on a CPU, without a mesh, by JAX's default Threefry."""
    alone = platform() == "cpu" and jax.sharding.get_abstract_mesh().empty
    config: Any = jax.config  # its fields are not typed
    return alone and bool(config.jax_threefry_partitionable) and build.available()
