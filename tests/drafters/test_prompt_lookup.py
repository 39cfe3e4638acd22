"""Prompt lookup against a slow search."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_jax.drafters import make_prompt_lookup
from eagle_jax.types import NO_PARENT

CAPACITY, NUM_DRAFTED, MAX_NGRAM = 16, 4, 3
PROPOSE = jax.jit(make_prompt_lookup(NUM_DRAFTED, MAX_NGRAM).propose)

texts = st.lists(st.integers(0, 2), min_size=1, max_size=CAPACITY - 1)


def search(text: list[int]) -> list[int]:
    """What followed the first occurrence of the longest end of the text that occurs before."""
    for size in range(min(MAX_NGRAM, len(text) - 1), 0, -1):
        for start in range(len(text) - size):
            if text[start : start + size] == text[-size:]:
                return text[start + size :][:NUM_DRAFTED]
    return []


def proposed(rows: list[list[int]]) -> list[list[int]]:
    """The drafted tokens of each row; what stands after a text is no part of it."""
    text = np.full((len(rows), CAPACITY), 1, np.int32)
    for row, tokens in enumerate(rows):
        text[row, : len(tokens)] = tokens
    length = jnp.array([len(tokens) - 1 for tokens in rows], jnp.int32)
    noise = jnp.zeros((len(rows), NUM_DRAFTED + 1, 3))
    tree, _ = PROPOSE((), (), (), jnp.asarray(text), length, noise)
    assert np.asarray(tree.tokens)[:, 0].tolist() == [tokens[-1] for tokens in rows]
    there = np.asarray(tree.parents)[:, 1:] != NO_PARENT
    return [row[known].tolist() for row, known in zip(np.asarray(tree.tokens)[:, 1:], there, strict=True)]


@settings(max_examples=200, deadline=None)
@given(st.tuples(texts, texts))
def test_as_searched(rows: tuple[list[int], list[int]]) -> None:
    assert proposed([*rows]) == [search(tokens) for tokens in rows]


def test_the_longest_run_counts_then_the_first() -> None:
    """2 0 1 before 0 1, and of both 2 0 1 the first."""
    assert proposed([[0, 1, 0, 2, 0, 1, 2, 2, 0, 1], [2, 0, 1, 1, 2, 0, 1, 2, 2, 0, 1]]) == [[2, 2, 0, 1], [1, 2, 0, 1]]
