"""The reported numbers, each defined once (DESIGN 8).

tau is tokens per round; the bonus token counts, the first token of an answer, which comes from prefill, does not.
Near-ties are judged by the margin of the best noisy score over the second best.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.evaluation.recording import Recording, record
from eagle_jax.generator import Generation
from eagle_jax.penalties import penalise_text
from eagle_jax.sampling import SamplingConfig, SamplingOptions, gumbel, make_sampling, noisy_scores
from eagle_jax.sharding import to_host
from eagle_jax.types import Params, Sampling, Target

LEAST_ROUNDS = 20
"""A chance that was seen in fewer rounds is not shown."""

_PAD = 256
"""Texts are padded to a multiple of this, so that few lengths are compiled."""


def tau(generations: Sequence[Generation]) -> float:
    """Tokens per round over all answers: (written - the first of each) / rounds; NaN where no round was run."""
    rounds = sum(sum(generation.rounds) for generation in generations)
    return _after_first(generations) / rounds if rounds else float("nan")


def tokens_per_second(generations: Sequence[Generation], *, with_prefill: bool = False) -> float:
    """Speed of decoding: tokens after the first of each answer per second of rounds.

    `with_prefill`: all tokens per second of prefill and rounds together. NaN where that took no time.
    """
    seconds = sum(generation.decode_seconds for generation in generations)
    count = _after_first(generations)
    if with_prefill:
        seconds += sum(generation.prefill_seconds for generation in generations)
        count = sum(generation.num_tokens for generation in generations)
    return count / seconds if seconds > 0 else float("nan")


def _after_first(generations: Sequence[Generation]) -> int:
    return sum(generation.num_tokens - len(generation.tokens) for generation in generations)


def n_alpha(accepted: Sequence[int] | np.ndarray) -> list[float]:
    """Chance that a node at depth n + 1 is accepted given that one at depth n was, for n = 0, 1, ...

    arXiv 2401.15077, section 4 (measured there on chains). On a tree the same count says how likely a round gets from
    depth n to depth n + 1 by any of the nodes there; a path without a child at depth n + 1 counts as an end.

    Args:
      accepted: [P], rounds in which exactly 0, 1, ... drafted tokens were accepted: `Generation.accepted`
        with its rows summed.

    Returns:
      One number for each depth that a round has reached, but the deepest possible one, after which nothing is drafted.
    """
    reached = np.cumsum(np.asarray(accepted, np.int64)[::-1])[::-1]  # rounds with at least so many
    known = reached[:-1] > 0
    return (reached[1:][known] / reached[:-1][known]).tolist()


def well_seen(accepted: Sequence[int] | np.ndarray) -> list[float]:
    """The first of `n_alpha`, down to the depth that `LEAST_ROUNDS` rounds have reached."""
    reached = np.cumsum(np.asarray(accepted, np.int64)[::-1])[::-1]
    return n_alpha(accepted)[: int((reached >= LEAST_ROUNDS).sum())]


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Index at which two answers first differ (the end of one counts), or None where they are equal."""
    for index, (a, b) in enumerate(itertools.zip_longest(one, other)):
        if a != b:
            return index
    return None


@functools.partial(jax.jit, static_argnames=("target",))
def _best_two(
    target: Target, outputs: Recording, text: jax.Array, prompt_length: jax.Array, length: jax.Array, sampling: Sampling
) -> jax.Array:
    """The two highest noisy scores f32[2] for the token at `length`, after the recorded text i32[1, S]."""
    logits = target.unembed(outputs.weights, jnp.take(outputs.hidden, length - 1, axis=1))
    if sampling.penalties is not None:
        logits = penalise_text(logits, sampling.penalties, text, prompt_length[None], length[None])
    noise = gumbel(sampling, jnp.full((1, 1), length), target.vocab_size)[:, 0]
    return jax.lax.top_k(noisy_scores(logits, noise, sampling)[0], 2)[0]


def margin(
    target: Target,
    params: Params,
    text: Sequence[int],
    *,
    prompt_length: int | None = None,
    **sampling: Unpack[SamplingOptions],
) -> float:
    """Lead of the best choice for the token after `text` over the second best, in units of logits.

    Computed from a pass over the text, with the keyed noise of decoding. Tokens that a mask excludes do not
    count: where rounding decides which these are, the lead may be of any size, and it is infinite where one token
    remains.

    Args:
      target, params: the model.
      text: token ids, prompt included; at least one.
      prompt_length: tokens of it before the answer; all where left out.
      **sampling: as the row was sampled, as `make_sampling` takes it for one row.
    """
    settings = make_sampling(1, **sampling)
    padded: Any = np.zeros((1, -(-len(text) // _PAD) * _PAD), np.int32)
    padded[0, : len(text)] = text
    length: Any = np.array([len(text)], np.int32)  # numpy, not on a device: the weights may be sharded
    outputs = record(target, params, padded, length)
    begin = np.int32(len(text) if prompt_length is None else prompt_length)
    best, second = to_host(_best_two(target, outputs, padded, begin, length[0], settings))
    return float(best - second)


def margin_at_difference(
    target: Target,
    params: Params,
    prompt: list[int],
    plain: list[int],
    answer: list[int],
    *,
    sampling: SamplingConfig,
    sequence: int,
) -> float | None:
    """`margin` where an answer first differs from plain decoding's, None where it does not.

    Args:
      target, params: the model.
      prompt: token ids.
      plain, answer: what plain decoding and the method wrote.
      sampling: of both.
      sequence: id of the request.
    """
    place = first_difference(answer, plain)
    if place is None:
        return None
    return margin(
        target,
        params,
        prompt + plain[:place],
        prompt_length=len(prompt),
        **sampling.options(sequence=[sequence]),
    )


def finite(value: Any) -> Any:
    """A number as JSON holds it: null where there is none, NaN or an infinite one."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
