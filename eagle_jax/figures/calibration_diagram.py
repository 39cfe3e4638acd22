"""Calibration of the drafter: its confidence against the acceptance rate, from real rounds.

EAGLE-2 builds its tree by the drafter's confidence because that is close to the probability of acceptance (arXiv
2406.16858). Two things can be compared:

    a token   its confidence given its parent        accepted? only where the parent was
    a path    the product of those, a node's value   accepted down to this node? for all nodes
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from eagle_jax.evaluation.rounds import Round
from eagle_jax.figures.layout import confidence
from eagle_jax.figures.theme import LIGHT, PANEL, Theme, drawn_in, legend_above, reference_look, series_look
from eagle_jax.types import NO_PARENT

BINS = 10
"""Of equal width, over confidences in [0, 1]."""

LEAST_NODES = 20
"""A bin of fewer nodes is not drawn."""


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


def reliability_diagram(rounds: Mapping[str, Sequence[Round]], theme: Theme = LIGHT) -> Figure:
    """Acceptance against confidence, of tokens and of paths, with intervals of 95 %; below, the nodes of each bin.

    Args:
      rounds: series by name, such as temperatures.
      theme: colours.
    """
    titles = {False: "a token, its parent accepted", True: "a path from the root"}
    with drawn_in(theme, 2 * PANEL + 0.6, 6.2) as figure:
        panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
        for (paths, title), (upper, lower) in zip(titles.items(), panels.T, strict=True):
            upper.plot([0, 1], [0, 1], **reference_look(theme))
            for number, (name, some) in enumerate(rounds.items()):
                judged, look = measure_calibration(some, paths=paths), series_look(theme, number)
                bins = in_bins(judged)
                upper.plot(bins.confidence, bins.accepted, label=name, **look)
                upper.vlines(bins.confidence, bins.low, bins.high, color=look["color"], linewidth=1.4)
                centres = (np.arange(BINS) + (number + 0.5) / len(rounds)) / BINS
                lower.bar(centres, bins.count, 0.9 / BINS / len(rounds), color=look["color"])
            upper.set_title(title, loc="left")
            upper.set_xlim(0, 1)
            upper.set_ylim(0, 1)
            lower.set_xlabel("confidence of the drafter" if not paths else "value: the product along the path")
            lower.set_yscale("log")
            lower.grid(visible=False, axis="x")
        panels[0, 0].set_ylabel("share accepted")
        panels[1, 0].set_ylabel("nodes")
        legend_above(figure)
    return figure
