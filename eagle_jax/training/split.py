"""Which documents are trained on and which are held out: all answers to one prompt are on one side.

A prompt may be answered several times, at two temperatures say. A held-out answer whose sibling is trained on would
measure memory. Where every prompt is answered once this is a random split of the documents.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from eagle_jax.training.conversations import Example


class Split(NamedTuple):
    """Documents by index, each side in random order with the answers of a prompt next to each other."""

    training: np.ndarray  # i64[...]
    heldout: np.ndarray  # i64[...]


def split_by_prompt(examples: Sequence[Example], num_heldout: int, seed: int) -> Split:
    """Hold out random prompts until they have at least `num_heldout` documents.

    Args:
      examples: the documents.
      num_heldout: documents that are never trained on; 0 holds out none.
      seed: decides which.

    Raises:
      ValueError: nothing would be left to train on.
    """
    groups = group_by_prompt(examples)
    refusal = f"cannot hold out {num_heldout} of {len(examples)} conversations"
    if not 0 <= num_heldout < len(examples):
        raise ValueError(refusal)
    heldout: list[int] = []
    training: list[int] = []
    for index in np.random.default_rng(seed).permutation(len(groups)):
        (heldout if len(heldout) < num_heldout else training).extend(groups[index])
    if not training:
        raise ValueError(f"{refusal}: they answer {len(groups)} prompts, and the answers to one stay together")
    return Split(np.asarray(training, np.int64), np.asarray(heldout, np.int64))


def group_by_prompt(examples: Sequence[Example]) -> list[list[int]]:
    """Documents that share a key of their prompts, directly or through others, in the order of the first of each."""
    first: dict[str, int] = {}  # key -> a document that has it
    parent = list(range(len(examples)))  # towards the first document of the group

    def root(document: int) -> int:
        while parent[document] != document:
            parent[document] = parent[parent[document]]
            document = parent[document]
        return document

    for document, example in enumerate(examples):
        for key in example.prompt_keys:
            one, other = sorted((root(first.setdefault(key, document)), root(document)))
            parent[other] = one
    groups: dict[int, list[int]] = {}
    for document in range(len(examples)):
        groups.setdefault(root(document), []).append(document)
    return list(groups.values())
