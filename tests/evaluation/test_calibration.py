"""Confidence held against acceptance, counted by hand."""

import dataclasses

import numpy as np
import pytest

from eagle_jax.evaluation.calibration import (
    Calibration,
    confidence,
    expected_calibration_error,
    in_bins,
    measure_calibration,
)
from eagle_jax.types import NO_PARENT, DraftTree
from tests.evaluation.played_rounds import FIRST, ROUNDS


def test_confidence_is_of_a_node_given_its_parent() -> None:
    parents = np.array([NO_PARENT, 0, 1, NO_PARENT])
    logs = np.log([1.0, 0.5, 0.4, 0.3])
    tree = DraftTree(tokens=np.zeros(4), parents=parents, candidate=np.arange(4) < 3, log_values=logs)
    np.testing.assert_allclose(confidence(tree), [1.0, 0.5, 0.8, 1.0], rtol=1e-6)


def test_tokens_are_judged_where_their_parent_was_accepted() -> None:
    judged = measure_calibration(ROUNDS)
    # Round 1: upon, nl, a, x ("there" hangs below a refused node); round 2: there, was.
    np.testing.assert_allclose(judged.confidence, [0.55, 0.25, 0.45 / 0.55, 0.11 / 0.45, 0.55, 0.25], rtol=1e-6)
    assert judged.accepted.tolist() == [True, False, True, False, False, False]


def test_paths_are_judged_everywhere() -> None:
    judged = measure_calibration(ROUNDS, paths=True)
    np.testing.assert_allclose(judged.confidence, [0.55, 0.25, 0.45, 0.15, 0.11, 0.55, 0.25], rtol=1e-6)
    assert judged.accepted.tolist() == [True, False, True, False, False, False, False]


def test_a_cut_answer_does_not_count_as_refusal() -> None:
    cut = dataclasses.replace(FIRST, written=[1])
    assert measure_calibration([cut]).accepted.tolist() == [True, False, True, False]


def test_bins() -> None:
    sure = np.concatenate([np.full(40, 0.23), np.full(60, 0.29), np.full(19, 0.5), np.full(20, 1.0)])
    right = np.concatenate([np.arange(40) < 10, np.arange(60) < 20, np.ones(19, bool), np.ones(20, bool)])
    actual = in_bins(Calibration(sure, right))
    assert actual.count.tolist() == [0, 0, 100, 0, 0, 19, 0, 0, 0, 20]
    np.testing.assert_allclose(actual.confidence, [0.266, 1.0])  # 19 are too few to be drawn
    np.testing.assert_allclose(actual.accepted, [0.3, 1.0])
    # Wilson's intervals of 30 of 100 and 20 of 20 as statistical tables have them.
    np.testing.assert_allclose(actual.low, [0.2189, 0.8389], atol=1e-4)
    np.testing.assert_allclose(actual.high, [0.3958, 1.0], atol=1e-4)
    wanted = (100 * abs(0.266 - 0.3) + 19 * 0.5) / 139
    assert expected_calibration_error(Calibration(sure, right)) == pytest.approx(wanted)


def test_a_drafter_that_knows_itself_lies_on_the_diagonal() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(size=50_000)
    judged = Calibration(sure, rng.uniform(size=50_000) < sure)
    actual = in_bins(judged)
    np.testing.assert_allclose(actual.accepted, actual.confidence, atol=0.03)
    assert expected_calibration_error(judged) < 0.02


def test_nothing_to_judge() -> None:
    assert len(measure_calibration([]).accepted) == 0
    assert expected_calibration_error(measure_calibration([])) == 0
