"""What an evaluation measures: groups of conversations, block by block, and the rows that complete blocks give.

A block is a task at a temperature with a seed. Its conversations are played in groups of `batch`, by all methods, and
once all of them are there, each method's make one row: a cell.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.evaluation.acceptance import Acceptance
from eagle_jax.evaluation.rows import TIMED, cell_row, record_turn
from eagle_jax.evaluation.side_by_side import SideBySide
from eagle_jax.evaluation.summary import tree_size
from eagle_jax.evaluation.tasks import Question, read_tasks
from eagle_jax.evaluation.turns import Bench, play
from eagle_jax.generator import Generator
from eagle_jax.journal import Record
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import device_kind, git_commit, texts_digest, weights_digest
from experiments.cli import launch
from experiments.cli.evaluation_config import EvaluationConfig
from experiments.cli.method_entries import MethodEntry, build, read_entries, with_trees

Questions = dict[str, dict[int, Question]]
"""By task, then by place in the file."""


class Block(NamedTuple):
    """Cells that are measured together: all methods on a task at a temperature with a seed."""

    task: str
    temperature: float
    seed: int


class Key(NamedTuple):
    """A group of conversations of a block."""

    task: str
    temperature: float
    seed: int
    place: int  # of its first question in the file


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is to be measured, ready to be."""

    config: EvaluationConfig
    entries: list[MethodEntry]
    questions: Questions
    model: LoadedModel
    methods: dict[str, Generator]
    chosen_trees: list[str]  # labels of the methods whose trees were chosen for this machine
    bench: Bench

    @property
    def blocks(self) -> list[Block]:
        """In the order of measuring: a temperature is complete before the next one begins."""
        config = self.config
        settings = itertools.product(config.temperatures, config.seeds)
        return [Block(task, *one) for one in settings for task in config.tasks]

    def groups(self, block: Block) -> Iterator[list[int]]:
        """Places of the conversations that are answered together."""
        places = list(self.questions[block.task])
        for start in range(0, len(places), self.config.batch):
            yield places[start : start + self.config.batch]

    @functools.cached_property
    def keys(self) -> dict[Key, list[int]]:
        """All groups to be measured, with the places of their questions."""
        return {Key(*block, group[0]): group for block in self.blocks for group in self.groups(block)}

    def settings(self) -> Record:
        """What decides the rows; methods and weights by label, for others may join them later."""
        given = {entry["label"]: dict(entry) for entry in self.config.methods}
        # Sizes that were chosen for this machine: rows of another tree would be rows of another method.
        chosen = {label: self.methods[label].drafter.nodes for label in self.chosen_trees}
        files = {entry.label: own for entry in self.entries if (own := entry.files(self.config.target))}
        return {
            **({"chosen_nodes": chosen} if chosen else {}),
            **self.config.identity(),
            "methods": given,
            **({"files": files} if files else {}),
            "questions": question_digests(self.questions),
            "weights": {
                "target": weights_digest(self.model.params),
                "plain": weights_digest(()),
                **{label: weights_digest(one.drafter_params) for label, one in self.methods.items()},
            },
            "device": device_kind(),
        }

    def missing(self, records: Sequence[Record]) -> dict[Key, list[str]]:
        """The groups that some method has not answered yet, with the labels of these methods."""
        done: dict[Key, set[str]] = {}
        for record in records:
            for turn in record["turns"]:
                done.setdefault(Key(*record["key"]), set()).update(turn["answers"])
        wanted = {
            key: [
                one.label for one in self.entries if one.runs_at(key.temperature) and one.label not in done.get(key, ())
            ]
            for key in self.keys
        }
        return {key: labels for key, labels in wanted.items() if labels}

    def measure(self, key: Key, labels: Sequence[str]) -> Record:
        """Play one group of conversations."""
        places = self.keys[key]
        questions = [self.questions[key.task][place] for place in places]
        sampling = self.config.sampling(key.temperature, key.seed)
        turns = play(self.bench, questions, places, turns=self.config.num_turns, sampling=sampling, labels=labels)
        same_text = [label for label in labels if self.methods[label].rule == "match"]
        target = self.bench.target
        return {
            "key": list(key),
            "question_id": questions[0].question_id,
            "conversations": len(questions),
            "planned": sum(min(self.config.num_turns, len(question.turns)) for question in questions),
            "turns": [record_turn(target, self.model.params, turn, sampling, same_text=same_text) for turn in turns],
            "commit": git_commit(),
        }

    def rows(self, records: Sequence[Record]) -> list[Record]:
        """One for each method of every block that is complete."""
        answered: dict[tuple[Key, str], Record] = {}
        for record in records:
            for turn in record["turns"]:
                answered |= {(Key(*record["key"]), label): record for label in turn["answers"]}
        rows = []
        for block in self.blocks:
            keys = [Key(*block, group[0]) for group in self.groups(block)]
            for entry in self.entries:
                if entry.runs_at(block.temperature) and all((key, entry.label) in answered for key in keys):
                    own = [answered[key, entry.label] for key in keys]
                    rows.append(cell_row(self.about(block, entry), entry.label, own))
        return rows

    def about(self, block: Block, entry: MethodEntry) -> Record:
        """The head of a row."""
        config = self.config
        return {
            "target": config.target,
            "method": entry.method,
            "label": entry.label,
            **block._asdict(),
            "top_k": config.top_k,
            "top_p": config.top_p,
            "min_p": config.min_p,
            "dtype": config.dtype,
            "device": device_kind(),
            "mode": config.mode,
            "batch": config.batch,
            "tree": tree_size(self.methods[entry.label].drafter),
            "rule": entry.rule,
            "share_noise": entry.share_noise,
            "give_up": entry.give_up,
            "max_new_tokens": config.max_new_tokens,
        }


def prepare_evaluation(config: EvaluationConfig, data: str) -> Evaluation:
    """Read the questions, load the target and build the methods.

    Raises:
      ValueError: a question file, a method or a target that cannot be used, in one line.
    """
    entries = read_entries(config.methods, config.dtype, config.temperatures)
    questions = read_tasks(data, config.tasks, config.num_prompts, spread=config.spread)
    with launch.status(f"Loading {config.target}") as progress:
        model = load_target(config.target, config.dtype, packed=True, progress=progress)
    chosen_trees = [entry.label for entry in entries if entry.tree_is_chosen]
    entries = with_trees(entries, model, config.temperatures, config.batch)
    target = make_target(model.config)
    methods = build(entries, model, target)
    bench: Bench
    if config.mode == TIMED:
        sizes = {"max_new_tokens": config.max_new_tokens, "batch": config.batch, "warm_ups": config.warm_ups}
        bench = SideBySide(model, target, methods, **sizes)
    else:
        bench = Acceptance(model, target, methods, max_new_tokens=config.max_new_tokens, batch=config.batch)
    for some in questions.values():
        bench.check([*some.values()])
    return Evaluation(config, entries, questions, model, methods, chosen_trees, bench)


def question_digests(questions: Mapping[str, Mapping[int, Question]]) -> dict[str, str]:
    """A hash of the questions of each task."""
    return {task: texts_digest({n: one.turns for n, one in some.items()}) for task, some in questions.items()}
