"""Block-wise attention against one query at a time: lengths, windows, masks, grouped heads, blocks of any size."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_jax.models.attention import Prefix, attend
from tests.reference import attention as slow
from tests.reference import trees

BATCH, QUERIES, KEYS, CAPACITY, HEADS, KV_HEADS, HEAD_DIM = 3, 4, 6, 21, 4, 2, 8


@functools.cache
def _attend(window: int | None, block: int) -> Any:
    return jax.jit(functools.partial(attend, window=window, block=block))


def random_case(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arguments of the twin; garbage beyond each length is large, so that reading it shows."""
    lengths = rng.integers(0, CAPACITY + 1, BATCH)
    mask = rng.random((BATCH, QUERIES, KEYS)) < 0.5
    own = rng.integers(KEYS, size=(BATCH, QUERIES))
    np.put_along_axis(mask, own[..., None], True, axis=2)
    key_positions = lengths[:, None] + rng.integers(0, 4, (BATCH, KEYS))
    case = {
        "queries": rng.normal(size=(BATCH, QUERIES, HEADS, HEAD_DIM)) * 2,
        "keys": rng.normal(size=(BATCH, KEYS, KV_HEADS, HEAD_DIM)),
        "values": rng.normal(size=(BATCH, KEYS, KV_HEADS, HEAD_DIM)),
        "prefix_keys": rng.normal(size=(BATCH, CAPACITY, KV_HEADS, HEAD_DIM)),
        "prefix_values": rng.normal(size=(BATCH, CAPACITY, KV_HEADS, HEAD_DIM)),
    }
    for name in ("prefix_keys", "prefix_values"):
        case[name][np.arange(CAPACITY) >= lengths[:, None]] = 50.0
    return {
        **{name: array.astype(np.float32) for name, array in case.items()},
        "mask": mask,
        "lengths": lengths,
        "key_positions": key_positions,
        # A query stands where one of the keys it sees stands: within every window it sees at least that one.
        "positions": np.take_along_axis(key_positions, own, axis=1),
    }


@pytest.mark.parametrize("window", [None, 1, 3, 9, 100])
@pytest.mark.parametrize("block", [1, 4, 7, 8, 21, 256])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_against_one_query_at_a_time(window: int | None, block: int, seed: int) -> None:
    case = random_case(np.random.default_rng(seed))
    actual = _attend(window, block)(
        *(jnp.asarray(case[name]) for name in ("queries", "keys", "values", "mask")),
        Prefix(*(jnp.asarray(case[name]) for name in ("prefix_keys", "prefix_values", "lengths"))),
        jnp.asarray(case["positions"]),
        key_positions=jnp.asarray(case["key_positions"]),
    )
    np.testing.assert_allclose(np.asarray(actual), slow.attend(**case, window=window), atol=2e-5)


def _plain(queries: jax.Array, mask: jax.Array, prefix: Prefix, position: int) -> np.ndarray:
    """Attention whose new keys and values are the queries of head 0."""
    new = queries[:, :, :1]
    return np.asarray(_attend(None, 4)(queries, new, new, mask, prefix, jnp.full(mask.shape[:2], position)))


def test_empty_prefix_gives_no_nan() -> None:
    """Length 0 and queries that see themselves alone: their own values come back, whatever fills the cache."""
    rng = np.random.default_rng(0)
    queries = jnp.asarray(rng.normal(size=(1, 2, 2, 4)), jnp.float32)
    garbage = jnp.full((1, 8, 1, 4), 1e30)
    mixed = _plain(queries, jnp.eye(2, dtype=bool)[None], Prefix(garbage, garbage, jnp.asarray([0])), 0)
    np.testing.assert_allclose(mixed, np.broadcast_to(queries[:, :, :1], mixed.shape), rtol=1e-6)


def test_empty_row_beside_a_long_one() -> None:
    """Blocks that only the other row needs leave a row of length 0 untouched, to the bit: the program is the same."""
    rng = np.random.default_rng(0)
    queries = jnp.asarray(rng.normal(size=(2, 2, 2, 4)), jnp.float32)
    held = jnp.asarray(rng.normal(size=(2, 8, 1, 4)), jnp.float32)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((2, 2), bool)), (2, 2, 2))
    long, empty = (_plain(queries, mask, Prefix(held, held, jnp.asarray([0, length])), 8) for length in (8, 0))
    np.testing.assert_array_equal(long[0], empty[0])
    assert (long[1] != empty[1]).any()
    assert np.isfinite(long).all()


def test_tree_rows_see_their_own_line_only() -> None:
    """Changing a node's key and value changes the nodes below it and no other."""
    rng = np.random.default_rng(2)
    tree = trees.random_tree(rng, 12, 4, 50, unused=0.1)
    seen = trees.ancestors(tree.parents)
    x = rng.normal(size=(1, 12, 2, 4)).astype(np.float32)
    held = jnp.asarray(rng.normal(size=(1, 8, 2, 4)), jnp.float32)
    prefix = Prefix(held, held, jnp.asarray([5]))
    positions = jnp.asarray([[5 + trees.depth(tree.parents, j) for j in range(12)]])
    run = jax.jit(lambda keys: attend(jnp.asarray(x), keys, keys, jnp.asarray(seen)[None], prefix, positions, block=4))
    before = np.asarray(run(x))
    for node in range(12):
        changed = x.copy()
        changed[0, node] += 1.0
        moved = (np.asarray(run(changed)) != before).any((2, 3))[0]
        np.testing.assert_array_equal(moved, seen[:, node])


def test_long_prefix_with_large_scores() -> None:
    """The running maximum keeps exp from overflowing; the last key outweighs all others."""
    queries = jnp.full((1, 1, 1, 4), 30.0)
    held = jnp.arange(16.0).reshape(1, 16, 1, 1) * jnp.ones((1, 1, 1, 4))
    new = jnp.zeros((1, 1, 1, 4))
    prefix = Prefix(held, held, jnp.asarray([16]))
    mixed = attend(queries, new, new, jnp.ones((1, 1, 1), bool), prefix, jnp.asarray([[16]]), block=3)
    np.testing.assert_allclose(np.asarray(mixed), 15.0, rtol=1e-6)


def test_lower_precision_keeps_its_dtype() -> None:
    rng = np.random.default_rng(0)
    case = random_case(rng)
    wide = [jnp.asarray(case[name]) for name in ("queries", "keys", "values")]
    held = [jnp.asarray(case[name]) for name in ("prefix_keys", "prefix_values")]
    mask, lengths, positions = (jnp.asarray(case[name]) for name in ("mask", "lengths", "positions"))
    keys_at = jnp.asarray(case["key_positions"])
    half = [array.astype(jnp.bfloat16) for array in (*wide, *held)]
    exact = _attend(None, 8)(*wide, mask, Prefix(*held, lengths), positions, key_positions=keys_at)
    actual = _attend(None, 8)(*half[:3], mask, Prefix(*half[3:], lengths), positions, key_positions=keys_at)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(actual, np.float32), np.asarray(exact), atol=0.1)
