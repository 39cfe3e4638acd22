"""Acceptance on texts that are known already (teacher forcing): the rounds of decoding without the target's passes.

Every method writes the same text (DESIGN 2), so the target's outputs along that text are recorded once (`recording`)
and read by position afterwards. The loop is `decode` with another check: the target's choice after each node is the
token of the text at the next position. A node that leaves the text gets the outputs of the text's own token at its
position, which nothing depends on: the node or one above it is rejected.

    text        x_0 ... x_n | x_n+1  x_n+2       recorded    hidden, taps at every position
    tree                root -> a -> b           read        by the node's position

A drafter that learns from the target's choices after rejected nodes (lookahead, Ouroboros) needs real decoding.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from eagle_jax import sampling as noises
from eagle_jax import verify
from eagle_jax.cache import init_cache
from eagle_jax.decode import DecodeState, Models, Rule, Scored, decode, prefill
from eagle_jax.drafters.base import Drafter
from eagle_jax.evaluation.recording import Recording, record
from eagle_jax.generator import ALL_ROUNDS, Generation, read_generation
from eagle_jax.kernels.packed import pack
from eagle_jax.sampling import SamplingOptions, make_sampling
from eagle_jax.types import KVCache, Params, Sampling, Target, TargetOutput, Verdict

CHUNK = 16
"""Positions whose logits f32[B, CHUNK, V] exist at a time."""

NEAR_TIE = {"float32": 1e-3, "float16": 0.125, "bfloat16": 1.0}
"""By how much, in units of logits, another token may lead the text's own where rounding is to blame.

