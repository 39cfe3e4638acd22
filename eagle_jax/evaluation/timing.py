"""Timing side by side: what is compared runs in alternation, so that a machine that slows down slows all of it."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes, the arrays it returns waited for."""
    started = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - started


def alternate(runs: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median of what each run measures, over `repeats` turns; one turn before them is not counted.

    Args:
      runs: by name, functions that do something and return its cost, in any unit.
      repeats: turns that count, at least 1.

    Raises:
      ValueError: `repeats` below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            cost = run()  # the first turn compiles and warms up
            if turn:
                found[name].append(cost)
    return {name: statistics.median(costs) for name, costs in found.items()}
