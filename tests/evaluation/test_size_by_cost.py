"""Trees cut by value: the rounds of drafters with fewer nodes, and policies against slow twins."""

import functools
from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import linen as nn

from eagle_jax.decode import Models
from eagle_jax.drafters import Drafter, make_eagle2
from eagle_jax.evaluation import size_by_cost
from eagle_jax.evaluation.size_by_cost import Costs, Drafts, drafts_along, expected_tokens, play, play_by_cost
from eagle_jax.evaluation.teacher_forced import accept_known
from eagle_jax.generator import Generator
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.testing import tiny_transformer

CONFIG, TARGET, PARAMS = tiny_transformer(vocab_size=24)
PROMPTS = [[5, 1, 5, 1], [*range(3, 20)], [7] * 9]
SAMPLING = {"temperature": 1.0, "max_new_tokens": [30, 12, 2], "seed": 3}
SIZES = (1, 2, 4, 8, 12)
FREE = Costs(passes=(1.0,) * len(SIZES), draft=0.0)


@functools.cache
def eagle2(nodes: int) -> tuple[Drafter, HeadParams]:
    """An untrained head's tree of 3 levels."""
    head = make_head(HeadConfig(kind="eagle", layer=CONFIG, feature_width=CONFIG.width), TARGET)
    return make_eagle2(head, nodes, 2, 4), HeadParams(weights=nn.unbox(head.init(jax.random.key(2))))


def models(nodes: int) -> Models:
    drafter, params = eagle2(nodes)
    return Models(TARGET, drafter, PARAMS, params)


@functools.cache
def answers() -> list[list[int]]:
    return Generator(TARGET, PARAMS, *eagle2(12)).generate(PROMPTS, **SAMPLING).tokens


@functools.cache
def drafts() -> list[Drafts]:
    return drafts_along(models(12), PROMPTS, answers(), **SAMPLING)


@pytest.mark.parametrize("size", SIZES[1:])
def test_a_tree_that_is_cut_is_that_of_fewer_nodes(size: int) -> None:
    """Round for round: EAGLE-2's tree of n nodes has the n - 1 best of the same candidates."""
    wanted = accept_known(models(size), PROMPTS, answers(), **SAMPLING)
    for row, one in enumerate(drafts()):
        chosen = [np.full(len(one.depths), SIZES.index(size))]
        assert play([one], chosen, SIZES, FREE).rounds.sum() == wanted.rounds[row]
    assert sum(one.accepted_by_size((size,)).sum() for one in drafts()) > 0


def test_without_drafted_nodes_a_round_writes_a_token() -> None:
    for one, answer in zip(drafts(), answers(), strict=True):
        assert (one.accepted_by_size((1,)) == 0).all()
        assert play([one], [np.zeros(len(one.depths), int)], SIZES, FREE).tokens == len(answer) - 1


def random_drafts(seed: int, positions: int = 40, nodes: int = 8) -> Drafts:
    """Chains and side branches whose values mean what they say."""
    rng = np.random.default_rng(seed)
    depths, values = np.zeros((positions, nodes), np.int32), np.zeros((positions, nodes), np.float32)
    accepted = np.zeros((positions, nodes), bool)
    accepted[:, 0] = True
    for p in range(positions):
        own, value, alive = rng.uniform(0.1, 0.95), 0.0, True
        for node in range(1, nodes):
            value += np.log(own)
            alive = alive and rng.random() < own
            depths[p, node], values[p, node], accepted[p, node] = node, value, alive
    return Drafts(values, depths, accepted)


def slow_play(draft: Drafts, choose: Callable[[int], int], costs: Costs, sizes: tuple[int, ...]) -> tuple[int, float]:
    """Tokens and time of rounds, one by one."""
    place, tokens, time = 0, 0, 0.0
    while place < len(draft.depths):
        index = choose(place)
        best = max(int(d) for d, ok in list(zip(draft.depths[place], draft.accepted[place]))[: sizes[index]] if ok)  # noqa: B905
        step = min(best + 1, len(draft.depths) - place)
        place, tokens, time = place + step, tokens + step, time + costs.passes[index] + costs.draft
    return tokens, time


@pytest.mark.parametrize("seed", range(5))
def test_the_policy_by_cost_against_a_slow_twin(seed: int) -> None:
    """Sizes that maximise tokens less rate times cost, at the policy's own rate."""
    sizes, costs = (1, 2, 4, 8), Costs((1.0, 1.1, 1.4, 2.2), 0.3)
    draft = random_drafts(seed, 400)
    rate = max(one.rate for one in size_by_cost.play_fixed([draft], sizes, costs))
    for _ in range(size_by_cost.ITERATIONS):

        def choose(place: int, rate: float = rate) -> int:
            scores = []
            for size, cost in zip(sizes, costs.passes, strict=True):
                gain = 1 + sum(float(np.exp(v)) for v in draft.log_values[place, 1:size])
                scores.append(gain - rate * (cost + costs.draft))
            return int(np.argmax(scores))

        tokens, time = slow_play(draft, choose, costs, sizes)
        rate = tokens / time
    actual = play_by_cost([draft], [expected_tokens(draft, sizes, None)], sizes, costs)
    assert actual.tokens == tokens
    assert actual.time == pytest.approx(time)
    assert actual.rate > max(one.rate for one in size_by_cost.play_fixed([draft], sizes, costs))


def test_calibration_finds_the_rates() -> None:
    """Of drafts whose values are the rates, and of the same drafts when values are their squares."""
    many = [random_drafts(seed, 2000) for seed in range(3)]
    squared = [Drafts(2 * one.log_values, one.depths, one.accepted) for one in many]
    for given in (many, squared):
        rates = size_by_cost.calibrate(given)
        assert (np.diff(rates, axis=1) >= 0).all()
        expected = np.mean([expected_tokens(one, (8,), rates).mean() for one in given])
        written = np.mean([1 + one.accepted[:, 1:].sum(1).mean() for one in given])
        assert expected == pytest.approx(written, rel=0.03)
    wrong = np.mean([expected_tokens(one, (8,), None).mean() for one in squared])
    assert abs(wrong - written) > 0.2