Answers are written in passes over a token or a tree and read in long ones, which add in another order.
"""


@functools.partial(jax.jit, static_argnames=("target",))
def lead_in_logits(
    target: Target, recording: Recording, sampling: Sampling, texts: jax.Array, start: jax.Array, stop: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The target's own tokens for the positions from `start` to `stop` i32[], and by how much they lead the text's.

    Args:
      target, recording, sampling: the model, its outputs along the texts, and how the texts were sampled.
      texts: i32[B, S].
      start, stop: bounds for all rows.

    Returns:
      i32[B, S], and f32[B, S] in units of logits, 0 where the text has them; 0 elsewhere.
    """
    batch, size = texts.shape

    def choose(index: jax.Array, results: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        places = jnp.clip(start + index * CHUNK + jnp.arange(CHUNK), 1, size - 1)
        positions = jnp.broadcast_to(places, (batch, CHUNK))
        logits = target.unembed(recording.weights, recording.hidden[:, places - 1])
        scores = noises.noisy_scores(logits, noises.noise_at(sampling, positions, target.vocab_size), sampling)
        written = jnp.take_along_axis(scores, texts[:, places][:, :, None], axis=-1)[..., 0]
        best = noises.first_largest(scores)
        return results[0].at[:, places].set(best), results[1].at[:, places].set(scores.max(-1) - written)

    empty = jnp.zeros((batch, size), jnp.int32), jnp.zeros((batch, size), jnp.float32)
    return lax.fori_loop(0, (stop - start + CHUNK - 1) // CHUNK, choose, empty)


@struct.dataclass
class KnownTexts:
    """In place of the target's weights: the texts, and the target's outputs along them."""

    recording: Recording
    texts: jax.Array  # i32[B, S], prompts and answers


@functools.cache
def recorded_target(target: Target) -> Target:
    """The target whose weights are `KnownTexts`: it answers by position, whatever the tokens."""

    def forward(
        known: KnownTexts, tokens: jax.Array, positions: jax.Array, cache: KVCache, block_mask: jax.Array
    ) -> TargetOutput:
        del cache, block_mask
        nothing = (jnp.zeros((*tokens.shape, 1, 1)),)
        hidden, taps = (
            jnp.take_along_axis(x, positions[:, :, None], axis=1, mode="clip")
            for x in (known.recording.hidden, known.recording.taps)
        )
        return TargetOutput(hidden=hidden, taps=taps, keys=nothing, values=nothing)

    return target._replace(
        forward=forward,
        embed=lambda known, tokens: target.embed(known.recording.weights, tokens),
        unembed=lambda known, hidden: target.unembed(known.recording.weights, hidden),
        init_cache=lambda batch, capacity, dtype: init_cache(1, batch, capacity, 1, 1, jnp.dtype("float32")),
    )


@functools.cache
def with_known_texts(drafter: Drafter) -> Drafter:
    """The drafter, given `KnownTexts` where it expects the target's weights."""

    def propose(params: Params, known: KnownTexts, *rest: Any) -> Any:
        return drafter.propose(params, known.recording.weights, *rest)

    def observe(params: Params, known: KnownTexts, *rest: Any) -> Any:
        return drafter.observe(params, known.recording.weights, *rest)

    return drafter._replace(propose=propose, observe=observe)


def check_by_text(
    known: KnownTexts, scored: Scored, sampling: Sampling, rule: Rule, share_noise: bool
) -> tuple[Verdict, jax.Array]:
    """The `decode.Check` of known texts: the choice after a node is the text's token at the next position.

    The logits are not used, so the compiled program does not compute them.
    """
    del sampling, rule, share_noise
    following = jnp.minimum(scored.length[:, None] + scored.depth + 1, known.texts.shape[1] - 1)
    choice = jnp.take_along_axis(known.texts, following, axis=1)
    return verify.match(scored.tree, choice), choice


def texts_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], capacity: int) -> np.ndarray:
    """Every prompt with its answer, i32[B, capacity]."""
    texts = np.zeros((len(prompts), capacity), np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        texts[row, : len(prompt) + len(answer)] = [*prompt, *answer]
    return texts


def check_playable(drafter: Drafter) -> None:
    """Refuse a drafter whose rounds depend on more than the text.

    Raises:
      ValueError: the drafter learns from the target's choices after rejected tokens.
    """
    if drafter.learns_from_refused:
        raise ValueError(
            f"{drafter.name} learns from tokens that were refused, which only the target's passes can tell"
        )


def accept_known(
    models: Models,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    share_noise: bool = True,
    recording: Recording | None = None,
    **sampling: Unpack[SamplingOptions],
) -> Generation:
    """Rounds that the drafter needs for answers that plain decoding has written; arguments and errors as `play_known`.

    Returns:
      A generation whose tokens are the answers; its seconds mean nothing. A row's last round counts as accepted what
      the answer has room for.
    """
    state = play_known(models, prompts, answers, share_noise=share_noise, recording=recording, **sampling)
    return read_generation(state)


def play_known(
    models: Models,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    share_noise: bool = True,
    recording: Recording | None = None,
    **sampling: Unpack[SamplingOptions],
) -> DecodeState:
    """The state after the rounds that the drafter needs for answers that plain decoding has written.

    Args:
      models: the target that wrote the answers, and the drafter.
      prompts: token ids of each row.
      answers: the row's tokens after the prompt, as `Generation.tokens` holds them, a stop id included.
      share_noise: as `Generator` takes it.
      recording: of these texts; None reads them.
      **sampling: of the answers, as `make_sampling` takes it; `max_new_tokens` and `stop_ids` have no effect here.

    Raises:
      ValueError: a drafter that learns from rejected tokens, no or other numbers of rows, or an answer that the target
        does not write with these sampling settings (the message gives the place; a lead below `NEAR_TIE` is rounding).
    """
    target, drafter = models.target, models.drafter
    check_playable(drafter)
    target_params, drafter_params = pack(models.target_params), pack(models.drafter_params)
    if not prompts or len(prompts) != len(answers):
        raise ValueError(f"one answer a prompt, at least one of each: got {len(prompts)} and {len(answers)}")
    starts = np.array([len(prompt) for prompt in prompts], np.int32)
    ends = starts + np.array([len(answer) for answer in answers], np.int32)
    needed = int(ends.max()) + drafter.max_depth
    capacity = max(256, 1 << needed.bit_length()) if recording is None else recording.hidden.shape[1]
    if needed >= capacity:
        raise ValueError(f"texts and draft need {needed + 1} slots, the recording has {capacity}")
    texts = texts_of(prompts, answers, capacity)
    options: SamplingOptions = {**sampling, "max_new_tokens": [*map(len, answers)], "stop_ids": ()}
    settings = make_sampling(len(prompts), **options)
    if settings.penalties is not None:
        raise ValueError("acceptance on known texts has no penalties: they are not recorded")
    rows = jnp.asarray(texts)
    if recording is None:
        recording = record(target, target_params, rows, jnp.asarray(ends))
    span = jnp.int32(starts.min()), jnp.int32(ends.max())
    chosen, lead = map(np.asarray, lead_in_logits(target, recording, settings, rows, *span))
    _check_answers(texts, chosen, lead, starts, ends, NEAR_TIE[recording.hidden.dtype.name])
    known = Models(recorded_target(target), with_known_texts(drafter), KnownTexts(recording, rows), drafter_params)
    before = np.arange(capacity) < starts[:, None]
    state = prefill(known, jnp.where(before, rows, 0), jnp.asarray(starts), settings)
    # At a near-tie the first token of the answer may be another than the one that was chosen just now.
    first = np.arange(capacity) == starts[:, None]
    state = dataclasses.replace(state, text=jnp.where(before | first, rows, 0))
    return decode(known, state, settings, ALL_ROUNDS, share_noise=share_noise, check=check_by_text)


def _check_answers(
    texts: np.ndarray, chosen: np.ndarray, lead: np.ndarray, starts: np.ndarray, ends: np.ndarray, near_tie: float
) -> None:
    """Refuse texts that are not what the target chooses, near-ties apart.

    Raises:
      ValueError: the first place that differs.
    """
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        wrong = np.flatnonzero(~(lead[row, start:end] < near_tie))
        if wrong.size:
            place = start + wrong[0]
            raise ValueError(
                f"row {row}: read once more, the target writes another answer from token {wrong[0]} on, "
                f"{chosen[row, place]} instead of {texts[row, place]}, which it leads by {lead[row, place]:.3g}: "
                "other sampling settings, or another target"
            )
