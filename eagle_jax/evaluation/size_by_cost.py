"""What a tree whose size is chosen every round would bring, scored offline for any costs.

Nodes in the order of their values are trees at every length, so one draft holds the trees of all sizes. Recorded
here is the draft at every position of a known text; it depends on the text alone. Then rounds of any policy can be
played on the host: at a position the tree is cut to n nodes, the text tells how many of their tokens it accepts, and
that is where the next round begins.

A policy by cost takes the size that maximises expected tokens less their price (CaDDTree, arXiv 2606.01813; BASTION,
arXiv 2605.29727):

    [1 + sum of the n - 1 best path probabilities] - rate * [draft + pass over n nodes]

`rate` is tokens per time of the policy itself, found by iteration. Path probabilities are acceptance rates by the
drafter's own value, measured on other texts (`calibrate`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from eagle_jax.decode import Models
from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.evaluation.teacher_forced import play_known
from eagle_jax.types import NO_PARENT, DraftTree, Params

BINS = np.array([0.005, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])
"""Bounds of the bins of confidence in a path; acceptance is measured in each, for depth 1 and deeper apart."""

ITERATIONS = 8
"""After which the rate of a policy has settled."""


@functools.cache
def drafting_everywhere(drafter: Drafter) -> Drafter:
    """The drafter with a memory of its trees by the position of their root, none of whose nodes is ever accepted.

    Its state is a pair: its own, and tokens, parents and values [B, S, N].
    """

    def init(batch: int, capacity: int, dtype: DTypeLike) -> DrafterState:
        empty = jnp.zeros((batch, capacity, drafter.nodes))
        return drafter.init(batch, capacity, dtype), (empty.astype(jnp.int32), empty.astype(jnp.int32), empty)

    def propose(
        params: Params, target_params: Params, state: DrafterState, text: jax.Array, length: jax.Array, noise: jax.Array
    ) -> tuple[DraftTree, DrafterState]:
        tree, own = drafter.propose(params, target_params, state[0], text, length, noise)
        parts, rows = (tree.tokens, jnp.where(tree.candidate, tree.parents, NO_PARENT), tree.log_values), len(length)
        memory = tuple(old.at[jnp.arange(rows), length].set(new) for old, new in zip(state[1], parts, strict=True))
        shut = jnp.arange(drafter.nodes)[None, :] == 0
        return dataclasses.replace(tree, candidate=tree.candidate & shut), (own, memory)

    def observe(params: Params, target_params: Params, state: DrafterState, observation: Observation) -> DrafterState:
        return drafter.observe(params, target_params, state[0], observation), state[1]

    return drafter._replace(init=init, propose=propose, observe=observe)


@dataclasses.dataclass(frozen=True)
class Drafts:
    """The trees at all positions of one answer; P positions, N nodes in the order of their values, the root first."""

    log_values: np.ndarray  # f32[P, N], -inf: no node
    depths: np.ndarray  # i32[P, N]
    accepted: np.ndarray  # bool[P, N], whether the text goes on along the path to the node

    def accepted_by_size(self, sizes: Sequence[int]) -> np.ndarray:
        """Tokens accepted of the trees cut to so many nodes, i32[P, len(sizes)]."""
        deepest = np.maximum.accumulate(np.where(self.accepted, self.depths, 0), axis=1)
        return deepest[:, np.array(sizes) - 1]


def drafts_along(
    models: Models, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], **options: Any
) -> list[Drafts]:
    """The drafts along each answer; arguments and errors as `teacher_forced.play_known`."""
    everywhere = dataclasses.replace(models, drafter=drafting_everywhere(models.drafter))
    state = play_known(everywhere, prompts, answers, **options)
    memory = [np.asarray(part) for part in state.drafter[1]]
    results = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start = len(prompt)
        stop = start + len(answer) - 1
        tokens, parents, log_values = (part[row, start:stop] for part in memory)
        results.append(_follow(tokens, parents, log_values, np.array([*prompt, *answer]), start))
    return results


def _follow(tokens: np.ndarray, parents: np.ndarray, log_values: np.ndarray, text: np.ndarray, start: int) -> Drafts:
    """Trees [P, N] whose roots stand at `start`, start + 1, ... of the text, sorted and compared with it."""
    count, nodes = tokens.shape
    rows, places = np.arange(count), start + np.arange(count)
    depths, accepted = np.zeros((count, nodes), np.int32), np.zeros((count, nodes), bool)
    accepted[:, 0] = True
    used = parents != NO_PARENT
    for node in range(1, nodes):  # a parent stands before its child
        parent = np.maximum(parents[:, node], 0)
        depths[:, node] = depths[rows, parent] + 1
        place = places + depths[:, node]
        goes_on = (place < len(text)) & (tokens[:, node] == text[np.minimum(place, len(text) - 1)])
        accepted[:, node] = used[:, node] & accepted[rows, parent] & goes_on
    used[:, 0] = True
    values = np.where(used, log_values, -np.inf)
    values[:, 0] = np.inf  # the root stays first
    # Where values tie, the shallower first: a parent is never ranked after its child.
    order = np.lexsort((depths, -values), axis=1)
    values[:, 0] = 0.0
    return Drafts(*(np.take_along_axis(x, order, axis=1) for x in (values, depths, accepted)))


class Costs(NamedTuple):
    """Time of a round, in any unit."""

    passes: tuple[float, ...]  # of the target, by size
    draft: float  # all else, whatever the size

    @property
    def rounds(self) -> np.ndarray:
        """By size."""
        return np.array(self.passes) + self.draft


class Played(NamedTuple):
    """What a policy did on some answers."""

    tokens: int
    rounds: np.ndarray  # i64[number of sizes]
    time: float

    @property
    def tau(self) -> float:
        """Tokens per round."""
        return self.tokens / max(1, int(self.rounds.sum()))

    @property
    def rate(self) -> float:
        """Tokens per time."""
        return self.tokens / self.time if self.time else 0.0


def play(drafts: Sequence[Drafts], chosen: Sequence[np.ndarray], sizes: Sequence[int], costs: Costs) -> Played:
    """Rounds with the size `chosen` i[P] at each position, an index into `sizes`."""
    tokens, rounds = 0, np.zeros(len(sizes), np.int64)
    for draft, choice in zip(drafts, chosen, strict=True):
        accepted, place = draft.accepted_by_size(sizes), 0
        while place < len(accepted):
            rounds[choice[place]] += 1
            place += 1 + accepted[place, choice[place]]
        tokens += len(accepted)
    return Played(tokens, rounds, float((rounds * costs.rounds).sum()))


def play_fixed(drafts: Sequence[Drafts], sizes: Sequence[int], costs: Costs) -> list[Played]:
    """Rounds with one size throughout, for each of the sizes."""
    return [
        play(drafts, [np.full(len(one.depths), index) for one in drafts], sizes, costs) for index in range(len(sizes))
    ]


def calibrate(drafts: Sequence[Drafts]) -> np.ndarray:
    """Share of nodes that were accepted, f64[2, number of bins]: of depth 1, and deeper, by `BINS` of confidence.

    Rates of no and few nodes lean on the bin's own confidence; none is below that of a bin of less confidence.
    """
    edges = np.array([0.0, *BINS, 1.0])
    prior = (edges[:-1] + edges[1:]) / 2
    rates = []
    for deep in (False, True):
        places = [((one.depths > 1) == deep) & (one.depths > 0) & (one.log_values > -np.inf) for one in drafts]
        sure = np.concatenate([np.exp(one.log_values[at]) for one, at in zip(drafts, places, strict=True)])
        right = np.concatenate([one.accepted[at] for one, at in zip(drafts, places, strict=True)])
        bins = np.digitize(sure, BINS)
        count, hits = (np.bincount(bins, weights, minlength=len(prior)) for weights in (None, right))
        rates.append(np.maximum.accumulate((hits + prior) / (count + 1)))
    return np.stack(rates)


def expected_tokens(draft: Drafts, sizes: Sequence[int], rates: np.ndarray | None) -> np.ndarray:
    """1 + the summed path probabilities of trees of so many nodes, f64[P, len(sizes)]; None: the drafter's own."""
    sure = np.exp(draft.log_values.astype(np.float64))
    if rates is not None:
        there = draft.log_values > -np.inf
        sure = there * rates[(draft.depths > 1).astype(int), np.digitize(sure, BINS)]
    sure[:, 0] = 1.0  # the token that the target adds
    return np.cumsum(sure, axis=1)[:, np.array(sizes) - 1]


def play_by_cost(drafts: Sequence[Drafts], gains: Sequence[np.ndarray], sizes: Sequence[int], costs: Costs) -> Played:
    """Rounds of the size that maximises gain less rate times cost.

    Args:
      drafts: along answers.
      gains: f64[P, len(sizes)] for each, such as `expected_tokens`; with the tokens that a round writes in fact, the
        result is what no policy of this form exceeds.
      sizes: of trees, the root included.
      costs: of rounds of these sizes.
    """
    best = max(play_fixed(drafts, sizes, costs), key=lambda one: one.rate)
    for _ in range(ITERATIONS):
        chosen = [(gain - best.rate * costs.rounds).argmax(1) for gain in gains]
        best = play(drafts, chosen, sizes, costs)
    return best
