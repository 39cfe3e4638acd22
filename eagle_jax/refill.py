"""More prompts than rows: a row whose answer has ended takes the next prompt, so the batch stays full.

    row 0   [prompt 0 ......][prompt 3 ...............
    row 1   [prompt 1 ..................][prompt 4 ...      the shapes never change: one program for prompts,
    row 2   [prompt 2 ...][prompt 5 .................       one for rounds, one that replaces a row

Every prompt has its own noise (`sequence`), so its answer does not depend on the row, the batch or the company. The
device runs rounds until some row ends; only then does the host look.
"""

import copy
import functools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from eagle_jax.decode import DecodeState
from eagle_jax.generate import ALL_ROUNDS, Generation, Generator, read
from eagle_jax.sampling import make_sampling
from eagle_jax.sharding import DATA, active, keep_rows, to_host
from eagle_jax.types import Sampling

Rows = tuple[DecodeState, Sampling]
"""All that a row is made of; every array has the batch in front."""


@functools.partial(jax.jit, donate_argnums=0)
def _replace_row(rows: Rows, other: Rows, row: jax.Array | int) -> Rows:
    """Row `row` becomes the first one of `other`."""
    return keep_rows(jax.tree.map(lambda old, new: old.at[row].set(new[0]), rows, other))


def write_all(generator: Generator, prompts: Sequence[Sequence[int]], *, batch: int, **sampling: Any) -> Generation:
    """The complete answers to any number of prompts, at most `batch` of them under way at a time.

    Args:
      generator: target and drafter; its `give_up` is not looked at, for it judges batches that begin together.
      prompts: token ids.
      batch: rows that decode together; with a mesh a multiple of its axis `data`.
      **sampling: as `sampling.make_sampling` takes it, lists with one entry a prompt.

    Returns:
      The answers in the order of the prompts. `prefill_seconds` holds the time in which prompts were read, while the
      other rows waited.

    Raises:
      ValueError: a batch below 1, or what `Generator.generate` refuses.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    laws = make_sampling(len(prompts), **sampling)
    generator = copy.copy(generator)
    generator.capacity = generator.slots(prompts, laws)
    batch = min(batch, len(prompts))
    waiting = deque(range(batch, len(prompts)))
    asked = list(range(batch))  # the prompt of each row, -1 once none is left
    found: dict[int, Generation] = {}

    clock = time.perf_counter()
    rows = _begin(generator, prompts, laws, asked)
    prefill_seconds, decode_seconds = _since(clock, rows), 0.0
    while True:
        done = to_host(rows[0].done)
        for row in np.flatnonzero(done & (np.array(asked) >= 0)).tolist():
            found[asked[row]] = read(jax.tree.map(lambda x, row=row: x[row : row + 1], rows[0]))
            asked[row] = -1
        free = [row for row, prompt in enumerate(asked) if prompt < 0]
        if len(free) == batch and not waiting:
            break
        clock = time.perf_counter()
        refilled = [(row, waiting.popleft()) for row in free[: len(waiting)]]
        for row, prompt in refilled:
            asked[row] = prompt
            copies = 1 if generator.mesh is None else generator.mesh.shape[DATA]
            other = _begin(generator, prompts, laws, [prompt] * copies)
            with active(generator.mesh):
                rows = _replace_row(rows, other, row)
        if refilled:  # an answer may end with its first token
            prefill_seconds += _since(clock, rows)
            continue
        live = sum(prompt >= 0 for prompt in asked)
        rows = generator.advance(generator.drafter, *rows, ALL_ROUNDS, live if waiting else 1), rows[1]
        decode_seconds += _since(clock, rows)
    ordered = [found[prompt] for prompt in range(len(prompts))]
    return Generation(
        tokens=[one.tokens[0] for one in ordered],
        rounds=[one.rounds[0] for one in ordered],
        accepted=np.concatenate([one.accepted for one in ordered]),
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        complete=True,
    )


def _begin(generator: Generator, prompts: Sequence[Sequence[int]], laws: Sampling, chosen: Sequence[int]) -> Rows:
    """Rows that have read their prompts."""
    law = jax.tree.map(lambda x: x[np.array(chosen)], laws)
    return generator.start([prompts[prompt] for prompt in chosen], law), law


def _since(clock: float, rows: Rows) -> float:
    """Seconds until the rows are there."""
    jax.block_until_ready(rows)
    return time.perf_counter() - clock
