"""Tau of many drafts on the same answers, and a Markdown table of it.

    python -m experiments.replay --tasks=mt_bench/question.jsonl --drafts=eagle3:60/7/10,eagle3:16/5/4

Plain decoding writes every answer once for each temperature; what each drafting method would have needed for them is
then played back without the target's passes (`eagle_jax.evaluation.replay`), which takes a fraction of the time and
gives the numbers of decoding. A draft is METHOD or METHOD:NODES/DEPTH/TOP_K; above temperature 0 each is measured with
the target's noise and without. --output is a journal: what all cells share, then one JSON object a cell; cells that
are there already are not repeated, whatever device and commit they are of.
"""

import contextlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.drafters import Drafter
from eagle_jax.drafters.default_tree import TreeSize
from eagle_jax.evaluation import runner
from eagle_jax.evaluation.played import accept, decode_plain, record_answers
from eagle_jax.evaluation.replay import check_playable
from eagle_jax.evaluation.summary import markdown_table, tree_size
from eagle_jax.evaluation.tasks import Question, read_questions
from eagle_jax.files import write_whole
from eagle_jax.journal import Journal, Record
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import git_commit, weights_digest
from eagle_jax.types import Params
from experiments.cli import launch, methods
from experiments.cli.grid import digests

FLAGS = flags.FlagValues()
flags.DEFINE_string("target", "smollm2-135m", "as for experiments.generate", flag_values=FLAGS)
methods.define_flags(FLAGS, method=False)
flags.DEFINE_list("drafts", ["eagle3"], "METHOD or METHOD:NODES/DEPTH/TOP_K", flag_values=FLAGS)
flags.DEFINE_list("tasks", None, "files of questions; a task has the name of its file's folder", flag_values=FLAGS)
flags.DEFINE_list("temperatures", ["0", "0.3", "1"], "of the answers", flag_values=FLAGS)
flags.DEFINE_integer("num_prompts", 10, "questions from the start of each file", flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 128, "longest answer", flag_values=FLAGS)
flags.DEFINE_integer("batch", 10, "answers written and played back together", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of sampling", flag_values=FLAGS)
text = "file for tau by tree and temperature with shared noise, as tau.json beside a head: from it follows the tree "
text += "where no size is given. Without the target's noise nothing is then measured"
flags.DEFINE_string("tau_table", None, text, flag_values=FLAGS)
flags.DEFINE_string("output", None, "a file to append cells to, of the same target and length", flag_values=FLAGS)


class Draft(NamedTuple):
    """A drafting method under its name in --drafts."""

    label: str
    drafter: Drafter
    params: Params
    tree: dict[str, int | None]
    digest: str  # of the weights: cells of another head are other cells


def main() -> None:
    """Measure as the flags say."""
    if not FLAGS.tasks:
        raise ValueError("--tasks is needed: files of questions, separated by commas")
    if FLAGS.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {FLAGS.batch}")
    asked = [methods.read_draft(text, FLAGS) for text in FLAGS.drafts]
    temperatures = [float(text) for text in FLAGS.temperatures]
    questions = {pathlib.Path(path).parent.name: read_questions(path, FLAGS.num_prompts) for path in FLAGS.tasks}
    if len(questions) < len(FLAGS.tasks):
        raise ValueError(f"tasks are told apart by their folders, got {', '.join(FLAGS.tasks)}")
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, FLAGS.dtype, packed=True, progress=progress)
    drafts = []
    for label, name, settings in asked:
        drafter, params = methods.make_method(name, model, settings)
        check_playable(drafter)
        tree = tree_size(drafter, methods.children(name, settings))
        drafts.append(Draft(label, drafter, params, tree, weights_digest(params)))
    shared = {
        **{flag: getattr(FLAGS, flag) for flag in ("target", "dtype", "seed", "max_new_tokens")},
        "weights": weights_digest(model.params),
    }
    with Journal(FLAGS.output, shared) if FLAGS.output else contextlib.nullcontext() as journal:
        cells = Cells(journal)
        measure(model, questions, drafts, temperatures, cells)
    print(cells.table(questions, temperatures, drafts))
    if FLAGS.tau_table:
        write_tau_table(FLAGS.tau_table, questions, temperatures, drafts, cells)


def measure(
    model: LoadedModel,
    questions: Mapping[str, Sequence[Question]],
    drafts: Sequence[Draft],
    temperatures: Sequence[float],
    cells: "Cells",
) -> None:
    """Play back what the cells lack."""
    target = make_target(model.config)
    for task, some in questions.items():
        prompts = [runner.prompt_ids(model, question) for question in some]
        for temperature in temperatures:
            todo = [
                (draft, share)
                for draft in drafts
                for share in noises(temperature)
                if cells.find(task, some, temperature, draft, share) is None
            ]
            if not todo:
                continue
            way: dict[str, Any] = {
                "batch": FLAGS.batch,
                "temperature": temperature,
                "seed": FLAGS.seed,
                "max_new_tokens": FLAGS.max_new_tokens,
            }
            with launch.status(f"{task}, T = {temperature:g}: plain decoding"):
                answers = decode_plain(model, target, prompts, **way)
                said = record_answers(model, target, prompts, answers, batch=FLAGS.batch)
            for draft, share in todo:
                with launch.status(f"{task}, T = {temperature:g}: {draft.label}{'' if share else ', own top-k'}"):
                    found = accept(
                        model, target, draft.drafter, draft.params, prompts, answers, said, share_noise=share, **way
                    )
                how = {"device": jax.devices()[0].device_kind, "commit": git_commit()}  # may differ from cell to cell
                cells.add({**about(task, some, temperature, draft, share), **found, **how})


