"""The default tree: the one with the most expected tokens per second, or plain decoding.

The best size depends on the head, which decides tau, and on the machine, which decides the time of a round. tau by
tree ships with a head (`TauTable`); the costs of a pass and of a draft step are measured on the machine
(`RoundCosts`; `evaluation.round_costs`). Plain decoding, with tau 1, is among the candidates, so that drafting is never
expected to lose. Without one of the two, the size follows from batch and platform:

    rows           1           2 to 4      8          16          32         64         65 and more
    CPU            4/1/2       2/0/1       2/0/1      2/0/1       2/0/1      2/0/1      2/0/1
    accelerator    60/7/10     60/7/10     32/5/8     16/5/4      8/2/3      4/1/2      2/0/1

Gives only the three sizes that `make_eagle2` and `make_eagle3` take; builds no drafter.
"""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from eagle_jax.files import read_json


class TreeSize(NamedTuple):
    """Sizes of a dynamic tree, as the EAGLE repository names them."""

    nodes: int  # the root included
    depth: int  # D: D + 1 drafted levels
    top_k: int

    def __str__(self) -> str:
        return "/".join(map(str, self))


LADDER = tuple(TreeSize(*size) for size in ((60, 7, 10), (32, 5, 8), (16, 5, 4), (8, 2, 3), (4, 1, 2), (2, 0, 1)))
"""Trees that `ladder_tree` chooses from; the first as published."""

CPU_ROOM, ACCELERATOR_ROOM = (4, 4), (60, 256)
"""Upper limits on the tokens of a pass: for one row, and for all rows together.

Two cores, SmolLM2-135M, without the CPU kernel: two rows gain most from two nodes, four or more from none. By data
sheets, bfloat16 arithmetic takes as long as reading the weights at 170 to 560 tokens (TPUs), 300 (H100).
"""


def ladder_tree(batch: int = 1, platform: str | None = None) -> TreeSize:
    """The largest tree of `LADDER` within the limits for `batch` rows, at least the smallest.

    A pass reads the weights once, however many tokens it computes, so tokens cost little until arithmetic takes as long
    as reading; the rows of a batch share these tokens.

    Args:
      batch: rows that decode together; on a mesh those of one part of its axis `data`.
      platform: "cpu", or anything else for an accelerator; None asks jax for its own.

    Raises:
      ValueError: no row.
    """
    if batch < 1:
        raise ValueError(f"a batch has at least 1 row, got {batch}")
    alone, together = CPU_ROOM if (platform or jax.default_backend()) == "cpu" else ACCELERATOR_ROOM
    most = min(alone, together // batch)
    return next((size for size in LADDER if size.nodes <= most), LADDER[-1])


class TauTable(NamedTuple):
    """Tokens per round of one head, by tree and temperature, on prompts that neither training nor reports have seen."""

    tau: Mapping[TreeSize, Mapping[float, float]]

    def at(self, size: TreeSize, temperature: float) -> float:
        """tau of a tree at any temperature: linear between those measured, the nearest outside."""
        return between(self.tau[size], temperature)


TAU_FILE = "tau.json"
"""In the directory of a head: `{"tau": {"4/1/2": {"0": 1.64, "1": 1.49}, ...}, ...}` and how it was measured."""


def read_tau_table(directory: pathlib.Path) -> TauTable | None:
    """The table in a head's directory, None where there is none.

    Raises:
      ValueError: a file that is not such a table.
    """
    path = directory / TAU_FILE
    if not path.exists():
        return None
    try:
        given = read_json(path)["tau"]
        tau = {
            TreeSize(*map(int, size.split("/"))): {float(t): float(value) for t, value in by_temperature.items()}
            for size, by_temperature in given.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no table of tau by tree: {error!r}") from error
    bad = [size for size, values in tau.items() if not values or min(values.values()) < 1]
    if bad or not tau:
        raise ValueError(f"{path} is no table of tau by tree: {bad[0] if bad else 'nothing'} has none of at least 1")
    return TauTable(tau)


class RoundCosts(NamedTuple):
    """Milliseconds of the parts of a round, for rows of one batch."""

    passes: Mapping[int, float]  # of the target over so many nodes a row, their logits and choice included
    rest: float  # of a plain round besides its pass
    draft: float  # of a round that drafts one level, besides its pass: drafting, reading what was accepted, all else
    step: float  # one more level

    def round(self, size: TreeSize) -> float:
        """A round of drafting."""
        return between(self.passes, size.nodes) + self.draft + size.depth * self.step

    @property
    def plain(self) -> float:
        """A round of plain decoding."""
        return self.passes[1] + self.rest


def between(measured: Mapping[Any, float], place: float) -> float:
    """Linear interpolation between measured values, the nearest outside."""
    places = sorted(measured)
    return float(np.interp(place, places, [measured[one] for one in places]))


class TreeChoice(NamedTuple):
    """A tree, or none, and why."""

    size: TreeSize | None  # None: plain decoding
    reason: str  # one line


def best_tree(table: TauTable, costs: RoundCosts, temperatures: Sequence[float] = (0.0,)) -> TreeChoice:
    """The tree of the table with the most expected tokens per second; None where that is no more than plain decoding.

    With several temperatures their mean tau counts.
    """
    taus = {
        size: statistics.fmean(table.at(size, temperature) for temperature in temperatures)
        for size in table.tau
        if size.nodes <= max(costs.passes)
    }
    speedups = {size: tau * costs.plain / costs.round(size) for size, tau in taus.items()}
    best = max(speedups, key=lambda size: speedups[size])
    tau, cost = taus[best], costs.round(best)
    facts = f"tau {tau:.2f} expected, a round {cost:.1f} ms, a plain one {costs.plain:.1f} ms"
    if speedups[best] <= 1:
        return TreeChoice(None, f"plain decoding: of {len(speedups)} trees the best, {best}, would lose ({facts})")
    return TreeChoice(best, f"tree {best}: speed-up {speedups[best]:.2f} expected ({facts})")
