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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.decode import DecodeState, keep_state
from eagle_jax.generate import ALL_ROUNDS, Generation, Generator, read
from eagle_jax.sampling import make_sampling
from eagle_jax.sharding import DATA, Split, active, check_batch, keep_rows, place_rows, to_host
from eagle_jax.types import Sampling

Rows = tuple[DecodeState, Sampling]
"""All that a row is made of; every array has the batch in front."""

FREE = -1
"""In the place of a prompt: the row answers none."""


class Answer(NamedTuple):
    """One row of a `Generation`."""

    tokens: list[int]
    rounds: int
    accepted: np.ndarray  # i32[P]


class Look(NamedTuple):
    """What the host finds where rows have ended."""

    answers: Mapping[int, Answer]  # the new ones, by the place of their prompt
    prefill_seconds: float  # so far: prompts were read, while the other rows waited
    decode_seconds: float  # so far: all other time that passed


@functools.partial(jax.jit, donate_argnums=0, static_argnums=4)
def _replace_row(rows: Rows, other: Rows, row: jax.Array | int, place: jax.Array | int, split: Split | None) -> Rows:
    """Row `row` becomes row `place` of `other`."""

    def replace(old: jax.Array, new: jax.Array) -> jax.Array:
        # `new[place]` would send all rows of a mesh to every device; this sends one.
        return old.at[row].set(jnp.take(new, jnp.asarray(place)[None], axis=0, mode="clip")[0])

    state, law = jax.tree.map(replace, rows, other)
    return keep_state(state, split), keep_rows(law)


def write_all(generator: Generator, prompts: Sequence[Sequence[int]], *, batch: int, **sampling: Any) -> Generation:
    """The complete answers to any number of prompts, in their order; arguments and errors as `write_each`.

    `prefill_seconds` holds the time in which prompts were read; with `decode_seconds` it is all the time that passed.
    """
    found: dict[int, Answer] = {}
    for look in write_each(generator, prompts, batch=batch, **sampling):
        found.update(look.answers)
    answers = [found[prompt] for prompt in range(len(prompts))]
    return Generation(
        tokens=[one.tokens for one in answers],
        rounds=[one.rounds for one in answers],
        accepted=np.stack([one.accepted for one in answers]),
        prefill_seconds=look.prefill_seconds,
        decode_seconds=look.decode_seconds,
        complete=True,
    )


def write_each(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    *,
    batch: int,
    enough: Callable[[], bool] = lambda: False,
    **sampling: Any,
) -> Iterator[Look]:
    """Yield the complete answers to any number of prompts as they end, `batch` of them at most under way.

    Args:
      generator: target and drafter; a `GivingUp` drafts to the end here, for it judges batches that begin together.
      prompts: token ids, begun in this order; there may be fewer than `batch`.
      batch: rows that decode together; with a mesh a multiple of its axis `data`.
      enough: asked wherever a row could take the next prompt; once it says yes, the answers under way are the last.
      **sampling: as `sampling.make_sampling` takes it, lists with one entry a prompt.

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

    clock, doing, seconds = time.perf_counter(), "prefill", {"prefill": 0.0, "decode": 0.0}
    rows = _begin(generator, prompts, laws, asked)
    while True:
        done = to_host(rows[0].done)  # waits for the device
        ended = [row for row, prompt in enumerate(asked) if prompt != FREE and done[row]]
        state = read(rows[0]) if ended else None
        clock, before = time.perf_counter(), clock
        seconds[doing] += clock - before
        if state is not None:
            found = {asked[row]: Answer(state.tokens[row], state.rounds[row], state.accepted[row]) for row in ended}
            asked = [FREE if row in ended else prompt for row, prompt in enumerate(asked)]
            yield Look(found, seconds["prefill"], seconds["decode"])
            clock = time.perf_counter()  # the caller's time is not ours
        free = [row for row, prompt in enumerate(asked) if prompt == FREE]
        if free and waiting and enough():
            waiting.clear()
        if len(free) == batch and not waiting:
            return
        if free and waiting:
            doing = "prefill"
            for start in range(0, min(len(free), len(waiting)), dealt):
                taken = {row: waiting.popleft() for row in free[start : start + dealt] if waiting}
                asked = [taken.get(row, prompt) for row, prompt in enumerate(asked)]
                rows = _take_over(generator, prompts, laws, rows, taken, dealt)
        else:
            doing = "decode"
            rows = generator.advance(generator.drafter, *rows, ALL_ROUNDS, batch if waiting else 1), rows[1]


def _take_over(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    laws: Sampling,
    rows: Rows,
    taken: Mapping[int, int],
    dealt: int,
) -> Rows:
    """Rows read the prompts of `taken`, at most `dealt` of them: so many are read together, if need be one repeated."""
    new = list(taken.values())
    other = _begin(generator, prompts, laws, new + new[:1] * (dealt - len(new)))
    with active(generator.mesh):
        for place, row in enumerate(taken):
            rows = _replace_row(rows, other, row, place, generator.split)
    return rows


def _begin(generator: Generator, prompts: Sequence[Sequence[int]], laws: Sampling, asked: Sequence[int]) -> Rows:
    """Rows that have read their prompts; a free one has read the first prompt and is done."""
    chosen = np.maximum(asked, 0)
    law = jax.tree.map(lambda x: x[chosen], laws)
    limits = jnp.where(np.array(asked) == FREE, 1, law.max_new_tokens)
    law = dataclasses.replace(law, max_new_tokens=limits)
    state = generator.start([prompts[prompt] for prompt in chosen], law)
    return state, law if generator.mesh is None else place_rows(generator.mesh, law)
