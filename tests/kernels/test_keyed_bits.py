"""Keyed bits: those of `jax.random.bits`, whoever draws them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from eagle_jax.kernels import build
from eagle_jax.kernels.keyed_bits import has_kernel, keyed_bits
from eagle_jax.platforms import compiling_for
from eagle_jax.sampling import gumbel, make_sampling

needs_kernel = pytest.mark.skipif(not build.available(), reason="the CPU kernel is switched off or has no compiler")


def keys_of(shape: tuple[int, ...], seed: int = 5) -> jax.Array:
    return jax.random.split(jax.random.key(seed, impl="threefry2x32"), shape)


def program_of(words: int = 40) -> str:
    return jax.jit(lambda keys: keyed_bits(keys, words)).lower(keys_of((2, 3))).as_text()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 8192, 8193, 49_152])
@pytest.mark.parametrize("shape", [(1,), (2, 3), (0,)])
def test_equal_to_jax_bit_for_bit(shape: tuple[int, ...], count: int) -> None:
    keys = keys_of(shape)
    wanted = [np.asarray(jax.random.bits(key, (count,), jnp.uint32)) for key in keys.reshape(-1)]
    bits = jax.jit(keyed_bits, static_argnums=1)(keys, count)
    assert bits.shape == (*shape, count)
    assert bits.dtype == jnp.uint32
    np.testing.assert_array_equal(np.asarray(bits).reshape(-1, count), np.reshape(wanted, (-1, count)))


@pytest.mark.parametrize("data", [(0, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0), (1, 0x80000000)])
def test_keys_at_the_ends(data: tuple[int, int]) -> None:
    key = jax.random.wrap_key_data(np.array(data, np.uint32), impl="threefry2x32")
    np.testing.assert_array_equal(keyed_bits(key[None], 100)[0], jax.random.bits(key, (100,), jnp.uint32))


@needs_kernel
def test_noise_is_drawn_by_the_kernel() -> None:
    sampling = make_sampling(1, temperature=1.0)
    program = jax.jit(lambda at: gumbel(sampling, at, 64)).lower(jnp.zeros((1, 3), jnp.int32)).as_text()
    assert program.count(f"@{build.THREEFRY}") == 1


@needs_kernel
def test_only_where_it_gives_the_same_bits_on_one_cpu() -> None:
    call = f"@{build.THREEFRY}"
    assert has_kernel()
    assert call in program_of()
    with compiling_for("tpu"):
        assert call not in program_of(41)
    with jax.set_mesh(jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))):
        assert call not in program_of(42)
    with jax.threefry_partitionable(False):
        assert not has_kernel()
        keys = keys_of((2,))
        np.testing.assert_array_equal(keyed_bits(keys, 33)[1], jax.random.bits(keys[1], (33,), jnp.uint32))


@needs_kernel
def test_wrong_shapes_are_refused() -> None:
    call = jax.ffi.ffi_call(build.THREEFRY, jax.ShapeDtypeStruct((2, 8), jnp.uint32))
    with pytest.raises(Exception, match=r"keys \[rows, 2\]"):
        call(np.zeros((3, 2), np.uint32))
