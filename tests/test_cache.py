"""Commit against slot-by-slot copying, and against the only thing that counts: a fresh prefill of the same text."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_jax.cache import commit, init_cache
from eagle_jax.testing import bigram_target, tiny_transformer
from eagle_jax.tree import ancestors, depths
from eagle_jax.types import NO_NODE, NO_PARENT, KVCache, Params, Target, TargetOutput
from tests.reference import cache as slow
from tests.reference import trees
from tests.reference.decode import logits_after

ROWS, CAPACITY, NEW, WIDTH, LAYERS = 16, 12, 7, 5, 2
COMMIT = jax.jit(commit)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_commit_against_copying(seed: int) -> None:
    """Random paths in any order, counts from 0 to the full path, caches from empty to full."""
    rng = np.random.default_rng(seed)
    held = rng.normal(size=(2, LAYERS, ROWS, CAPACITY, 2, 3)).astype(np.float32)
    new = rng.normal(size=(2, LAYERS, ROWS, NEW, 2, 3)).astype(np.float32)
    lengths = rng.integers(0, CAPACITY + 1, ROWS)
    count = np.minimum(rng.integers(0, WIDTH + 1, ROWS), CAPACITY - lengths)
    path = np.array([rng.permutation(NEW)[:WIDTH] for _ in range(ROWS)])
    # The verifier pads with NO_NODE after what it accepted, and may accept more than is committed.
    path = np.where(np.arange(WIDTH) < np.maximum(count, rng.integers(0, WIDTH + 1, ROWS))[:, None], path, NO_NODE)
    cache = KVCache(tuple(map(jnp.asarray, held[0])), tuple(map(jnp.asarray, held[1])), jnp.asarray(lengths))
    after = COMMIT(cache, tuple(new[0]), tuple(new[1]), jnp.asarray(path), jnp.asarray(count))
    assert after.length.tolist() == (lengths + count).tolist()
    for kind, arrays in enumerate([after.keys, after.values]):
        for layer, array in enumerate(arrays):
            wanted = slow.commit(held[kind, layer], lengths, new[kind, layer], path, count)
            for row in range(ROWS):
                np.testing.assert_array_equal(np.asarray(array)[row, : lengths[row] + count[row]], wanted[row])


def test_commit_of_nothing_changes_nothing() -> None:
    cache = init_cache(LAYERS, 3, CAPACITY, 1, 2, jnp.dtype("float32"))
    cache = cache.replace(keys=tuple(k + 1 for k in cache.keys), length=jnp.asarray([0, 5, CAPACITY]))
    new = tuple(jnp.full((3, NEW, 1, 2), 9.0) for _ in range(LAYERS))
    after = COMMIT(cache, new, new, jnp.zeros((3, WIDTH), jnp.int32), jnp.zeros(3, jnp.int32))
    jax.tree.map(np.testing.assert_array_equal, after, cache)


def test_rows_beyond_the_capacity_are_dropped() -> None:
    """A write that starts near the end must not slide back over slots in use."""
    cache = init_cache(1, 1, 8, 1, 1, jnp.dtype("float32"))
    cache = cache.replace(keys=(jnp.arange(8.0).reshape(1, 8, 1, 1),), length=jnp.asarray([6]))
    new = (jnp.asarray([100.0, 101.0, 102.0]).reshape(1, 3, 1, 1),)
    after = COMMIT(cache, new, new, jnp.asarray([[0, 1, 2]]), jnp.asarray([3]))
    assert after.keys[0].ravel().tolist() == [0, 1, 2, 3, 4, 5, 100, 101]


def test_commit_keeps_the_dtype_of_the_cache() -> None:
    cache = init_cache(1, 1, 4, 1, 1, jnp.dtype("bfloat16"))
    new = (jnp.ones((1, 1, 1, 1), jnp.float32),)
    after = COMMIT(cache, new, new, jnp.asarray([[0]]), jnp.asarray([1]))
    assert after.keys[0].dtype == after.values[0].dtype == jnp.bfloat16


ROOM = 48
"""Longest prompt read here; all are padded to it, so that each program compiles once."""


@functools.partial(jax.jit, static_argnums=0)
def _read(target: Target, params: Params, tokens: jax.Array, count: jax.Array) -> KVCache:
    batch = len(tokens)
    steps = jnp.broadcast_to(jnp.arange(ROOM), tokens.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((ROOM, ROOM), bool)), (batch, ROOM, ROOM))
    cache = target.init_cache(batch, ROOM + 10)
    output = target.forward(params, tokens, steps, cache, mask)
    return commit(cache, output.keys, output.values, steps, count)


def read_prompts(target: Target, params: Params, prompts: list[list[int]]) -> KVCache:
    """A cache that holds the prompts, of different lengths, read in one pass."""
    tokens = jnp.asarray([prompt + [0] * (ROOM - len(prompt)) for prompt in prompts])
    return _read(target, params, tokens, jnp.asarray(list(map(len, prompts))))


@functools.partial(jax.jit, static_argnums=0, static_argnames="max_depth")
def pass_over_trees(
    target: Target, params: Params, tokens: jax.Array, parents: jax.Array, cache: KVCache, *, max_depth: int
) -> tuple[TargetOutput, jax.Array]:
    """The target's pass and its logits after each node."""
    positions = cache.length[:, None] + depths(parents, max_depth)
    output = target.forward(params, tokens, positions, cache, ancestors(parents, max_depth))
    return output, target.unembed(params, output.hidden)


