"""Acceptance on texts that are known already: drafting and checking as in decoding, the target's passes played back.

Every method writes the same text (DESIGN 2), so what the target says along that text is recorded once (`recording`)
and looked up afterwards: features by position, its choice behind each node from the text itself. A node that leaves
the text gets what belongs to the text's own token at its position, which nobody asks for: the node or one above it is
refused.

    text        x_0 ... x_n | x_n+1  x_n+2       recorded    hidden, taps at every position
    tree                root -> a -> b           looked up   by the node's position

A drafter that learns from the target's word on refused nodes (lookahead, Ouroboros) cannot be played back.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eagle_jax import sampling as noises
from eagle_jax import verify
from eagle_jax.cache import init_cache
from eagle_jax.decode import DecodeState, Models, noise_at, prefill
from eagle_jax.drafters.base import Drafter, Observation
from eagle_jax.evaluation.recording import Recording, record
from eagle_jax.generator import Generation
from eagle_jax.kernels.packed import pack
from eagle_jax.sampling import make_sampling
from eagle_jax.tree import ancestors
from eagle_jax.types import KVCache, Params, Sampling, Target, TargetOutput

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
      target, recording, sampling: the model, what it says along the texts, the law.
      texts: i32[B, S].
      start, stop: bounds for all rows.

    Returns:
      i32[B, S], and f32[B, S] in units of logits, 0 where the text has them; 0 elsewhere.
    """
    batch, size = texts.shape

    def choose(index: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        places = jnp.clip(start + index * CHUNK + jnp.arange(CHUNK), 1, size - 1)
        positions = jnp.broadcast_to(places, (batch, CHUNK))
        logits = target.unembed(recording.weights, recording.hidden[:, places - 1])
        scores = noises.noisy_scores(logits, noise_at(sampling, positions, target.vocab_size), sampling)
        written = jnp.take_along_axis(scores, texts[:, places][:, :, None], axis=-1)[..., 0]
        best = noises.first_largest(scores)
        return found[0].at[:, places].set(best), found[1].at[:, places].set(scores.max(-1) - written)

    empty = jnp.zeros((batch, size), jnp.int32), jnp.zeros((batch, size), jnp.float32)
    return lax.fori_loop(0, (stop - start + CHUNK - 1) // CHUNK, choose, empty)


@functools.cache
def playback(target: Target) -> Target:
    """The target whose weights are a `Recording`: it answers by position, whatever the tokens."""

    def forward(
        recording: Recording, tokens: jax.Array, positions: jax.Array, cache: KVCache, block_mask: jax.Array
    ) -> TargetOutput:
        del cache, block_mask
        nothing = (jnp.zeros((*tokens.shape, 1, 1)),)
        hidden, taps = (
            jnp.take_along_axis(x, positions[:, :, None], axis=1, mode="clip")
            for x in (recording.hidden, recording.taps)
        )
        return TargetOutput(hidden=hidden, taps=taps, keys=nothing, values=nothing)

    return target._replace(
        forward=forward,
        embed=lambda recording, tokens: target.embed(recording.weights, tokens),
        unembed=lambda recording, hidden: target.unembed(recording.weights, hidden),
        init_cache=lambda batch, capacity, dtype: init_cache(1, batch, capacity, 1, 1, jnp.dtype("float32")),
    )


@functools.cache
def _reading(drafter: Drafter) -> Drafter:
    """The drafter, given a `Recording` where it expects the target's weights."""

    def propose(params: Params, recording: Recording, *rest: Any) -> Any:
        return drafter.propose(params, recording.weights, *rest)

    def observe(params: Params, recording: Recording, *rest: Any) -> Any:
        return drafter.observe(params, recording.weights, *rest)

    return drafter._replace(propose=propose, observe=observe)


@functools.partial(jax.jit, static_argnames=("share_noise",), donate_argnames=("state",))
def play_rounds(
    models: Models,
    state: DecodeState,
    texts: jax.Array,
    ends: jax.Array,
    sampling: Sampling,
    *,
    share_noise: bool,
) -> DecodeState:
    """All rounds of `decode`, with `playback(target)`.

    Args:
      models: the played-back target with its recording, and the drafter.
      state: after the prompts.
      texts: i32[B, S], prompts and answers.
      ends: i32[B], lengths of the texts.
      sampling: the law.
      share_noise: as `Generator` takes it.
    """
    target, drafter, recording, params = models.target, models.drafter, models.target_params, models.drafter_params
    size = texts.shape[1]
    steps = jnp.arange(drafter.max_depth + 1)[None, :]

    def round_of(state: DecodeState) -> DecodeState:
        length = state.cache.length
        noise = noise_at(sampling, length[:, None] + 1 + steps, target.vocab_size)
        noise = sampling.temperature[:, None, None] * noise if share_noise else jnp.zeros_like(noise)
        tree, drafter_state = drafter.propose(params, recording, state.drafter, state.text, length, noise)
        seen = ancestors(tree.parents, drafter.max_depth)
        positions = length[:, None] + seen.sum(-1, dtype=jnp.int32) - 1
        choice = jnp.take_along_axis(texts, jnp.minimum(positions + 1, size - 1), axis=1)
        verdict = verify.match(tree, choice)
        count = jnp.where(state.done, 0, jnp.minimum(verdict.num_accepted + 1, ends - length - 1))
        text = jnp.where(jnp.arange(size)[None, :] <= (length + count)[:, None], texts, 0)
        output = target.forward(recording, tree.tokens, positions, state.cache, seen)
        observation = Observation(text, length, output, verdict.path, count, tree, choice)
        return dataclasses.replace(
            state,
            cache=dataclasses.replace(state.cache, length=length + count),
            drafter=drafter.observe(params, recording, drafter_state, observation),
            text=text,
            done=length + count + 1 >= ends,
            rounds=state.rounds + ~state.done,
            accepted=state.accepted + ((steps == verdict.num_accepted[:, None]) & ~state.done[:, None]),
        )

    return lax.while_loop(lambda state: ~state.done.all(), round_of, state)


def texts_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], capacity: int) -> np.ndarray:
    """Every prompt with its answer, i32[B, capacity]."""
    texts = np.zeros((len(prompts), capacity), np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        texts[row, : len(prompt) + len(answer)] = [*prompt, *answer]
    return texts


def check_playable(drafter: Drafter) -> None:
    """Refuse a drafter that a text alone does not feed.

    Raises:
      ValueError: as said.
    """
    if drafter.learns_from_refused:
        raise ValueError(
            f"{drafter.name} learns from tokens that were refused, which only the target's passes can tell"
        )


def replay(
    target: Target,
    target_params: Params,
    drafter: Drafter,
    drafter_params: Params,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    share_noise: bool = True,
    recording: Recording | None = None,
    **law: Any,
) -> Generation:
    """Rounds that the drafter would need for answers that plain decoding has written.

    Args:
      target, target_params: the model that wrote the answers.
      drafter, drafter_params: the drafting method.
      prompts: token ids of each row.
      answers: the row's tokens behind the prompt, as `Generation.tokens` holds them; what comes behind is not asked.
      share_noise: as `Generator` takes it.
      recording: of these texts; None reads them.
      **law: of the answers, as `make_sampling` takes it; `max_new_tokens` and `stop_ids` say nothing here.

    Returns:
      A generation whose tokens are the answers; its seconds mean nothing. A row's last round counts as accepted what
      the answer has room for.

    Raises:
      ValueError: a drafter that cannot be played back, no or other numbers of rows, or an answer that this law does not
        write (the message gives the place; a lead below `NEAR_TIE` is rounding).
    """
    check_playable(drafter)
    target_params, drafter_params = pack(target_params), pack(drafter_params)
    if not prompts or len(prompts) != len(answers):
        raise ValueError(f"one answer a prompt, at least one of each: got {len(prompts)} and {len(answers)}")
    starts = np.array([len(prompt) for prompt in prompts], np.int32)
    ends = starts + np.array([len(answer) for answer in answers], np.int32)
    needed = int(ends.max()) + drafter.max_depth
    capacity = max(256, 1 << needed.bit_length()) if recording is None else recording.hidden.shape[1]
    if needed >= capacity:
        raise ValueError(f"texts and draft need {needed + 1} slots, the recording has {capacity}")
    texts = texts_of(prompts, answers, capacity)
    sampling = make_sampling(len(prompts), **{**law, "max_new_tokens": [*map(len, answers)]})
    if recording is None:
        recording = record(target, target_params, jnp.asarray(texts), jnp.asarray(ends))
    rows, span = jnp.asarray(texts), (jnp.int32(starts.min()), jnp.int32(ends.max()))
    chosen, lead = map(np.asarray, lead_in_logits(target, recording, sampling, rows, *span))
    _check(texts, chosen, lead, starts, ends, NEAR_TIE[recording.hidden.dtype.name])
    models = Models(playback(target), _reading(drafter), recording, drafter_params)
    state = prefill(models, rows, jnp.asarray(starts), sampling)
    state = play_rounds(models, state, rows, jnp.asarray(ends), sampling, share_noise=share_noise)
    return Generation(
        tokens=[list(answer) for answer in answers],
        rounds=np.asarray(state.rounds).tolist(),
        accepted=np.asarray(state.accepted),
        prefill_seconds=0.0,
        decode_seconds=0.0,
        complete=True,
    )


def _check(
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
                "another law, or another target"
            )
