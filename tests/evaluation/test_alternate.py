import time
from collections.abc import Callable

import pytest

from eagle_jax.evaluation.time_split import alternate, seconds


def test_runs_alternate_and_the_first_turn_does_not_count() -> None:
    calls: list[str] = []
    costs = {"a": iter([100.0, 1.0, 9.0, 2.0]), "b": iter([100.0, 5.0, 4.0, 6.0])}

    def run(name: str) -> Callable[[], float]:
        def once() -> float:
            calls.append(name)
            return next(costs[name])

        return once

    assert alternate({"a": run("a"), "b": run("b")}, repeats=3) == {"a": 2.0, "b": 5.0}
    assert calls == ["a", "b"] * 4


def test_needs_a_turn() -> None:
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        alternate({}, 0)


def test_seconds() -> None:
    assert 0.02 <= seconds(lambda: time.sleep(0.02)) < 2
