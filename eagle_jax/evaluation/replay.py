"""Acceptance on texts that are known already: the decoder itself, with a target that plays back what it once said.

Every method writes the same text (DESIGN 2), so what the target says along that text can be recorded in one pass and
looked up afterwards. Rounds, trees, noise and the verifier are those of decoding; only the target's pass over the tree
is a gather. A node that leaves the text gets the output of the text's own token at its position, which nobody asks for:
its parent or the node itself is refused already.

    text        x_0 ... x_n | x_n+1  x_n+2       recorded    hidden, taps at every position
    tree                root -> a -> b           looked up   by the node's position
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from eagle_jax.cache import init_cache
from eagle_jax.drafters.base import Drafter
from eagle_jax.generate import Generation, Generator
from eagle_jax.types import KVCache, Params, Target, TargetOutput


@struct.dataclass
class Recording:
    """What a target said along some texts; takes the place of its weights."""

    weights: Params
    hidden: jax.Array  # [B, S, E]
    taps: jax.Array  # [B, S, number of taps * E]


@functools.partial(jax.jit, static_argnames=("target",))
def record(target: Target, params: Params, texts: jax.Array) -> Recording:
    """One pass over texts i32[B, S], each from index 0 on, anything behind its end."""
    batch, size = texts.shape
    positions = jnp.broadcast_to(jnp.arange(size), (batch, size))
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool)), (batch, size, size))
    output = target.forward(params, texts, positions, target.init_cache(batch, 1), causal)
    return Recording(params, output.hidden, output.taps)


@functools.cache
def playback(target: Target) -> Target:
    """The target whose weights are a `Recording`: it answers by position, whatever the tokens."""

    def forward(
        recording: Recording, tokens: jax.Array, positions: jax.Array, cache: KVCache, block_mask: jax.Array
    ) -> TargetOutput:
        del cache, block_mask

        def at(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x, positions[:, :, None], axis=1, mode="clip")

        nothing = (jnp.zeros((*tokens.shape, 1, 1)),)
        return TargetOutput(hidden=at(recording.hidden), taps=at(recording.taps), keys=nothing, values=nothing)

    return target._replace(
        forward=forward,
        embed=lambda recording, tokens: target.embed(recording.weights, tokens),
        unembed=lambda recording, hidden: target.unembed(recording.weights, hidden),
        init_cache=lambda batch, capacity: init_cache(1, batch, capacity, 1, 1, jnp.dtype("float32")),
    )


@functools.cache
def _reading(drafter: Drafter) -> Drafter:
    """The drafter, given a `Recording` where it expects the target's weights."""

    def propose(params: Params, recording: Recording, *rest: Any) -> Any:
        return drafter.propose(params, recording.weights, *rest)

    def observe(params: Params, recording: Recording, *rest: Any) -> Any:
        return drafter.observe(params, recording.weights, *rest)

    return drafter._replace(propose=propose, observe=observe)


def replay(
    target: Target,
    target_params: Params,
    drafter: Drafter,
    drafter_params: Params,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    share_noise: bool = True,
    **sampling: Any,
) -> Generation:
    """Rounds that the drafter would need for answers that plain decoding has written.

    Args:
      target, target_params: the model that wrote the answers.
      drafter, drafter_params: the drafting method; what it drafts may not depend on the target's cache.
      prompts: token ids of each row.
      answers: the row's tokens behind the prompt, as `Generation.tokens` holds them; what comes behind is not asked.
      share_noise: as `Generator` takes it.
      **sampling: the law of the answers, as `make_sampling` takes it.

    Returns:
      A generation whose tokens are the answers; its seconds mean nothing.

    Raises:
      ValueError: no or other numbers of rows; an answer that this law does not write (the message gives the place).
    """
    if not prompts or len(prompts) != len(answers):
        raise ValueError(f"one answer a prompt, at least one of each: got {len(prompts)} and {len(answers)}")
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    capacity = -(-(longest + drafter.max_depth + 1) // 128) * 128
    texts = np.zeros((len(prompts), capacity), np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        texts[row, : len(prompt) + len(answer)] = [*prompt, *answer]
    player = Generator(
        playback(target),
        record(target, target_params, jnp.asarray(texts)),
        _reading(drafter),
        drafter_params,
        share_noise=share_noise,
        capacity=capacity,
    )
    sampling["max_new_tokens"] = list(map(len, answers))
    generation = player.generate(prompts, **sampling)
    for row, (found, wanted) in enumerate(zip(generation.tokens, answers, strict=True)):
        if found != list(wanted):
            place = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(found))
            raise ValueError(
                f"row {row}: this law writes another answer, from token {place} on:"
                f" {found[place : place + 1]} instead of {list(wanted[place : place + 1])}"
            )
    return generation
