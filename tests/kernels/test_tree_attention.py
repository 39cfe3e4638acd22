"""The attention kernel against its XLA twin: any shapes, masks, windows and lengths."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.kernels import build
from eagle_jax.kernels.packed import pack
from eagle_jax.models.attention import Prefix, attend
from eagle_jax.testing import tiny_transformer
from tests.models.passes import cached_pass
from tests.tolerance import assert_close, pass_terms, rounding

pytestmark = pytest.mark.skipif(not build.available(), reason="the CPU kernels are switched off or have no compiler")

KERNEL, XLA = (jax.jit(functools.partial(attend, kernel=kernel), static_argnames="window") for kernel in (True, False))


def random_case(seed: int, shape: tuple[int, ...], capacity: int, lengths: list[int]) -> tuple[list[Any], jax.Array]:
    """Arguments of `attend` in order, and key positions; each query sees its own token and some before it."""
    batch, queries, new, heads, kv_heads, size = shape
    rng = np.random.default_rng(seed)

    def normal(*sizes: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(sizes, dtype=np.float32))

    own = np.arange(new)[None, :] == np.arange(queries)[:, None] + new - queries
    mask = jnp.asarray(own[None] | (rng.random((batch, queries, new)) < 0.5))
    prefix = Prefix(
        normal(batch, capacity, kv_heads, size), normal(batch, capacity, kv_heads, size), jnp.array(lengths)
    )
    keys = normal(batch, new, kv_heads, size), normal(batch, new, kv_heads, size)
    key_at = jnp.array(lengths)[:, None] + jnp.asarray(rng.integers(0, 9, (batch, new)))
    at = key_at[:, new - queries :]
    return [normal(batch, queries, heads, size), *keys, mask, prefix, at.astype(jnp.int32)], key_at.astype(jnp.int32)


@pytest.mark.parametrize("window", [None, 1, 9, 1000])
@pytest.mark.parametrize(
    ("shape", "capacity", "lengths"),
    [
        ((1, 1, 1, 9, 3, 64), 512, [200]),  # a plain round of SmolLM2
        ((1, 8, 8, 9, 3, 64), 512, [500]),
        ((2, 60, 60, 4, 2, 16), 128, [0, 127]),  # many rows a head: several groups
        ((3, 5, 70, 4, 2, 20), 300, [64, 63, 65]),  # more new tokens than are taken at a time, a head size of no tile
        ((2, 7, 7, 3, 3, 2), 8, [8, 3]),
        ((32, 1, 1, 4, 1, 128), 96, list(range(32))),
    ],
)
def test_against_xla(shape: tuple[int, ...], capacity: int, lengths: list[int], window: int | None) -> None:
    case, key_at = random_case(7, shape, capacity, lengths)
    wanted = np.asarray(XLA(*case, key_positions=key_at, window=window))
    actual = np.asarray(KERNEL(*case, key_positions=key_at, window=window))
    # Scores are sums over the head size, outputs over the keys; exp magnifies an error by the size of a score, about 5.
    limit = 5 * rounding(wanted, terms=shape[-1] + capacity + shape[2])
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=limit)


def test_a_query_does_not_depend_on_the_others() -> None:
    """Bit for bit, whatever is attended along."""
    case, key_at = random_case(3, (1, 70, 70, 4, 2, 16), 200, [150])
    queries, keys, values, mask, prefix, at = case
    together = np.asarray(KERNEL(*case, key_positions=key_at))
    for one in (0, 29, 30, 69):
        cut = slice(one, one + 1)
        alone = KERNEL(queries[:, cut], keys, values, mask[:, cut], prefix, at[:, cut], key_positions=key_at)
        np.testing.assert_array_equal(alone[:, 0], together[:, one])


def test_packed_documents() -> None:
    """Text as training packs it: most blocks of keys are seen by no query of a group, and are left out."""
    case, _ = random_case(11, (2, 200, 200, 4, 2, 16), 1, [0, 0])
    document = np.array([[0] * 90 + [1] * 110, [0] * 7 + [1] * 70 + [2] * 123])
    mask = np.tril(np.ones((200, 200), bool)) & (document[:, :, None] == document[:, None, :])
    case[3], case[5] = jnp.asarray(mask), jnp.tile(jnp.arange(200), (2, 1))
    wanted = np.asarray(XLA(*case))
    np.testing.assert_allclose(KERNEL(*case), wanted, rtol=0, atol=5 * rounding(wanted, terms=16 + 200))


def test_garbage_beyond_the_length_is_not_read() -> None:
    case, key_at = random_case(5, (2, 3, 3, 4, 2, 16), 128, [10, 100])
    prefix = case[4]
    beyond = jnp.arange(128)[None, :, None, None] >= prefix.length[:, None, None, None]
    case[4] = Prefix(jnp.where(beyond, jnp.nan, prefix.keys), jnp.where(beyond, jnp.nan, prefix.values), prefix.length)
    assert np.isfinite(KERNEL(*case, key_positions=key_at)).all()


def test_a_pass_of_a_model() -> None:
    """Packed weights bring their attention along."""
    config, target, params = tiny_transformer(2, windows=(7, None, 3))
    tokens = jnp.arange(12)[None] * 5 % config.vocab_size
    positions = 20 + jnp.arange(12)[None]
    mask = jnp.tril(jnp.ones((1, 12, 12), bool))
    cache = target.init_cache(1, 64).replace(length=jnp.array([20]))
    cache = jax.tree.map(lambda x: x + 0.1 if x.ndim == 4 else x, cache)
    plain, logits = cached_pass(target, params, tokens, positions, cache, mask)
    packed, actual = cached_pass(target, pack(params), tokens, positions, cache, mask)
    program = cached_pass.lower(target, pack(params), tokens, positions, cache, mask).as_text()
    assert program.count(f"@{build.ATTENTION}") == config.num_layers
    assert_close((packed, actual), (plain, logits), pass_terms(config, 32))
