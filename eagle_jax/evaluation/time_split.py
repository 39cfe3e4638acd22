"""Where a round's time goes: drafting, the target's pass, reading what was accepted, and the rest.

Each part is compiled alone and runs several times in a loop on the device that carries the drafter's state, as rounds
do, after a prompt; the parts are timed in alternation with complete rounds. What is left of a round (noise,
verification, commit of the cache) is the difference.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from eagle_jax.decode import DecodeState, Models
from eagle_jax.drafters.base import DrafterState, Observation
from eagle_jax.generator import Generator
from eagle_jax.sampling import SamplingOptions, first_largest, make_sampling
from eagle_jax.tree import tree_pass
from eagle_jax.types import DraftTree, TargetOutput

Scored = tuple[TargetOutput, jax.Array]
"""The target's output for a tree, and its choice i32[1, N] after each node."""

PARTS = ("draft", "target", "observe", "rest")
"""Parts of a round; they sum to `round`."""

RUNS = 8
"""How often a part runs in one call."""


Arrays = TypeVar("Arrays")


def _loop(
    part: Callable[[jax.Array, DrafterState], tuple[object, DrafterState]], state: DecodeState, own: DrafterState
) -> tuple[jax.Array, DrafterState]:
    """Run a part `RUNS` times one after the other, from the drafter's state `own` on.

    Chains iterations through a zero that XLA cannot fold, so that none is hoisted: it is the sum of all results of the
    iteration before in rows that are done, and none is.
    """

    def again(_: jax.Array, carry: tuple[jax.Array, DrafterState]) -> tuple[jax.Array, DrafterState]:
        results, own = part(*carry)
        total = sum((leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(results)), jnp.float32(0))
        return jnp.where(state.done.any(), total, 0).astype(jnp.int32), own

    return lax.fori_loop(0, RUNS, again, (jnp.int32(0), own))


def _after(zero: jax.Array, arrays: Arrays) -> Arrays:
    """The same arrays, which depend on `zero`."""
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), arrays)


@jax.jit
def _draft(models: Models, state: DecodeState, noise: jax.Array) -> tuple[jax.Array, DrafterState]:
    def part(zero: jax.Array, own: DrafterState) -> tuple[DraftTree, DrafterState]:
        length, noises = _after(zero, (state.cache.length, noise))
        return models.drafter.propose(models.drafter_params, models.target_params, own, state.text, length, noises)

    return _loop(part, state, state.drafter)


@jax.jit
def _tree(models: Models, state: DecodeState, noise: jax.Array) -> DraftTree:
    weights = models.drafter_params, models.target_params
    return models.drafter.propose(*weights, state.drafter, state.text, state.cache.length, noise)[0]


def _score(models: Models, state: DecodeState, tree: DraftTree) -> Scored:
    output, _ = tree_pass(models.target, models.target_params, tree, state.cache)
    return output, first_largest(models.target.unembed(models.target_params, output.hidden))


_score_once = jax.jit(_score)


@jax.jit
def _target(models: Models, state: DecodeState, tree: DraftTree) -> tuple[jax.Array, DrafterState]:
    return _loop(lambda zero, own: (_score(models, state, _after(zero, tree)), own), state, ())


@jax.jit
def _observe(models: Models, state: DecodeState, tree: DraftTree, scored: Scored) -> tuple[jax.Array, DrafterState]:
    size = models.drafter.max_depth + 1
    path = jnp.broadcast_to(jnp.arange(size), (1, size))
    length = state.cache.length
    seen = Observation(state.text, length, scored[0], path, jnp.ones_like(length), tree, scored[1])

    def part(zero: jax.Array, own: DrafterState) -> tuple[list[jax.Array], DrafterState]:
        own = models.drafter.observe(models.drafter_params, models.target_params, own, _after(zero, seen))
        return [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(own)], own  # one number of each: caches are large

    return _loop(part, state, state.drafter)


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
    all_costs: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            cost = run()  # the first turn compiles and warms up
            if turn:
                all_costs[name].append(cost)
    return {name: statistics.median(costs) for name, costs in all_costs.items()}


def time_split(
    generator: Generator, prompt: Sequence[int], *, new_tokens: int, repeats: int, temperature: float = 0.0
) -> dict[str, float]:
    """Milliseconds of a round and of its parts, medians over `repeats`.

    Args:
      generator: target and drafter.
      prompt: token ids.
      new_tokens: tokens written after it; complete rounds are timed over all of them.
      repeats: how often each part is timed.
      temperature: of sampling.

    Returns:
      `round`, and the names of `PARTS`.
    """
    models = generator.models
    options: SamplingOptions = {"temperature": temperature, "max_new_tokens": new_tokens}
    state = generator.start([prompt], make_sampling(1, **options))
    noise = jnp.zeros((1, models.drafter.max_depth + 1, models.target.vocab_size))
    tree = _tree(models, state, noise)
    scored = _score_once(models, state, tree)

    def complete_round() -> float:
        written = generator.generate([prompt], **options)
        return 1e3 * written.decode_seconds / max(1, sum(written.rounds))

    def timed(run: Callable[..., object], *arguments: object) -> Callable[[], float]:
        return lambda: 1e3 / RUNS * seconds(lambda: run(models, state, *arguments))

    costs = alternate(
        {
            "round": complete_round,
            "draft": timed(_draft, noise),
            "target": timed(_target, tree),
            "observe": timed(_observe, tree, scored),
        },
        repeats,
    )
    return {**costs, "rest": costs["round"] - costs["draft"] - costs["target"] - costs["observe"]}
