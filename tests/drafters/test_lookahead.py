"""Lookahead decoding against lists of rows: the same window, n-grams and guesses, round by round."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.drafters.base import Drafter, Observation
from eagle_jax.drafters.lookahead import LookaheadState, make_lookahead
from eagle_jax.generator import Generator
from eagle_jax.testing import bigram_target
from eagle_jax.tree import depths
from eagle_jax.types import DraftTree, Params, Target, TargetOutput
from tests.golden import QUICK
from tests.reference import ngram_pool as slow
from tests.reference.lookahead import Lookahead
from tests.reference.trees import line

BATCH, CAPACITY, CHUNK, VOCAB = 3, 64, 8, 4
SIZES = [(3, 1, 1), (3, 4, 2), (4, 2, 3), (5, 7, 7)]  # level, window, guesses
NOTHING = TargetOutput(hidden=jnp.zeros(()), taps=jnp.zeros(()), keys=(), values=())


@functools.cache
def functions(drafter: Drafter) -> tuple[Any, Any]:
    """`propose` and `observe`, compiled."""

    def propose(state: LookaheadState, text: jax.Array, length: jax.Array) -> tuple[DraftTree, LookaheadState]:
        return drafter.propose((), (), state, text, length, jnp.zeros(()))

    def observe(state: LookaheadState, seen: Observation) -> LookaheadState:
        return drafter.observe((), (), state, seen)

    return jax.jit(propose, compiler_options=QUICK), jax.jit(observe, compiler_options=QUICK)


def read_prompt(drafter: Drafter, text: np.ndarray, prompt: np.ndarray, chunk: int = CHUNK) -> LookaheadState:
    """State after the prompts of `text` [B, S], whose lengths are `prompt` [B]; the token after them is there too."""
    _, observe = functions(drafter)
    state, length = drafter.init(BATCH, CAPACITY, "float32"), np.zeros(BATCH, int)
    while (length < prompt).any():
        count = np.minimum(prompt - length, chunk)
        path = jnp.broadcast_to(jnp.arange(chunk), (BATCH, chunk))
        state = observe(state, observation(text, length, count, path))
        length = length + count
    return state


def observation(text: np.ndarray, length: np.ndarray, count: np.ndarray, path: jax.Array, **round_: Any) -> Observation:
    counts = jnp.asarray(count), jnp.asarray(length)
    return Observation(text=jnp.asarray(text), length=counts[1], output=NOTHING, path=path, count=counts[0], **round_)


def rows_of(state: LookaheadState, row: int) -> list[list[int]]:
    """The window as the twin has it."""
    first, *others = np.asarray(state.window[row]).tolist()
    return [first[1:], *others]


@pytest.mark.parametrize("pool_from_prompt", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("seed", range(2))
def test_rounds(sizes: tuple[int, int, int], pool_from_prompt: bool, seed: int) -> None:
    """Rounds of any number of tokens, in texts of few different ones, with choices drawn at random.

    Row 1 ends half-way and must keep its state to the bit.
    """
    level, window, _ = sizes
    drafter = make_lookahead(*sizes, pool_from_prompt=pool_from_prompt, pool_size=30)
    propose, observe = functions(drafter)
    rng = np.random.default_rng(seed)
    text, length = rng.integers(VOCAB, size=(BATCH, CAPACITY)), np.array([1, 5, 19])
    state = read_prompt(drafter, text, length)
    twins = [Lookahead(rows_of(state, row), slow.Pool(30)) for row in range(BATCH)]

    def take_in(row: int, start: int, stop: int) -> None:
        if pool_from_prompt:
            twins[row].pool.insert(slow.text_ngrams(text[row], start, stop, level))

    for row in range(BATCH):
        take_in(row, 0, length[row] + 1)
    for index in range(9):
        tree, state = propose(state, jnp.asarray(text), jnp.asarray(length))
        choice = rng.integers(VOCAB, size=(BATCH, drafter.nodes))
        count = rng.integers(1, 4, BATCH)
        count[1] = count[1] if index < 4 else 0
        for row, twin in enumerate(twins):
            check_tree(tree, row, twin, text[row, length[row]], sizes)
        path = jnp.zeros((BATCH, drafter.max_depth + 1), jnp.int32)
        before = jax.tree.map(lambda x: x[1], state)
        state = observe(state, observation(text, length, count, path, tree=tree, choice=jnp.asarray(choice)))
        for row in np.flatnonzero(count):
            last = (level - 2) * window
            twins[row].round(text[row, length[row]], choice[row, last : last + window].tolist())
            take_in(row, length[row] + 1, length[row] + count[row] + 1)
            assert rows_of(state, row) == twins[row].rows
        if count[1] == 0:
            jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(lambda x: x[1], state))
        length = length + count


def check_tree(tree: DraftTree, row: int, twin: Lookahead, root: int, sizes: tuple[int, int, int]) -> None:
    """Window and guesses are where the twin has them."""
    level, window, guesses = sizes
    tokens, parents, candidate = (np.asarray(x[row]) for x in (tree.tokens, tree.parents, tree.candidate))
    slow.check_tree(tokens, parents, candidate)
    assert tokens[0] == root
    seen = twin.seen_by(root)
    assert slow.paths(tokens, parents, range(1, window)) == seen[0]
    for depth in range(1, level - 1):
        nodes = range(depth * window, (depth + 1) * window)
        assert slow.paths(tokens, parents, nodes) == seen[depth]
    inner = (level - 1) * window
    assert candidate[:inner].tolist() == [True] + [False] * (inner - 1)
    guessed = slow.paths(tokens, parents, np.flatnonzero(candidate)[1:])
    assert len(set(guessed)) == len(guessed)
    assert set(guessed) == slow.beginnings(twin.pool.newest(root, guesses))


@pytest.mark.parametrize("sizes", SIZES)
def test_depths(sizes: tuple[int, int, int]) -> None:
    """Position offsets of the window, and a bound that the deepest node reaches."""
    level, window, guesses = sizes
    drafter = make_lookahead(*sizes, pool_size=8)
    state = drafter.init(1, CAPACITY, "float32")
    phrases = jnp.zeros((1, 8, level - 1), jnp.int32)
    state = state.replace(pool=state.pool.replace(keys=jnp.zeros((1, 8), jnp.int32), phrases=phrases))
    tree, _ = functions(drafter)[0](state, jnp.zeros((1, CAPACITY), jnp.int32), jnp.zeros(1, jnp.int32))
    assert tree.tokens.shape == (1, drafter.nodes) == (1, (level - 1) * (window + guesses))
    actual = depths(tree.parents, tree.max_depth)[0].tolist()
    assert actual == [len(line(tree.parents[0].tolist(), node)) - 1 for node in range(drafter.nodes)]
    inner = (level - 1) * window
    assert actual[:inner] == [row + column for row in range(level - 1) for column in range(window)]
    assert tree.max_depth == drafter.max_depth == max(actual)


def test_first_window_is_drawn_from_the_prompt_alone() -> None:
    """Not from what stands after it, nor does it depend on the chunks that it was read in."""
    drafter = make_lookahead(5, 7, 7)
    text = np.tile(np.arange(CAPACITY), (BATCH, 1))
    prompt = np.array([1, 9, 40])
    windows = [np.asarray(read_prompt(drafter, text, prompt, chunk).window) for chunk in (8, 16)]
    np.testing.assert_array_equal(*windows)
    for row, length in enumerate(prompt):
        assert windows[0][row].max() < length
    assert len(set(windows[0][2].ravel().tolist())) > 10


@functools.cache
def circle(vocab_size: int = 24) -> tuple[Target, Params]:
    """A target that counts in a circle, strongly."""
    target, params = bigram_target(vocab_size)
    return target, {"table": params["table"] + 30 * jnp.eye(vocab_size)[(jnp.arange(vocab_size) + 1) % vocab_size]}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("pool_from_prompt", "least"), [(True, 2.5), (False, 2.0)])
def test_repetitive_text(pool_from_prompt: bool, least: float, temperature: float) -> None:
    """N-grams of the text are accepted, and those that the window produced before the text had them."""
    target, params = circle()
    drafter = make_lookahead(5, 4, 4, pool_from_prompt=pool_from_prompt)
    generator = Generator(target, params, drafter, capacity=128, prefill_chunk=16)
    prompt = [3, 9, 15, 21]
    actual = generator.generate([prompt], temperature=temperature, max_new_tokens=61)
    assert actual.tokens[0] == [(22 + step) % 24 for step in range(61)]
    assert actual.tau > least


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((2, 7, 7), "got 2, 7 and 7"), ((5, 0, 7), "got 5, 0 and 7"), ((5, 7, 0), "got 5, 7 and 0")],
)
def test_bad_sizes(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_lookahead(*sizes)


def test_bad_pool() -> None:
    with pytest.raises(ValueError, match="at least 1 n-gram, got 0"):
        make_lookahead(pool_size=0)
