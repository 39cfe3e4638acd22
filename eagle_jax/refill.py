"""More prompts than rows: a row whose answer has ended takes the next prompt, so the batch stays full.

    row 0   [prompt 0 ......][prompt 3 ...............
    row 1   [prompt 1 ..................][prompt 4 ...      the shapes never change: one program for prompts,
    row 2   [prompt 2 ...][prompt 5 .................       one for rounds, one that replaces a row

Every prompt has its own noise (`sequence`), so its answer does not depend on the row, the batch or the company. The
device runs rounds until some row ends; only then does the host look.
"""

import copy
import dataclasses
import functools
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.decode import DecodeState
from eagle_jax.generate import ALL_ROUNDS, Generation, Generator, read
from eagle_jax.sampling import make_sampling
from eagle_jax.sharding import DATA, active, check_batch, keep_rows, place_rows, to_host
from eagle_jax.types import Sampling

Rows = tuple[DecodeState, Sampling]
"""All that a row is made of; every array has the batch in front."""

FREE = -1
"""In the place of a prompt: the row answers none."""


class _Answer(NamedTuple):
    """One row of a `Generation`."""

    tokens: list[int]
    rounds: int
    accepted: np.ndarray  # i32[P]


@functools.partial(jax.jit, donate_argnums=0)
def _replace_row(rows: Rows, other: Rows, row: jax.Array | int) -> Rows:
    """Row `row` becomes the first one of `other`."""
    return keep_rows(jax.tree.map(lambda old, new: old.at[row].set(new[0]), rows, other))


def write_all(generator: Generator, prompts: Sequence[Sequence[int]], *, batch: int, **sampling: Any) -> Generation:
    """The complete answers to any number of prompts, at most `batch` of them under way at a time.

    Args:
      generator: target and drafter; its `give_up` is not looked at, for it judges batches that begin together.
      prompts: token ids; there may be fewer than `batch`.
      batch: rows that decode together; with a mesh a multiple of its axis `data`.
      **sampling: as `sampling.make_sampling` takes it, lists with one entry a prompt.

    Returns:
      The answers in the order of the prompts. `prefill_seconds` holds the time in which prompts were read, while the
      other rows waited; with `decode_seconds` it is all the time that passed.

    Raises:
      ValueError: a batch below 1 or one that does not divide over the mesh, or what `Generator.generate` refuses.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    dealt = 1  # rows that come together, at the least
    if generator.mesh is not None:
        check_batch(generator.mesh, batch)
        dealt = generator.mesh.shape[DATA]
    laws = make_sampling(len(prompts), **sampling)
    generator = copy.copy(generator)
    generator.capacity = generator.slots(prompts, laws)
    batch = min(batch, -(-len(prompts) // dealt) * dealt)
    asked = [row if row < len(prompts) else FREE for row in range(batch)]  # the prompt of each row
    waiting = deque(range(batch, len(prompts)))
    found: dict[int, _Answer] = {}

    clock, doing, seconds = time.perf_counter(), "prefill", {"prefill": 0.0, "decode": 0.0}
    rows = _begin(generator, prompts, laws, asked)
    while True:
        done = to_host(rows[0].done)  # waits for the device
        ended = [row for row, prompt in enumerate(asked) if prompt != FREE and done[row]]
        if ended:
            state = read(rows[0])
            for row in ended:
                found[asked[row]] = _Answer(state.tokens[row], state.rounds[row], state.accepted[row])
                asked[row] = FREE
        before, clock = clock, time.perf_counter()
        seconds[doing] += clock - before
        free = [row for row, prompt in enumerate(asked) if prompt == FREE]
        if len(free) == batch and not waiting:
            break
        if free and waiting:
            doing = "prefill"
            for row in free[: len(waiting)]:
                asked[row] = waiting.popleft()
                other = _begin(generator, prompts, laws, [asked[row]] * dealt)
                with active(generator.mesh):
                    rows = _replace_row(rows, other, row)
        else:
            doing = "decode"
            rows = generator.advance(generator.drafter, *rows, ALL_ROUNDS, batch if waiting else 1), rows[1]
    return _together([found[prompt] for prompt in range(len(prompts))], seconds)


def _together(answers: Sequence[_Answer], seconds: Mapping[str, float]) -> Generation:
    """One generation of them all."""
    return Generation(
        tokens=[one.tokens for one in answers],
        rounds=[one.rounds for one in answers],
        accepted=np.stack([one.accepted for one in answers]),
        prefill_seconds=seconds["prefill"],
        decode_seconds=seconds["decode"],
        complete=True,
    )


def _begin(generator: Generator, prompts: Sequence[Sequence[int]], laws: Sampling, asked: Sequence[int]) -> Rows:
    """Rows that have read their prompts; a free one has read the first prompt and is done."""
    chosen = np.maximum(asked, 0)
    law = jax.tree.map(lambda x: x[chosen], laws)
    limits = jnp.where(np.array(asked) == FREE, 1, law.max_new_tokens)
    law = dataclasses.replace(law, max_new_tokens=limits)
    state = generator.start([prompts[prompt] for prompt in chosen], law)
    return state, law if generator.mesh is None else place_rows(generator.mesh, law)
