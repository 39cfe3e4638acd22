"""Where a round's time goes: drafting, the target's pass, reading what was accepted, and the rest.

Each part is compiled alone and timed on the state of a real generation, the parts in alternation with whole rounds.
What is left of a round (noise, verification, commit of the cache) is the difference.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from eagle_jax.decode import DecodeState, prefill
from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.evaluation.timing import alternate, seconds
from eagle_jax.generate import Generator
from eagle_jax.sampling import make_sampling
from eagle_jax.tree import ancestors
from eagle_jax.types import DraftTree, Params, Target, TargetOutput

Weights = tuple[Params, Params]
"""Of the drafter and of the target."""

Checked = tuple[TargetOutput, jax.Array]
"""What the target says about a tree, and its choice i32[1, N] behind each node."""

PARTS = ("draft", "target", "observe", "rest")
"""Parts of a round; they sum to `round`."""


@functools.partial(jax.jit, static_argnames=("drafter",))
def _draft(drafter: Drafter, weights: Weights, state: DecodeState, noise: jax.Array) -> DraftTree:
    return drafter.propose(*weights, state.drafter, state.text, state.cache.length, noise)[0]


@functools.partial(jax.jit, static_argnames=("target", "max_depth"))
def _check(target: Target, max_depth: int, params: Params, state: DecodeState, tree: DraftTree) -> Checked:
    seen = ancestors(tree.parents, max_depth)
    positions = state.cache.length[:, None] + seen.sum(-1, dtype=jnp.int32) - 1
    output = target.forward(params, tree.tokens, positions, state.cache, seen)
    return output, target.unembed(params, output.hidden).argmax(-1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("drafter",))
def _observe(drafter: Drafter, weights: Weights, state: DecodeState, tree: DraftTree, checked: Checked) -> DrafterState:
    size = drafter.max_depth + 1
    path = jnp.broadcast_to(jnp.arange(size), (1, size))
    length = state.cache.length
    seen = Observation(state.text, length, checked[0], path, jnp.ones_like(length), tree, checked[1])
    return drafter.observe(*weights, state.drafter, seen)


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
    capacity = generator.capacity or max(512, 1 << (len(prompt) + new_tokens + drafter.max_depth).bit_length())
    text = jnp.zeros((1, capacity), jnp.int32).at[0, : len(prompt)].set(jnp.asarray(prompt))
    length = jnp.array([len(prompt)], jnp.int32)
    state = prefill(target, drafter, weights[1], weights[0], text, length, make_sampling(1, **law))
    noise = jnp.zeros((1, drafter.max_depth + 1, target.vocab_size))
    tree = _draft(drafter, weights, state, noise)
    checked = _check(target, drafter.max_depth, weights[1], state, tree)

    def whole_round() -> float:
        written = generator.generate([prompt], **law)
        return 1e3 * written.decode_seconds / max(1, sum(written.rounds))

    def timed(run: Callable[..., object], *arguments: object) -> Callable[[], float]:
        return lambda: 1e3 * seconds(lambda: run(*arguments))

    costs = alternate(
        {
            "round": whole_round,
            "draft": timed(_draft, drafter, weights, state, noise),
            "target": timed(_check, target, drafter.max_depth, weights[1], state, tree),
            "observe": timed(_observe, drafter, weights, state, tree, checked),
        },
        repeats,
    )
    return {**costs, "rest": costs["round"] - costs["draft"] - costs["target"] - costs["observe"]}
