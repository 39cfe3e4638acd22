"""The text of a run of `experiments.train`: conversations as packed rows, to train on and held out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.training.conversations import read_corpus
from eagle_jax.training.data import Lookup, Packing, RowLookup, Trimmed, assemble_row, pack, trim
from eagle_jax.training.split import split_by_prompt
from experiments.cli import launch


@dataclasses.dataclass(frozen=True)
class TrainingText:
    """Text ready for training."""

    text: Trimmed
    training: Packing
    heldout: Packing | None


def read_training_text(model: LoadedModel, config: Any, paths: Sequence[str], *, skip_broken: bool) -> TrainingText:
    """Conversations to packed rows, some of them held out.

    Raises:
      ValueError: broken lines, or shares and sizes that leave nothing.
    """

    def encode_plain(text: str) -> list[int]:
        return model.tokenizer.encode(text, add_special_tokens=False)

    with launch.status(f"Reading {', '.join(paths)}"):
        corpus = read_corpus(
            paths,
            model.tokenizer,
            encode_plain=encode_plain,
            skip_broken=skip_broken,
            cut_loops=config.data.cut_loops,
        )
    if corpus.broken:
        launch.say(f"left out {len(corpus.broken)} broken lines, the first: {corpus.broken[0]}")
    if corpus.num_loops:
        launch.say(f"cut {corpus.num_loops} answers where they begin to loop: {corpus.num_loop_tokens} tokens less")
    length, slots = config.data.length, config.data.slots
    text = trim(corpus.examples, length, slots)
    training, heldout = split_by_prompt(text.examples, config.data.heldout, config.seed)
    if not 0 < config.data.share <= 1:
        raise ValueError(f"data.share must be above 0 and at most 1, got {config.data.share}")
    training = training[: max(1, round(config.data.share * len(training)))]
    return TrainingText(
        text,
        pack(text.examples, length, slots, documents=training, seed=config.seed),
        pack(text.examples, length, slots, documents=heldout) if len(heldout) else None,
    )


def heldout_rows(
    material: TrainingText, batch: int, lookup: Lookup | None = None, of_row: RowLookup | None = None
) -> list[dict[str, np.ndarray]]:
    """Rows that are never trained on, in batches, with features as `assemble_row` finds them."""
    packing = material.heldout
    if packing is None:
        return []
    documents = [*packing.rows, *[[]] * (-len(packing.rows) % batch)]
    rows = [assemble_row(packing, some, lookup, of_row) for some in documents]
    if lookup or of_row:  # an empty row has no fields of features yet
        rows = [{name: row.get(name, np.zeros_like(rows[0][name])) for name in rows[0]} for row in rows]
    return [
        {name: np.stack([row[name] for row in rows[start : start + batch]]) for name in rows[0]}
        for start in range(0, len(rows), batch)
    ]
