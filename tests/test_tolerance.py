"""The bound on rounding holds for sums in any order, and not where a term is left out."""

import numpy as np
import pytest

from tests.tolerance import assert_close


@pytest.mark.parametrize("terms", [3, 100, 10_000])
@pytest.mark.parametrize("shift", [0.0, 1.0], ids=["cancels", "grows"])
def test_sums_in_any_order(terms: int, shift: float) -> None:
    rng = np.random.default_rng(terms)
    addends = (rng.standard_normal((terms, 200)) + shift).astype(np.float32)
    exact = addends.astype(np.float64).sum(0)
    for order in (np.arange(terms), np.arange(terms)[::-1], rng.permutation(terms)):
        on_the_way = np.cumsum(addends[order], axis=0)
        assert_close(on_the_way[-1], exact, terms, on_the_way)
    addends[terms // 2] = 0
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(addends.sum(0), exact, terms, on_the_way)


def test_whole_numbers_are_equal() -> None:
    assert_close({"ids": np.arange(3)}, {"ids": np.arange(3)}, 10**12)
    with pytest.raises(AssertionError, match="not equal"):
        assert_close({"ids": np.arange(3)}, {"ids": np.array([0, 1, 3])}, 10**12)
