"""Continuous batching: a row whose answer has ended takes the next prompt, so the batch stays full.

    row 0   [prompt 0 ......][prompt 3 ...............
    row 1   [prompt 1 ..................][prompt 4 ...      the shapes never change: one program reads a group of
    row 2   [prompt 2 ...][prompt 5 .................       prompts, one puts them into rows, one runs rounds

Every prompt has its own noise (`sequence`), so its answer does not depend on the row, the batch or the other prompts.
Scheduling between rounds is that of Orca (Yu et al., OSDI 2022), but prompts are read in a call of their own, for which
all other rows wait: so the device runs rounds until a group of rows has ended. The host then dispatches the next step
before it hands the answers out, so that the device works while the caller does.
"""

import dataclasses
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from eagle_jax.decode import DecodeState, empty_state, keep_state
from eagle_jax.drafters.base import Drafter
from eagle_jax.generator import ALL_ROUNDS, Generation, Generator, read_generation
from eagle_jax.logprobs import AnswerLogprobs
from eagle_jax.sampling import SamplingOptions
from eagle_jax.sharding import DATA, Split, active, check_batch, keep_rows, place_rows, to_host
from eagle_jax.types import Sampling, Target

BatchState = tuple[DecodeState, Sampling]
"""All that a row is made of; every array has the batch in front."""

IDLE = -1
"""In place of the index of a prompt: the row answers none."""

ROWS_PER_PROMPT = 8
"""Rows of a batch for each prompt that is read in one prefill call (`group_size`)."""

SHORTEST_CHUNK = 32
"""Prompt tokens of one row that a pass reads at the least, however many rows read together."""


class RowAnswer(NamedTuple):
    """One row of a `Generation`."""

    tokens: list[int]
    rounds: int
    accepted: np.ndarray  # i32[P]
    logprobs: AnswerLogprobs | None = None


class Finished(NamedTuple):
    """Answers that have ended, and the time so far."""

    answers: Mapping[int, RowAnswer]  # by the index of their prompt
    prefill_seconds: float  # prompts were read, while the other rows waited
    decode_seconds: float  # all other time that passed


def write_all(
    generator: Generator, prompts: Sequence[Sequence[int]], *, batch: int, **sampling: Unpack[SamplingOptions]
) -> Generation:
    """The complete answers to any number of prompts, in their order; arguments and errors as `write_each`.

    `prefill_seconds` holds the time in which prompts were read; with `decode_seconds` it is all the time that passed.
    """
    answers: dict[int, RowAnswer] = {}
    for finished in write_each(generator, prompts, batch=batch, **sampling):
        answers.update(finished.answers)
    in_order = [answers[prompt] for prompt in range(len(prompts))]
    return Generation(
        tokens=[answer.tokens for answer in in_order],
        rounds=[answer.rounds for answer in in_order],
        accepted=np.stack([answer.accepted for answer in in_order]),
        prefill_seconds=finished.prefill_seconds,
        decode_seconds=finished.decode_seconds,
        complete=True,
        logprobs=None if generator.logprobs is None else [answer.logprobs for answer in in_order if answer.logprobs],
    )


