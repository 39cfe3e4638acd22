"""A pool of n-grams as a dictionary of lists, the n-grams of a text, and phrases as sets of paths."""

from collections.abc import Iterable, Sequence

import numpy as np

from eagle_jax.types import NO_PARENT
from tests.reference.trees import line

Ngram = tuple[int, ...]


class Pool:
    """The n-grams inserted last, `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ngrams: list[Ngram] = []

    def insert(self, ngrams: Iterable[Sequence[int]]) -> None:
        """Add n-grams, the oldest first."""
        for ngram in ngrams:
            self.ngrams.append(tuple(map(int, ngram)))
            self.ngrams = self.ngrams[-self.capacity :]

    def newest(self, key: int, number: int) -> list[Ngram]:
        """Phrases after `key`, newest first, of which the dictionary keeps `number`."""
        phrases: dict[int, list[Ngram]] = {}
        for first, *rest in self.ngrams:
            known = phrases.setdefault(first, [])
            if tuple(rest) in known:
                known.remove(tuple(rest))
            known.append(tuple(rest))
            if len(known) > number:
                known.pop(0)
        return phrases.get(key, [])[::-1]


def text_ngrams(text: Sequence[int], start: int, stop: int, size: int) -> list[Ngram]:
    """N-grams that end at places start to stop - 1 of a text."""
    ends = [end for end in range(start, stop) if end + 1 >= size]
    return [tuple(map(int, text[end + 1 - size : end + 1])) for end in ends]


def beginnings(phrases: Iterable[Ngram], base: Ngram = ()) -> set[Ngram]:
    """Every phrase cut off anywhere, after `base`: the nodes of their trie."""
    return {(*base, *phrase[:end]) for phrase in phrases for end in range(1, len(phrase) + 1)}


def paths(tokens: np.ndarray, parents: np.ndarray, nodes: Iterable[int]) -> list[Ngram]:
    """Tokens on the way from the root, itself left out, to each of the nodes of one tree, [N] and [N]."""
    above = parents.tolist()
    return [tuple(int(tokens[j]) for j in line(above, node)[1:]) for node in nodes]


def check_tree(tokens: np.ndarray, parents: np.ndarray, candidate: np.ndarray) -> None:
    """What `DraftTree` asks of one row: parents before children, candidate siblings that differ."""
    assert parents[0] == NO_PARENT
    assert (parents < np.arange(len(parents))).all()
    children = [(parents[j], tokens[j]) for j in np.flatnonzero(candidate) if j > 0]
    assert len(set(children)) == len(children)
    assert all(parents[j] != NO_PARENT for j in np.flatnonzero(candidate) if j > 0)
