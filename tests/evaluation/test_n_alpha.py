import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle_jax.evaluation.metrics import n_alpha, well_seen


@pytest.mark.parametrize(
    ("accepted", "alphas"),
    [
        ([2, 1, 1], [0.5, 0.5]),  # of 4 rounds 2 got one deep, of those 1 got two deep
        ([0, 0, 3], [1.0, 1.0]),
        ([3, 1, 0, 0], [0.25, 0.0]),  # nobody was two deep: nothing is known of 2-alpha
        ([5], []),  # plain decoding
        ([0, 0], []),  # no round
    ],
)
def test_by_hand(accepted: list[int], alphas: list[float]) -> None:
    assert n_alpha(accepted) == alphas


def test_what_few_rounds_have_seen_is_left_out() -> None:
    assert well_seen([380, 10, 6, 4]) == n_alpha([380, 10, 6, 4])[:2]  # 400 rounds, then 20, then 10
    assert well_seen([100, 0]) == [0.0]
    assert well_seen([10, 9]) == []


@given(st.integers(1, 6), st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_against_a_count_of_rounds(depth: int, rounds: list[int]) -> None:
    rounds = [min(depth, accepted) for accepted in rounds]
    wanted = []
    for n in range(depth):
        got_there = [accepted for accepted in rounds if accepted >= n]
        if got_there:
            wanted.append(sum(accepted > n for accepted in got_there) / len(got_there))
    assert n_alpha(np.bincount(rounds, minlength=depth + 1)) == pytest.approx(wanted)
