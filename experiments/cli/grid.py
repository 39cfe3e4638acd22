"""What an evaluation measures: the conversations of its blocks, and the rows that complete blocks give.

A block is a task at a temperature with a seed. Its conversations are held one at a time, by all methods side by side,
and once all of them are there, each method's make one row: a cell.
"""

import dataclasses
import hashlib
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from eagle_jax.evaluation.rows import cell_row, record_turn
from eagle_jax.evaluation.side_by_side import SideBySide
from eagle_jax.evaluation.summary import tree_size
from eagle_jax.evaluation.tasks import Question
from eagle_jax.journal import Record
from eagle_jax.provenance import git_commit, weights_digest
from experiments.cli import methods
from experiments.cli.method_entries import Entry

TURNS = {"first": 1, "all": sys.maxsize}
"""How many turns of a conversation are played."""


class Block(NamedTuple):
    """Cells that are measured together: all methods on a task at a temperature with a seed."""

    task: str
    temperature: float
    seed: int


class Key(NamedTuple):
    """A conversation of a block."""

    task: str
    temperature: float
    seed: int
    place: int  # of the question in its file


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is to be measured, ready to be."""

    config: ConfigDict
    entries: list[Entry]
    questions: dict[str, dict[int, Question]]  # by task, then by place in the file
    bench: SideBySide

    @property
    def blocks(self) -> list[Block]:
        """In the order of measuring: a temperature is complete before the next one begins."""
        config = self.config
        laws = itertools.product(config.temperatures, config.seeds)
        return [Block(task, *law) for law in laws for task in config.tasks]

    @property
    def keys(self) -> list[Key]:
        """All conversations to be held."""
        return [Key(*block, place) for block in self.blocks for place in self.questions[block.task]]

    @property
    def turns(self) -> int:
        """The most turns of a conversation."""
        return TURNS[self.config.turns]

    def settings(self) -> Record:
        """What decides the rows; the methods by label, so that a difference has a short name."""
        config = self.config.to_dict()
        given = {entry["label"]: entry for entry in config["methods"]}
        # Sizes that were chosen for this machine: rows of another tree would be rows of another method.
        chosen = {
            entry.label: self.bench.contestants[entry.label].drafter.nodes
            for entry in self.entries
            if entry.method in ("eagle2", "eagle3") and not {"nodes", "depth", "top_k"} & given[entry.label].keys()
        }
        return {
            **({"chosen_nodes": chosen} if chosen else {}),
            **{name: value for name, value in config.items() if name != "methods"},
            "methods": given,
            "questions": digests(self.questions),
            "weights": {
                "target": weights_digest(self.bench.model.params),
                **{label: weights_digest(one.params) for label, one in self.bench.contestants.items()},
            },
            "device": jax.devices()[0].device_kind,
        }

    def measure(self, key: Key) -> Record:
        """Hold one conversation."""
        question = self.questions[key.task][key.place]
        labels = [entry.label for entry in self.entries if entry.runs_at(key.temperature)]
        law: dict[str, Any] = {"temperature": key.temperature, "seed": key.seed}
        played = self.bench.play(question, key.place, turns=self.turns, labels=labels, **law)
        return {
            "key": list(key),
            "question_id": question.question_id,
            "planned": min(self.turns, len(question.turns)),
            "turns": [record_turn(self.bench, turn, **law) for turn in played],
            "commit": git_commit(),
        }

    def rows(self, records: Sequence[Record]) -> list[Record]:
        """One for each method of every block that is complete."""
        found = {Key(*record["key"]): record for record in records}
        rows = []
        for block in self.blocks:
            keys = [Key(*block, place) for place in self.questions[block.task]]
            if all(key in found for key in keys):
                chosen = [found[key] for key in keys]
                rows += [
                    cell_row(self.about(block, entry), entry.label, chosen)
                    for entry in self.entries
                    if entry.runs_at(block.temperature)
                ]
        return rows

    def about(self, block: Block, entry: Entry) -> Record:
        """The head of a row."""
        return {
            "target": self.config.target,
            "method": entry.method,
            "label": entry.label,
            **block._asdict(),
            "dtype": self.config.dtype,
            "device": jax.devices()[0].device_kind,
            "tree": tree_size(
                self.bench.contestants[entry.label].drafter, methods.children(entry.method, entry.settings)
            ),
            "rule": entry.rule,
            "share_noise": entry.share_noise,
            "give_up": entry.give_up,
            "max_new_tokens": self.config.max_new_tokens,
        }


def digests(questions: Mapping[str, Mapping[int, Question]]) -> dict[str, str]:
    """A hash of the questions of each task."""
    texts = {task: json.dumps({n: one.turns for n, one in found.items()}) for task, found in questions.items()}
    return {task: hashlib.sha256(text.encode()).hexdigest() for task, text in texts.items()}