def noises(temperature: float) -> tuple[bool, ...]:
    """Whether the target's noise is shared: yes, and above temperature 0 also no."""
    return (True, False) if temperature > 0 and not FLAGS.tau_table else (True,)


def write_tau_table(
    path: str,
    questions: Mapping[str, Sequence[Question]],
    temperatures: Sequence[float],
    drafts: Sequence[Draft],
    cells: "Cells",
) -> None:
    """Write what a head ships with (`drafters.default_tree.read_tau_table`), all tasks pooled."""
    tau: dict[str, dict[str, float]] = {}
    for draft in drafts:
        size = TreeSize(*(draft.tree[name] or 0 for name in ("nodes", "depth", "top_k")))
        for temperature in temperatures:
            tokens, rounds = cells.pooled(questions, temperature, draft, share_noise=True)
            tau.setdefault(str(size), {})[f"{temperature:g}"] = round(tokens / rounds, 3)
    about = {"prompts": sum(map(len, questions.values())), "max_new_tokens": FLAGS.max_new_tokens, "dtype": FLAGS.dtype}
    write_whole(path, json.dumps({**about, "tau": tau}, indent=1) + "\n")


def about(
    task: str, questions: Sequence[Question], temperature: float, draft: Draft, share_noise: bool
) -> dict[str, Any]:
    """What tells a cell from all others of a file."""
    return {
        "draft": draft.label,
        "head": FLAGS.head,
        "draft_vocab": FLAGS.draft_vocab,
        "head_window": FLAGS.head_window,
        "weights": draft.digest,
        "tree": draft.tree,
        "share_noise": share_noise,
        "task": task,
        "questions": digests({task: dict(enumerate(questions))})[task],
        "temperature": temperature,
        "prompts": len(questions),
    }


def check_counts(row: Record) -> None:
    """Refuse a cell of earlier code, whose `tokens` leave the first of each answer out.

    Raises:
      ValueError: tau is not (tokens - prompts) / rounds.
    """
    tokens, prompts, rounds = row["tokens"], row["prompts"], row["rounds"]
    if rounds and not math.isclose(row["tau"], (tokens - prompts) / rounds):
        raise ValueError(
            f"--output={FLAGS.output}: a cell's tau is {row['tau']:.4f}, its {tokens} tokens of {prompts} answers in "
            f"{rounds} rounds make {(tokens - prompts) / rounds:.4f}: count the first token of each answer, too"
        )


class Cells:
    """What has been measured, in memory and, if asked for, in a journal."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._rows: list[Record] = list(journal.records) if journal else []
        for row in self._rows:
            check_counts(row)

    def find(self, *cell: Any) -> Record | None:
        """The cell that `about(*cell)` describes, if it is there."""
        wanted = about(*cell)
        return next((row for row in self._rows if wanted.items() <= row.items()), None)

    def add(self, row: Record) -> None:
        """Keep a cell."""
        self._rows.append(row)
        if self._journal:
            self._journal.add(row)

    def pooled(
        self, questions: Mapping[str, Sequence[Question]], temperature: float, draft: Draft, share_noise: bool
    ) -> tuple[int, int]:
        """Tokens after the first of each answer, and rounds, over all tasks that are there."""
        found = [self.find(task, some, temperature, draft, share_noise) for task, some in questions.items()]
        rows = [row for row in found if row]
        return sum(row["tokens"] - row["prompts"] for row in rows), sum(row["rounds"] for row in rows)

    def table(
        self, questions: Mapping[str, Sequence[Question]], temperatures: Sequence[float], drafts: Sequence[Draft]
    ) -> str:
        """Tau: a line for each draft, temperature and noise, a column for each task, and all tasks together."""
        lines = []
        for draft in drafts:
            for temperature in temperatures:
                for share in noises(temperature):
                    found = [self.find(task, some, temperature, draft, share) for task, some in questions.items()]
                    rows = [row for row in found if row]
                    tokens, rounds = self.pooled(questions, temperature, draft, share)
                    together = tokens / max(1, rounds)
                    noise = "-" if temperature == 0 else "shared" if share else "not shared"
                    lines.append([draft.label, f"{temperature:g}", noise, *(row["tau"] for row in rows), together])
        return markdown_table(["draft", "T", "noise", *questions, "all"], lines)


if __name__ == "__main__":
    launch.run(main, FLAGS)
