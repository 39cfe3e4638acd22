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
    """All candidates in the order of expansion, and those that were picked, level by level."""

    candidates: list[Node]
    picked: list[int]


def grow(log_probs: np.ndarray, root: int, depth: int, top_k: int, use_value: bool) -> Grown:
    """Expand; `log_probs` [V, V] are those of the token after each token."""

    def children(token: int, value: float, place: int) -> list[Node]:
        best = sorted(range(len(log_probs)), key=lambda child: (-log_probs[token, child], child))[:top_k]
        own = [float(log_probs[token, child]) for child in best]
        return [
            Node(child, sure, value + sure if use_value else min(value, sure), place)
            for child, sure in zip(best, own, strict=True)
        ]

    candidates = children(root, 0.0, NO_PARENT)
    fed = list(range(top_k))
    picked = list(fed)
    for _ in range(depth):
        start = len(candidates)
        for place in fed:
            candidates += children(candidates[place].token, candidates[place].value, place)
        score = [node.value if use_value else node.own for node in candidates]
        fed = sorted(range(start, len(candidates)), key=lambda place: (-score[place], place))[:top_k]
        picked += fed
    return Grown(candidates, picked)


def grow_drawn(logits: np.ndarray, noise: np.ndarray, root: int, depth: int, top_k: int) -> Grown:
    """With a best and a drawn child a node; `logits` [V, V], `noise` [number of nodes that draw, V]."""
    noises = iter(noise)

    def children(token: int, value: float, place: int) -> list[Node]:
        q = np.exp(logits[token] - np.logaddexp.reduce(logits[token]))
        best = int(q.argmax())
        scores = logits[token] + next(noises)
        scores[best] = -np.inf
        own = [float(np.log(q[best])), float(np.log(min(q[best], 1 - q[best])))]
        tokens = best, int(scores.argmax())
        return [Node(child, sure, value + sure, place) for child, sure in zip(tokens, own, strict=True)]

    candidates = children(root, 0.0, NO_PARENT)
    fed = [0, 1]
    picked = list(fed)
    for _ in range(depth):
        start = len(candidates)
        for place in fed:
            candidates += children(candidates[place].token, candidates[place].value, place)
        fed = sorted(range(start, len(candidates)), key=lambda place: (-candidates[place].value, place))[:top_k]
        picked += fed
    return Grown(candidates, picked)


def choose(grown: Grown, nodes: int, reranks: bool) -> list[tuple[int, float, int]]:
    """Token, value and parent (in the tree, the root is 0) of the selected nodes, after the root."""
    candidates = grown.candidates
    by_value = sorted(range(len(candidates)), key=lambda place: (-candidates[place].value, place))
    selected = sorted((by_value if reranks else grown.picked)[: nodes - 1])
    place = {NO_PARENT: 0, **{old: new for new, old in enumerate(selected, start=1)}}
    return [(candidates[old].token, candidates[old].value, place[candidates[old].parent]) for old in selected]
