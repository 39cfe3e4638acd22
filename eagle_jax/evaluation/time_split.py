"""Where a round's time goes: drafting, the target's pass, reading what was accepted, and the rest.

Each part is compiled alone and runs several times in a loop on the device that carries the drafter's state, as rounds
do, behind a prompt; the parts are timed in alternation with whole rounds. What is left of a round (noise, verification,
commit of the cache) is the difference.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from eagle_jax.decode import DecodeState, prefill
from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.evaluation.timing import alternate, seconds
from eagle_jax.generator import Generator
from eagle_jax.sampling import first_largest, make_sampling
from eagle_jax.tree import ancestors
from eagle_jax.types import DraftTree, Params, Target, TargetOutput

Weights = tuple[Params, Params]
"""Of the drafter and of the target."""

Checked = tuple[TargetOutput, jax.Array]
"""What the target says about a tree, and its choice i32[1, N] behind each node."""

PARTS = ("draft", "target", "observe", "rest")
"""Parts of a round; they sum to `round`."""

RUNS = 8
"""How often a part runs in one call."""


Arrays = TypeVar("Arrays")


def _loop(
    part: Callable[[jax.Array, DrafterState], tuple[object, DrafterState]], state: DecodeState, own: DrafterState
) -> tuple[jax.Array, DrafterState]:
    """Run a part `RUNS` times, each run behind all that the one before it found, from the drafter's state `own` on.

    A run is given a zero which, for all that the compiler knows, is the sum of what was found: it is taken where a row
    has ended, and none has.
    """

    def again(_: jax.Array, carry: tuple[jax.Array, DrafterState]) -> tuple[jax.Array, DrafterState]:
        found, own = part(*carry)
        total = sum((leaf.astype(jnp.float32).sum() for leaf in jax.tree.leaves(found)), jnp.float32(0))
        return jnp.where(state.done.any(), total, 0).astype(jnp.int32), own

    return lax.fori_loop(0, RUNS, again, (jnp.int32(0), own))


def _behind(zero: jax.Array, arrays: Arrays) -> Arrays:
    """The same arrays, which nothing can be made of before `zero` is there."""
    return jax.tree.map(lambda x: x + zero.astype(x.dtype), arrays)


@functools.partial(jax.jit, static_argnames=("drafter",))
def _draft(drafter: Drafter, weights: Weights, state: DecodeState, noise: jax.Array) -> tuple[jax.Array, DrafterState]:
    def part(zero: jax.Array, own: DrafterState) -> tuple[DraftTree, DrafterState]:
        length, noises = _behind(zero, (state.cache.length, noise))
        return drafter.propose(*weights, own, state.text, length, noises)

    return _loop(part, state, state.drafter)


@functools.partial(jax.jit, static_argnames=("drafter",))
def _tree(drafter: Drafter, weights: Weights, state: DecodeState, noise: jax.Array) -> DraftTree:
    return drafter.propose(*weights, state.drafter, state.text, state.cache.length, noise)[0]


def _look(target: Target, max_depth: int, params: Params, state: DecodeState, tree: DraftTree) -> Checked:
    seen = ancestors(tree.parents, max_depth)
    positions = state.cache.length[:, None] + seen.sum(-1, dtype=jnp.int32) - 1
    output = target.forward(params, tree.tokens, positions, state.cache, seen)
    return output, first_largest(target.unembed(params, output.hidden))


_check = jax.jit(_look, static_argnames=("target", "max_depth"))


@functools.partial(jax.jit, static_argnames=("target", "max_depth"))
def _target(
    target: Target, max_depth: int, params: Params, state: DecodeState, tree: DraftTree
) -> tuple[jax.Array, DrafterState]:
    return _loop(lambda zero, own: (_look(target, max_depth, params, state, _behind(zero, tree)), own), state, ())


@functools.partial(jax.jit, static_argnames=("drafter",))
def _observe(
    drafter: Drafter, weights: Weights, state: DecodeState, tree: DraftTree, checked: Checked
) -> tuple[jax.Array, DrafterState]:
    size = drafter.max_depth + 1
    path = jnp.broadcast_to(jnp.arange(size), (1, size))
    length = state.cache.length
    seen = Observation(state.text, length, checked[0], path, jnp.ones_like(length), tree, checked[1])

    def part(zero: jax.Array, own: DrafterState) -> tuple[list[jax.Array], DrafterState]:
        own = drafter.observe(*weights, own, _behind(zero, seen))
        return [leaf[(0,) * leaf.ndim] for leaf in jax.tree.leaves(own)], own  # one number of each: caches are large

    return _loop(part, state, state.drafter)


def time_split(
    generator: Generator, prompt: Sequence[int], *, new_tokens: int, repeats: int, temperature: float = 0.0
) -> dict[str, float]:
    """Milliseconds of a round and of its parts, medians over `repeats`.

    Args:
      generator: target and drafter.
      prompt: token ids.
      new_tokens: tokens written behind it; whole rounds are timed over all of them.
      repeats: how often each part is timed.
      temperature: of sampling.

    Returns:
      `round`, and the names of `PARTS`.
    """
    target, drafter = generator.target, generator.drafter
    weights = (generator.drafter_params, generator.target_params)
    law: dict[str, Any] = {"temperature": temperature, "max_new_tokens": new_tokens}
    capacity = generator.slots([prompt], make_sampling(1, **law))
    text = jnp.zeros((1, capacity), jnp.int32).at[0, : len(prompt)].set(jnp.asarray(prompt))
    length = jnp.array([len(prompt)], jnp.int32)
    state = prefill(target, drafter, weights[1], weights[0], text, length, make_sampling(1, **law))
    noise = jnp.zeros((1, drafter.max_depth + 1, target.vocab_size))
    tree = _tree(drafter, weights, state, noise)
    checked = _check(target, drafter.max_depth, weights[1], state, tree)

    def whole_round() -> float:
        written = generator.generate([prompt], **law)
        return 1e3 * written.decode_seconds / max(1, sum(written.rounds))

    def timed(run: Callable[..., object], *arguments: object) -> Callable[[], float]:
        return lambda: 1e3 / RUNS * seconds(lambda: run(*arguments))

    costs = alternate(
        {
            "round": whole_round,
            "draft": timed(_draft, drafter, weights, state, noise),
            "target": timed(_target, target, drafter.max_depth, weights[1], state, tree),
            "observe": timed(_observe, drafter, weights, state, tree, checked),
        },
        repeats,
    )
    return {**costs, "rest": costs["round"] - costs["draft"] - costs["target"] - costs["observe"]}
