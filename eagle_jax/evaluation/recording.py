"""The target's outputs along a text, recorded while the text is written or read: plain decoding with a memory.

The memory is a drafter's state, so the programs are those of decoding: prompts are read chunk by chunk, and a long text
never needs more than one chunk's scores. `teacher_forced` measures drafters along it.
"""

import functools
from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from eagle_jax.cache import append
from eagle_jax.decode import Models, prefill
from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.drafters.vanilla import make_vanilla
from eagle_jax.generator import Generator, read_generation
from eagle_jax.sampling import SamplingOptions, make_sampling
from eagle_jax.types import Params, Target

CHUNK = 256
"""Tokens read per pass."""


@struct.dataclass
class Recording:
    """A target's outputs along some texts, and its weights."""

    weights: Params
    hidden: jax.Array  # [B, S, E]
    taps: jax.Array  # [B, S, number of taps * E]


def record(target: Target, params: Params, texts: jax.Array, lengths: jax.Array) -> Recording:
    """Read texts i32[B, S], each from index 0 on and `lengths` i32[B] long."""
    models = Models(target, _recorder_of(target, params), params)
    state = prefill(models, texts, lengths, make_sampling(len(texts)), chunk=CHUNK)
    return Recording(params, *state.drafter)


def write_recorded(
    target: Target,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    capacity: int,
    **sampling: Unpack[SamplingOptions],
) -> tuple[list[list[int]], Recording]:
    """The answers of plain decoding to a batch of prompts, and the recording of prompts and answers.

    Args:
      target, params: the model.
      prompts: token ids of each row.
      capacity: slots S; a drafter that is measured along the recording needs `max_depth` + 1 after the longest text.
      **sampling: as `make_sampling` takes it.

    Raises:
      ValueError: as `Generator.generate`.
    """
    writer = Generator(target, params, _recorder_of(target, params), capacity=capacity, prefill_chunk=CHUNK)
    settings = writer.check(prompts, **sampling)
    state = writer.finish(writer.start(prompts, settings), settings)
    return read_generation(state).tokens, Recording(params, *state.drafter)


def _recorder_of(target: Target, params: Params) -> Drafter:
    """The recorder for a target's sizes."""
    one, mask = jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1, 1), bool)
    cache = target.init_cache(1, 1, target.activation_dtype(params))
    output = jax.eval_shape(target.forward, params, one, one, cache, mask)
    return make_recorder(output.hidden.shape[-1], output.taps.shape[-1])


@functools.cache
def make_recorder(width: int, tapped: int) -> Drafter:
    """Plain decoding whose state is hidden [B, S, width] and taps [B, S, tapped]."""

    def init(batch: int, capacity: int, dtype: DTypeLike) -> DrafterState:
        return tuple(jnp.zeros((batch, capacity, size), dtype) for size in (width, tapped))

    def observe(params: Params, target_params: Params, state: DrafterState, seen: Observation) -> DrafterState:
        del params, target_params
        path = jnp.maximum(seen.path, 0)[:, :, None]
        outputs = (jnp.take_along_axis(x, path, axis=1) for x in (seen.output.hidden, seen.output.taps))
        return tuple(append(old, new, seen.length, seen.count) for old, new in zip(state, outputs, strict=True))

    return make_vanilla()._replace(name="recorder", init=init, observe=observe)
