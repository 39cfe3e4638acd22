"""The pool as a log against a dictionary of lists, and phrases merged into branches against sets of paths."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_jax.decode import Models, decode, prefill
from eagle_jax.drafters.base import Observation
from eagle_jax.drafters.lookahead import make_lookahead
from eagle_jax.drafters.ngram_pool import NgramPool, empty_pool, insert, newest, text_ngrams, with_branches
from eagle_jax.drafters.ouroboros import make_ouroboros
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import tiny_transformer
from eagle_jax.tree import chain_tree
from eagle_jax.types import NO_PARENT, TargetOutput
from tests.compilations import AS_SHIPPED
from tests.golden import QUICK
from tests.reference import ngram_pool as slow

BATCH = 2
SEEDS = st.integers(0, 2**32 - 1)
NOTHING = TargetOutput(hidden=jnp.zeros(()), taps=jnp.zeros(()), keys=(), values=())


@functools.cache
def look_up(number: int) -> Any:
    return jax.jit(functools.partial(newest, number=number), compiler_options=QUICK)


def check(pool: NgramPool, twins: list[slow.Pool], number: int, vocab_size: int) -> None:
    """Every key has the same phrases in the same order."""
    for key in range(vocab_size):
        phrases, actual = map(np.asarray, look_up(number)(pool, jnp.full(BATCH, key)))
        for row, twin in enumerate(twins):
            wanted = twin.newest(key, number)
            assert actual[row].tolist() == [place < len(wanted) for place in range(number)]
            assert [tuple(phrase) for phrase in phrases[row, : len(wanted)].tolist()] == wanted
            assert not phrases[row, len(wanted) :].any()


@pytest.mark.parametrize("capacity", [1, 3, 7, 40])
@pytest.mark.parametrize("number", [1, 4])
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, chance=st.floats(0, 1))
def test_pool(capacity: int, number: int, seed: int, chance: float) -> None:
    """Insertions of five at a time, some of them not valid, with few phrases, so that many are met again."""
    rng = np.random.default_rng(seed)
    pool, twins = empty_pool(BATCH, capacity, 2), [slow.Pool(capacity) for _ in range(BATCH)]
    append = jax.jit(insert, compiler_options=QUICK)
    for _ in range(6):
        ngrams, valid = rng.integers(3, size=(BATCH, 5, 3)), rng.random((BATCH, 5)) < chance
        pool = append(pool, jnp.asarray(ngrams, jnp.int32), jnp.asarray(valid))
        for row, twin in enumerate(twins):
            twin.insert(ngrams[row][valid[row]])
        check(pool, twins, number, 3)


def test_none_looked_up() -> None:
    phrases, actual = newest(empty_pool(BATCH, 4, 2), jnp.zeros(BATCH, jnp.int32), 0)
    assert (phrases.shape, actual.shape) == ((BATCH, 0, 2), (BATCH, 0))


@pytest.mark.parametrize("size", [2, 3, 5])
@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_ngrams_of_the_text(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    text, length, count = rng.integers(9, size=(BATCH, 12)), rng.integers(8, size=BATCH), rng.integers(5, size=BATCH)
    seen = Observation(
        text=jnp.asarray(text),
        length=jnp.asarray(length),
        output=NOTHING,
        path=jnp.zeros((BATCH, 4), jnp.int32),
        count=jnp.asarray(count),
    )
    ngrams, valid = map(np.asarray, jax.jit(text_ngrams, static_argnums=1)(seen, size))
    for row in range(BATCH):
        wanted = slow.text_ngrams(text[row], length[row] + 1, length[row] + 1 + count[row], size)
        assert [tuple(ngram) for ngram in ngrams[row][valid[row]].tolist()] == wanted


@pytest.mark.parametrize(("number", "length"), [(0, 2), (1, 3), (3, 1), (4, 3), (6, 4)])
@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_branches(number: int, length: int, seed: int) -> None:
    """The nodes are the beginnings of the phrases, each once, after a chain of two."""
    rng = np.random.default_rng(seed)
    chain = rng.integers(2, size=(BATCH, 3))
    phrases = [rng.permutation([*np.ndindex(*[2] * length)])[:number] for _ in range(BATCH)]
    phrases = np.array([np.resize(row, (number, length)) for row in phrases], np.int32).reshape(BATCH, number, length)
    actual = np.arange(number) < rng.integers(0, min(number, 2**length) + 1, (BATCH, 1))
    values = jnp.asarray([[-1.0, -2.0]] * BATCH)
    start = chain_tree(jnp.asarray(chain[:, 0]), jnp.asarray(chain[:, 1:]), jnp.full(BATCH, 2), values)
    tree = with_branches(start, jnp.asarray(phrases), jnp.asarray(actual), base=2, depth=2)
    assert tree.tokens.shape == (BATCH, 3 + number * length)
    assert tree.max_depth == 2 + length
    for row in range(BATCH):
        tokens, parents, candidate = (np.asarray(x[row]) for x in (tree.tokens, tree.parents, tree.candidate))
        slow.check_tree(tokens, parents, candidate)
        hung = [j for j in np.flatnonzero(candidate) if j >= 3]
        wanted = [tuple(phrase) for phrase in phrases[row][actual[row]].tolist()]
        paths = slow.paths(tokens, parents, hung)
        assert len(set(paths)) == len(paths)
        assert set(paths) == slow.beginnings(wanted, tuple(chain[row, 1:].tolist()))
        assert (parents[3:][~candidate[3:]] == NO_PARENT).all()
        assert (np.asarray(tree.log_values[row])[hung] == -2).all()


READ_OR_IN_PLACE = {
    *("parameter", "get-tuple-element", "bitcast", "fusion", "scatter", "dynamic-update-slice"),
    *("broadcast", "compare"),  # of a look-up, inside its fusion
}


@pytest.mark.parametrize("name", ["lookahead", "ouroboros"])
def test_no_round_copies_a_pool_or_a_cache(name: str) -> None:
    """No operation of the compiled program writes an array of their size anew, and there is no memory for one."""
    slots, capacity = 1 << 16, 1 << 15
    _, target, params = tiny_transformer(num_layers=1)
    drafter, drafts = {
        "lookahead": (make_lookahead(4, 3, 2, pool_size=slots), ()),
        "ouroboros": (make_ouroboros(target, 2, phrases=2, phrase_length=3, pool_size=slots), params),
    }[name]
    sampling, text = make_sampling(2, temperature=1.0), jnp.zeros((2, capacity), jnp.int32)
    models, read = Models(target, drafter, params, drafts), functools.partial(prefill, chunk=8)
    state = jax.eval_shape(read, models, text, jnp.ones(2, jnp.int32), sampling)
    program = decode.lower(models, state, sampling, 9).compile(AS_SHIPPED)
    size = 2 * slots * 3  # of the phrases; keys or values of a layer take more
    assert 2 * capacity * 2 * 8 > size
    actual = re.findall(r"= \w+\[([\d,]+)\]\S* ([\w-]+)\(", program.as_text())
    written = {op for dims, op in actual if math.prod(map(int, dims.split(","))) >= size}
    assert "scatter" in written
    assert written <= READ_OR_IN_PLACE
    assert program.memory_analysis().temp_size_in_bytes < 4 * size