@pytest.mark.parametrize("windows", [(), (6, None, 9)], ids=["full", "sliding"])
def test_next_logits_after_a_path_equal_a_fresh_prefill(windows: tuple[int | None, ...]) -> None:
    """Commit a random, non-contiguous path of a random tree; then the text alone says what comes next."""
    _, target, params = tiny_transformer(windows=windows)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        batch = [trees.random_tree(rng, 24, 6, 64, deep=0.3) for _ in range(8)]
        prompts = [rng.integers(64, size=n).tolist() for n in rng.integers(1, 40, 8)]
        cache = read_prompts(target, params, prompts)
        tokens, parents = jnp.asarray([t.tokens for t in batch]), jnp.asarray([t.parents for t in batch])
        output, _ = pass_over_trees(target, params, tokens, parents, cache, max_depth=6)
        used = [[j for j in range(1, 24) if t.parents[j] != NO_PARENT] for t in batch]
        paths = [trees.line(t.parents, int(rng.choice(nodes))) for t, nodes in zip(batch, used, strict=True)]
        assert any(b - a > 1 for path in paths for a, b in pairwise(path[1:]))
        padded = jnp.asarray([trees.padded(path, 7) for path in paths])
        cache = COMMIT(cache, output.keys, output.values, padded, jnp.asarray(list(map(len, paths))))

        following = jnp.asarray(rng.integers(64, size=(8, 1)))
        alone = jnp.full((8, 1), NO_PARENT)
        logits = np.asarray(pass_over_trees(target, params, following, alone, cache, max_depth=0)[1])[:, 0]
        for row, (prompt, tree, path) in enumerate(zip(prompts, batch, paths, strict=True)):
            text = [*prompt, *[tree.tokens[node] for node in path], int(following[row, 0])]
            np.testing.assert_allclose(logits[row], logits_after(target, params, text), atol=1e-4)


def test_tree_logits_equal_those_of_each_path_alone() -> None:
    """The target's output at a node depends on the node's own path and on nothing else in the tree."""
    _, target, params = tiny_transformer()
    rng = np.random.default_rng(5)
    tree = trees.random_tree(rng, 20, 5, 64, unused=0.1)
    prompt = rng.integers(64, size=21).tolist()
    cache = read_prompts(target, params, [prompt])
    tokens, parents = jnp.asarray([tree.tokens]), jnp.asarray([tree.parents])
    logits = np.asarray(pass_over_trees(target, params, tokens, parents, cache, max_depth=5)[1])[0]
    for node in range(20):
        text = prompt + [tree.tokens[j] for j in trees.line(tree.parents, node)]
        np.testing.assert_allclose(logits[node], logits_after(target, params, text), atol=1e-4)


def test_bigram_cache_can_be_read_back() -> None:
    """Its keys are token ids and its values positions."""
    target, params = bigram_target(12)
    cache = read_prompts(target, params, [[3, 1, 4], [5]])
    assert cache.keys[0][0, :3, 0, 0].tolist() == [3, 1, 4]
    assert cache.values[0][0, :3, 0, 0].tolist() == [0, 1, 2]
    assert cache.keys[0][1, :1, 0, 0].tolist() == [5]
