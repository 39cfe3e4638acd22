"""Draft trees one node at a time, and random ones to try."""

from typing import NamedTuple

import numpy as np

from eagle_jax.types import NO_NODE, NO_PARENT


class Tree(NamedTuple):
    """One row of a `DraftTree`, and what the target chooses after each node."""

    tokens: list[int]
    parents: list[int]
    candidate: list[bool]
    choice: list[int]


def depth(parents: list[int], node: int) -> int:
    """Edges up to the top."""
    return 0 if parents[node] == NO_PARENT else 1 + depth(parents, parents[node])


def line(parents: list[int], node: int) -> list[int]:
    """The path from the top down to `node`."""
    return [node] if parents[node] == NO_PARENT else [*line(parents, parents[node]), node]


def ancestors(parents: list[int]) -> np.ndarray:
    """bool[N, N]: row i sees itself and everything above it."""
    return np.array([[j in line(parents, i) for j in range(len(parents))] for i in range(len(parents))])


def padded(path: list[int], width: int) -> list[int]:
    """`path` with NO_NODE up to `width` entries."""
    return path + [NO_NODE] * (width - len(path))


def random_tree(
    rng: np.random.Generator,
    num_nodes: int,
    max_depth: int,
    vocab_size: int,
    *,
    unused: float = 0.2,
    barred: float = 0.2,
    follow: float = 0.8,
    deep: float = 0.5,
) -> Tree:
    """A tree that keeps the promises of `DraftTree` and no others.

    Args:
      rng: source of all draws.
      num_nodes: slots N.
      max_depth: no node is deeper.
      vocab_size: V; a node has at most V candidate children.
      unused: chance of an unused slot, anywhere after the root.
      barred: chance of a used node that is no candidate; such a node may share its token with a sibling and have
        candidates below it.
      follow: chance that the target's choice after a node is one of its children.
      deep: chance that a node hangs below the newest one that may still have children.
    """
    tokens, parents, candidate = [int(rng.integers(vocab_size))], [NO_PARENT], [True]
    taken: list[set[int]] = [set()]  # tokens of each node's candidate children
    for node in range(1, num_nodes):
        open_nodes = [
            i
            for i in range(node)
            if (i == 0 or parents[i] != NO_PARENT) and depth(parents, i) < max_depth and len(taken[i]) < vocab_size
        ]
        taken.append(set())
        if not open_nodes or rng.random() < unused:
            tokens.append(int(rng.integers(vocab_size)))
            parents.append(NO_PARENT)
            candidate.append(False)
            continue
        parent = open_nodes[-1] if rng.random() < deep else int(rng.choice(open_nodes))
        ok = bool(rng.random() >= barred)
        free = [t for t in range(vocab_size) if not ok or t not in taken[parent]]
        tokens.append(int(rng.choice(free)))
        parents.append(parent)
        candidate.append(ok)
        if ok:
            taken[parent].add(tokens[-1])
    choice = [int(rng.integers(vocab_size)) for _ in range(num_nodes)]
    for node in range(num_nodes):
        below = [j for j in range(num_nodes) if parents[j] == node]
        if below and rng.random() < follow:
            choice[node] = tokens[int(rng.choice(below))]
    return Tree(tokens, parents, candidate, choice)
