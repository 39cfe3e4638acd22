"""EAGLE-2's tree grown one node at a time, with and without its parts, for a drafter that looks at one token alone."""

from typing import NamedTuple

import numpy as np

from eagle_jax.types import NO_PARENT


class Node(NamedTuple):
    """A candidate."""

    token: int
    own: float  # log-confidence given the parent
    value: float  # of the path; without values its lowest confidence
    parent: int  # among the candidates, NO_PARENT below the root


class Grown(NamedTuple):
    """All candidates in the order in which they are found, and those that were picked, level by level."""

    found: list[Node]
    picked: list[int]


def grow(laws: np.ndarray, root: int, depth: int, top_k: int, use_value: bool) -> Grown:
    """Expand; `laws` [V, V] are log-probabilities behind each token."""

    def children(token: int, value: float, place: int) -> list[Node]:
        best = sorted(range(len(laws)), key=lambda child: (-laws[token, child], child))[:top_k]
        own = [float(laws[token, child]) for child in best]
        return [
            Node(child, sure, value + sure if use_value else min(value, sure), place)
            for child, sure in zip(best, own, strict=True)
        ]

    found = children(root, 0.0, NO_PARENT)
    fed = list(range(top_k))
    picked = list(fed)
    for _ in range(depth):
        start = len(found)
        found += [node for place in fed for node in children(found[place].token, found[place].value, place)]
        score = [node.value if use_value else node.own for node in found]
        fed = sorted(range(start, len(found)), key=lambda place: (-score[place], place))[:top_k]
        picked += fed
    return Grown(found, picked)


def choose(grown: Grown, nodes: int, reranks: bool) -> list[tuple[int, float, int]]:
    """Token, value and parent (in the tree, the root is 0) of the nodes that are kept, behind the root."""
    found = grown.found
    by_value = sorted(range(len(found)), key=lambda place: (-found[place].value, place))
    kept = sorted((by_value if reranks else grown.picked)[: nodes - 1])
    place = {NO_PARENT: 0, **{old: new for new, old in enumerate(kept, start=1)}}
    return [(found[old].token, found[old].value, place[found[old].parent]) for old in kept]
