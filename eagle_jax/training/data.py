"""Documents to batches: cut, packed into rows of one length, shuffled, read by grain.

A row has two capacities, tokens and slots that carry a loss, so that both shapes are static and no supervised token is
dropped silently. Which documents share a row is decided once; every epoch shuffles the rows anew. The iterator's state
is a small dict that goes beside the train state, and gives the very same batches again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from eagle_jax.training.batch import NO_SLOT
from eagle_jax.training.conversations import Example

WINDOW = 4096
"""Documents packed at a time: enough for full rows, few enough to stay fast on millions."""

Row = dict[str, np.ndarray]
"""One packed row by the field names of `Batch`, and of `Features` where they are cached."""

Lookup = Callable[[int], dict[str, np.ndarray]]
"""document -> its features by field name, each [n, ...]"""


@dataclasses.dataclass(frozen=True)
class Packing:
    """Documents and the rows they share."""

    examples: list[Example]
    rows: list[list[int]]  # documents of each row
    length: int  # T
    num_slots: int  # R
    num_cut: int  # documents that lost their end
    num_dropped: int  # documents with no supervised token left

    @property
    def num_supervised(self) -> int:
        """Tokens that carry a loss in one epoch."""
        return sum(len(example.slots) for example in self.examples)

    @property
    def fill(self) -> tuple[float, float]:
        """Shares of tokens and of slots that are in use."""
        tokens = sum(len(example.tokens) for example in self.examples)
        return tokens / (len(self.rows) * self.length), self.num_supervised / (len(self.rows) * self.num_slots)


def pack(examples: Sequence[Example], length: int, num_slots: int | None = None, *, seed: int = 0) -> Packing:
    """Cut documents to the capacities and pack them, longest first, into the first row with room.

    Args:
      examples: documents.
      length: tokens a row.
      num_slots: slots a row that can carry a loss; None: as many as tokens.
      seed: decides which documents are packed together.

    Raises:
      ValueError: capacities below 3 and 1, or no document with a supervised token inside them.
    """
    num_slots = length if num_slots is None else num_slots
    if length < 3 or num_slots < 1:
        raise ValueError(f"a row needs at least 3 tokens and 1 slot, got {length} and {num_slots}")
    cut = [_cut(example, length, num_slots) for example in examples]
    kept = [example for example in cut if len(example.slots)]
    if not kept:
        raise ValueError(f"none of {len(examples)} documents has a supervised token within the first {length}")
    order = np.random.default_rng(seed).permutation(len(kept))
    rows: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        rows += _pack_window(kept, order[start : start + WINDOW], length, num_slots)
    shortened = sum(
        len(new.tokens) < len(old.tokens) and len(new.slots) > 0 for new, old in zip(cut, examples, strict=True)
    )
    return Packing(kept, rows, length, num_slots, shortened, len(examples) - len(kept))


def _cut(example: Example, length: int, num_slots: int) -> Example:
    slots = example.slots
    if len(slots) > num_slots:
        length = min(length, int(slots[num_slots]) + 2)  # the token that the first slot too many speaks of
    return Example(example.tokens[:length], example.supervised[:length])


def _pack_window(examples: Sequence[Example], order: np.ndarray, length: int, num_slots: int) -> list[list[int]]:
    sizes = {int(index): (len(examples[index].tokens), len(examples[index].slots)) for index in order}
    rows: list[list[int]] = []
    room = np.zeros((len(order), 2), np.int64)
    for index in sorted(sizes, key=lambda index: -sizes[index][0]):
        fits = (room[: len(rows)] >= sizes[index]).all(1)
        place = int(fits.argmax()) if fits.any() else len(rows)
        if place == len(rows):
            rows.append([])
            room[place] = length, num_slots
        rows[place].append(index)
        room[place] -= sizes[index]
    return rows


def assemble(packing: Packing, documents: Sequence[int], lookup: Lookup | None = None) -> Row:
    """One packed row: the fields of `Batch`, and those that `lookup` finds for each document."""
    length = packing.length
    row = {
        "tokens": np.zeros(length, np.int32),
        "segments": np.zeros(length, np.int32),
        "positions": np.zeros(length, np.int32),
        "supervised": np.zeros(length, bool),
        "slots": np.full(packing.num_slots, NO_SLOT, np.int32),
    }
    start = used = 0
    for number, document in enumerate(documents, start=1):
        example = packing.examples[document]
        place = slice(start, start + len(example.tokens))
        row["tokens"][place], row["supervised"][place] = example.tokens, example.supervised
        row["segments"][place], row["positions"][place] = number, np.arange(len(example.tokens))
        slots = example.slots
        row["slots"][used : used + len(slots)] = start + slots
        for name, values in (lookup(document) if lookup else {}).items():
            whole = row.setdefault(name, np.zeros((length, *values.shape[1:]), values.dtype))
            whole[place] = values[: len(example.tokens)]
        start, used = place.stop, used + len(slots)
    return row


def make_iterator(
    packing: Packing, batch: int, *, seed: int, lookup: Lookup | None = None, prefetch: int = 4
) -> grain.DatasetIterator:
    """Endless batches of `batch` rows, dicts of arrays [batch, ...]; every epoch in another order.

    Raises:
      ValueError: a batch below 1.
    """
    if batch < 1:
        raise ValueError(f"a batch needs at least 1 row, got {batch}")
    rows: Any = grain.MapDataset.source(packing.rows).seed(seed).shuffle().repeat()
    rows = rows.map(lambda documents: assemble(packing, documents, lookup)).batch(batch)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    return iter(rows.to_iter_dataset(options))