def write_each(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    *,
    batch: int,
    should_stop: Callable[[], bool] = lambda: False,
    **sampling: Unpack[SamplingOptions],
) -> Iterator[Finished]:
    """Yield the complete answers to any number of prompts as they end, at most `batch` of them in progress.

    While the caller has them the device goes on; the caller's time counts only where it is the longer one.

    Args:
      generator: target and drafter; a `GivingUp` drafts to the end, for it judges batches that begin together.
      prompts: token ids, begun in this order; there may be fewer than `batch`. Neighbours are read together and padded
        to the longest of them, so that sorting by length saves time.
      batch: rows that decode together; with a mesh a multiple of its axis `data`.
      should_stop: called wherever rows could take further prompts; once it returns true, no prompt is begun any more
        and the answers in progress are the last.
      **sampling: as `sampling.make_sampling` takes it, lists with one entry a prompt.

    Raises:
      ValueError: a batch below 1 or one that does not divide over the mesh, or what `Generator.generate` refuses.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    shards = 1
    if generator.mesh is not None:
        check_batch(generator.mesh, batch)
        shards = generator.mesh.shape[DATA]
    settings = generator.check(prompts, **sampling)
    capacity = generator.slots([len(prompt) for prompt in prompts], settings)
    batch = min(batch, -(-len(prompts) // shards) * shards)
    group = group_size(batch, shards)
    chunk = max(generator.chunk // group, min(generator.chunk, SHORTEST_CHUNK))
    generator = dataclasses.replace(generator, capacity=capacity, prefill_chunk=chunk)

    prompt_of, waiting = [IDLE] * batch, deque(range(len(prompts)))
    rows = _idle_rows(generator, settings, batch, capacity)
    answers: dict[int, RowAnswer] = {}
    seconds = {"prefill": 0.0, "decode": 0.0}
    while True:
        started, step = time.perf_counter(), "decode"
        idle = deque(row for row, prompt in enumerate(prompt_of) if prompt == IDLE)
        if 0 < min(group, len(waiting)) <= len(idle) and waiting[0] >= batch and should_stop():
            waiting.clear()
        while 0 < min(group, len(waiting)) <= len(idle):
            taken = {idle.popleft(): waiting.popleft() for _ in range(min(group, len(waiting)))}
            rows = _read_prompts(generator, prompts, settings, rows, taken, group)
            prompt_of = [taken.get(row, prompt) for row, prompt in enumerate(prompt_of)]
            step = "prefill"
        if step == "decode" and len(idle) < batch:
            min_live = batch + 1 - min(group, len(waiting)) if waiting else 1
            rows = generator.advance(*rows, ALL_ROUNDS, min_live), rows[1]
        if answers:
            yield Finished(answers, seconds["prefill"], seconds["decode"])
        if len(idle) == batch:
            return
        done = to_host(rows[0].done)  # waits for the device
        ended = [row for row, prompt in enumerate(prompt_of) if prompt != IDLE and done[row]]
        state = read_generation(rows[0]) if ended else None
        seconds[step] += time.perf_counter() - started
        answers = {}
        if state is not None:
            answers = {prompt_of[row]: _row_answer(state, row) for row in ended}
            prompt_of = [IDLE if row in ended else prompt for row, prompt in enumerate(prompt_of)]


def _row_answer(state: Generation, row: int) -> RowAnswer:
    logprobs = state.logprobs[row] if state.logprobs else None
    return RowAnswer(state.tokens[row], state.rounds[row], state.accepted[row], logprobs)


def group_size(batch: int, shards: int = 1) -> int:
    """Prompts read in one call, a multiple of `shards`: so many rows must have ended before the next prompts are read.

    With groups of G, (G - 1) / 2 of B rows are idle on average, and what a call costs whatever its size, c seconds, is
    shared by G prompts. An answer takes d = (its rounds) x (seconds of a round) / B, so d (G - 1) / 2B + c / G is least
    at G = sqrt(2 B c / d): 4 of 32 rows where a call costs a quarter of an answer.
    """
    return max(shards, batch // ROWS_PER_PROMPT // shards * shards)


def _idle_rows(generator: Generator, settings: Sampling, batch: int, capacity: int) -> BatchState:
    """Rows that are done, with the settings of the first prompt."""
    some = jax.tree.map(lambda x: x[np.zeros(batch, int)], settings)
    with active(generator.mesh):
        dtype = generator.target.activation_dtype(generator.target_params)
        state = _make_idle(
            generator.target, generator.drafter, batch, capacity, dtype, generator.split, generator.logprobs
        )
    return state, some if generator.mesh is None else place_rows(generator.mesh, some)


@functools.partial(jax.jit, static_argnums=range(7))
def _make_idle(
    target: Target,
    drafter: Drafter,
    batch: int,
    capacity: int,
    dtype: DTypeLike,
    split: Split | None,
    num_logprobs: int | None,
) -> DecodeState:
    text, length = jnp.zeros((batch, capacity), jnp.int32), jnp.ones(batch, jnp.int32)
    state = empty_state(target, drafter, text, length, dtype, num_logprobs)
    return keep_state(dataclasses.replace(state, done=jnp.ones(batch, bool)), split)


def _read_prompts(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    settings: Sampling,
    rows: BatchState,
    taken: Mapping[int, int],
    group: int,
) -> BatchState:
    """`rows` in which each row of `taken`, at most `group` of them, has read its prompt."""
    padded = [*taken.items()] + [*taken.items()][:1] * (group - len(taken))  # the same prompt into the same row
    places, chosen = np.array(padded, np.int32).T
    new = jax.tree.map(lambda x: x[chosen], settings)
    state = generator.start([prompts[prompt] for prompt in chosen], new)
    if generator.mesh is not None:
        new = place_rows(generator.mesh, new)
    with active(generator.mesh):
        return replace_rows(rows, (state, new), places, generator.split)


@functools.partial(jax.jit, donate_argnums=0, static_argnums=3)
def replace_rows(rows: BatchState, new: BatchState, places: jax.Array, split: Split | None) -> BatchState:
    """Row `places[i]` of `rows` becomes row i of `new`, for i32[G] places."""
    state, settings = jax.tree.map(lambda old, x: old.at[places].set(x), rows, new)
    return keep_state(state, split), keep_rows(settings)
