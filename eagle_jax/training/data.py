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

from eagle_jax.training.conversations import Example
from eagle_jax.training.records import NO_SLOT

WINDOW = 4096
"""Documents packed at a time: enough for full rows, few enough to stay fast on millions."""

EPOCHS = 1 << 20
"""More than any run takes; an endless data set would have a length that grain cannot count."""

PackedRow = dict[str, np.ndarray]
"""One packed row by the field names of `Batch`, and of `Features` where they are cached."""

Lookup = Callable[[int], dict[str, np.ndarray]]
"""document -> its features by field name, each [n, ...]"""

RowLookup = Callable[[Sequence[int], PackedRow], PackedRow]
"""documents of a row, the row -> its features by field name, each [T, ...]"""


@dataclasses.dataclass(frozen=True)
class Trimmed:
    """Documents that fit into a row."""

    examples: list[Example]
    num_cut: int  # documents that lost their end
    num_dropped: int  # documents with no supervised token left


@dataclasses.dataclass(frozen=True)
class Packing:
    """Documents and the rows they share."""

    examples: Sequence[Example]
    rows: list[list[int]]  # documents of each row
    length: int  # T
    num_slots: int  # R

    @property
    def num_supervised(self) -> int:
        """Tokens that carry a loss in one epoch."""
        return sum(len(self.examples[document].slots) for row in self.rows for document in row)

    @property
    def fill(self) -> tuple[float, float]:
        """Shares of tokens and of slots that are in use."""
        tokens = sum(len(self.examples[document].tokens) for row in self.rows for document in row)
        return tokens / (len(self.rows) * self.length), self.num_supervised / (len(self.rows) * self.num_slots)


def trim(examples: Sequence[Example], length: int, num_slots: int | None = None) -> Trimmed:
    """Cut documents to what a row holds, and drop those of which nothing supervised is left.

    Args:
      examples: documents.
      length: tokens a row.
      num_slots: slots a row that can carry a loss; None: as many as tokens.

    Raises:
      ValueError: capacities below 3 and 1, or no document left.
    """
    num_slots = length if num_slots is None else num_slots
    if length < 3 or num_slots < 1:
        raise ValueError(f"a row needs at least 3 tokens and 1 slot, got {length} and {num_slots}")
    trimmed, num_cut = [], 0
    for example in examples:
        slots = example.slots
        # The first slot too many predicts the token two after it.
        end = length if len(slots) <= num_slots else min(length, int(slots[num_slots]) + 2)
        cut = example._replace(tokens=example.tokens[:end], supervised=example.supervised[:end])
        if len(cut.slots):
            trimmed.append(cut)
            num_cut += end < len(example.tokens)
    if not trimmed:
        raise ValueError(f"none of {len(examples)} documents has a supervised token within the first {length}")
    return Trimmed(trimmed, num_cut, len(examples) - len(trimmed))


def pack(
    examples: Sequence[Example],
    length: int,
    num_slots: int | None = None,
    *,
    documents: Sequence[int] | np.ndarray | None = None,
    seed: int = 0,
) -> Packing:
    """Pack documents, longest first, each into the first row with room.

    Args:
      examples: trimmed documents.
      length: tokens a row.
      num_slots: slots a row that can carry a loss; None: as many as tokens.
      documents: indices of those to pack; None: all.
      seed: decides which documents are packed together.

    Raises:
      ValueError: a document that does not fit into a row.
    """
    num_slots = length if num_slots is None else num_slots
    chosen = np.arange(len(examples)) if documents is None else np.asarray(documents, np.int64)
    for document in chosen:
        tokens, slots = len(examples[document].tokens), len(examples[document].slots)
        if tokens > length or slots > num_slots:
            raise ValueError(
                f"document {document} has {tokens} tokens and {slots} slots, a row {length} and {num_slots}"
            )
    order = np.random.default_rng(seed).permutation(chosen)
    rows: list[list[int]] = []
    for start in range(0, len(order), WINDOW):
        rows += _pack_window(examples, order[start : start + WINDOW], length, num_slots)
    return Packing(examples, rows, length, num_slots)


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


def assemble_row(
    packing: Packing, documents: Sequence[int], lookup: Lookup | None = None, of_row: RowLookup | None = None
) -> PackedRow:
    """One packed row: the fields of `Batch`, and those that `lookup` finds for each document or `of_row` for all."""
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
            features = row.setdefault(name, np.zeros((length, *values.shape[1:]), values.dtype))
            features[place] = values[: len(example.tokens)]
        start, used = place.stop, used + len(slots)
    if of_row and documents:
        row |= of_row(documents, row)
    return row


def make_iterator(
    packing: Packing,
    batch: int,
    *,
    seed: int,
    lookup: Lookup | None = None,
    of_row: RowLookup | None = None,
    prefetch: int = 4,
) -> grain.DatasetIterator:
    """Batches without end of `batch` rows, dicts of arrays [batch, ...]; every epoch in another order.

    Args:
      packing: the rows.
      batch: how many at a time.
      seed: decides the order.
      lookup, of_row: as `assemble_row` takes them. `of_row` may compute, so nothing is read ahead then.
      prefetch: batches that are read ahead.

    Raises:
      ValueError: a batch below 1.
    """
    if batch < 1:
        raise ValueError(f"a batch needs at least 1 row, got {batch}")
    rows: Any = grain.MapDataset.source(packing.rows).seed(seed).shuffle().repeat(EPOCHS)
    rows = rows.map(lambda documents: assemble_row(packing, documents, lookup, of_row)).batch(batch)
    ahead = (0, 0) if of_row else (1, prefetch)
    options = grain.ReadOptions(num_threads=ahead[0], prefetch_buffer_size=ahead[1])
    return iter(rows.to_iter_dataset(options))
