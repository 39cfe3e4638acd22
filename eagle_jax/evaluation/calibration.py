"""Calibration of the drafter: its confidence against the acceptance rate, from real rounds.

EAGLE-2 builds its tree by the drafter's confidence because that is close to the probability of acceptance (arXiv
2406.16858). Two things can be compared:

    a token   its confidence given its parent        accepted? only where the parent was
    a path    the product of those, a node's value   accepted down to this node? for all nodes
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from eagle_jax.evaluation.rounds import Round
from eagle_jax.types import NO_PARENT, DraftTree

BINS = 10
"""Of equal width, over confidences in [0, 1]."""

LEAST_NODES = 20
"""A bin of fewer nodes says too little."""


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Confidence and acceptance of drafted tokens (or paths)."""

    confidence: np.ndarray  # f64[M], in [0, 1]
    accepted: np.ndarray  # bool[M]


@dataclasses.dataclass(frozen=True)
class Bins:
    """Acceptance rate by confidence; bins with few tokens are left out."""

    confidence: np.ndarray  # f64[K], mean in the bin
    accepted: np.ndarray  # f64[K], share that was accepted
    low: np.ndarray  # f64[K], Wilson's interval of 95 % around it
    high: np.ndarray  # f64[K]
    count: np.ndarray  # i64[BINS], tokens of every bin


def measure_calibration(rounds: Sequence[Round], *, paths: bool = False) -> Calibration:
    """From rounds of the rule `match`: of tokens whose parent was accepted or, with `paths`, of all paths."""
    sure: list[np.ndarray] = []
    right: list[np.ndarray] = []
    for one in rounds:
        tree, parents = one.tree, np.asarray(one.tree.parents)
        accepted = np.zeros(len(parents), bool)
        accepted[0] = True
        for node in range(1, len(parents)):  # a parent comes before its child
            parent = parents[node]
            if tree.candidate[node] and parent != NO_PARENT:
                accepted[node] = accepted[parent] and tree.tokens[node] == one.choice[parent]
        drafted = np.asarray(tree.candidate) & (parents != NO_PARENT)
        counted = drafted & (paths | accepted[np.maximum(parents, 0)])
        sure.append((np.exp(np.asarray(tree.log_values, np.float64)) if paths else confidence(tree))[counted])
        right.append(accepted[counted])
    return Calibration(
        np.concatenate(sure) if sure else np.zeros(0), np.concatenate(right) if right else np.zeros(0, bool)
    )


def in_bins(judged: Calibration) -> Bins:
    """Mean confidence and acceptance, bin by bin."""
    place = _bin_of(judged)
    count, sure, right = (
        np.bincount(place, weights, minlength=BINS) for weights in (None, judged.confidence, judged.accepted)
    )
    drawn = count >= LEAST_NODES
    tokens, share = count[drawn], right[drawn] / count[drawn]
    spread = 1.96**2 / tokens
    middle = (share + spread / 2) / (1 + spread)
    half = np.sqrt(spread * share * (1 - share) + spread**2 / 4) / (1 + spread)
    return Bins(sure[drawn] / tokens, share, middle - half, middle + half, count)


def _bin_of(judged: Calibration) -> np.ndarray:
    return np.minimum((judged.confidence * BINS).astype(int), BINS - 1)


def expected_calibration_error(judged: Calibration) -> float:
    """Mean distance between confidence and acceptance over the bins, weighted by tokens (arXiv 1706.04599)."""
    gap = np.bincount(_bin_of(judged), judged.confidence - judged.accepted, minlength=BINS)
    return float(np.abs(gap).sum() / max(1, len(judged.accepted)))


def log_confidence(tree: DraftTree) -> np.ndarray:
    """f32[N]: log of the drafter's confidence in each node given its parent; 0 at the root."""
    values, parents = np.asarray(tree.log_values), np.asarray(tree.parents)
    return np.where(parents == NO_PARENT, 0.0, values - values[np.maximum(parents, 0)])


def confidence(tree: DraftTree) -> np.ndarray:
    """f32[N]: the drafter's confidence in each node given its parent, in [0, 1]; 1 at the root."""
    return np.clip(np.exp(log_confidence(tree)), 0, 1)
