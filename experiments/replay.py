"""Tau of many drafts on the same answers, and a Markdown table of it.

    python -m experiments.replay --tasks=mt_bench/question.jsonl --drafts=eagle3:60/7/10,eagle3:16/5/4

Plain decoding writes every answer once for each temperature; what each drafting method would have needed for them is
then played back without the target's passes (`eagle_jax.evaluation.replay`), which takes a fraction of the time and
gives the numbers of decoding. A draft is METHOD or METHOD:NODES/DEPTH/TOP_K; above temperature 0 each is measured with
the target's noise and without. --output gets one JSON object a cell, and cells that are there already are not repeated.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.drafters import Drafter
from eagle_jax.evaluation import runner
from eagle_jax.evaluation.played import play, write
from eagle_jax.evaluation.report import markdown_table, tree_size
from eagle_jax.evaluation.tasks import read_questions
from eagle_jax.models.transformer import make_target
from eagle_jax.types import Params
from experiments import launch, methods
from experiments.entries import weights_digest

FLAGS = flags.FlagValues()
flags.DEFINE_string("target", "smollm2-135m", "as for experiments.generate", flag_values=FLAGS)
methods.define_flags(FLAGS, method=False)
flags.DEFINE_list("drafts", ["eagle3"], "METHOD or METHOD:NODES/DEPTH/TOP_K", flag_values=FLAGS)
flags.DEFINE_list("tasks", None, "files of questions; a task is called as its folder", flag_values=FLAGS)
flags.DEFINE_list("temperatures", ["0", "0.3", "1"], "of the answers", flag_values=FLAGS)
flags.DEFINE_integer("num_prompts", 10, "questions from the start of each file", flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 128, "longest answer", flag_values=FLAGS)
flags.DEFINE_integer("batch", 10, "answers written and played back together", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of sampling", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON lines to append cells to", flag_values=FLAGS)

UNPLAYABLE = ("lookahead", "ouroboros")
"""Methods that `eagle_jax.evaluation.replay` cannot play back."""


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
    for label, name, _ in asked:
        if name in UNPLAYABLE:
            raise ValueError(f"{label} learns from tokens that were refused, which only the target's passes can tell")
    temperatures = [float(text) for text in FLAGS.temperatures]
    questions = {pathlib.Path(path).parent.name: read_questions(path, FLAGS.num_prompts) for path in FLAGS.tasks}
    if len(questions) < len(FLAGS.tasks):
        raise ValueError(f"tasks are told apart by their folders, got {', '.join(FLAGS.tasks)}")
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, FLAGS.dtype, progress=progress)
    drafts = []
    for label, name, settings in asked:
        drafter, params = methods.make_method(name, model, settings)
        tree = tree_size(drafter, methods.children(name, settings))
        drafts.append(Draft(label, drafter, params, tree, weights_digest(params)))
    cells = Cells(FLAGS.output)
    target = make_target(model.config, FLAGS.dtype)
    for task, some in questions.items():
        prompts = [runner.prompt_ids(model, question) for question in some]
        for temperature in temperatures:
            todo = [
                (draft, share)
                for draft in drafts
                for share in ((True, False) if temperature > 0 else (True,))
                if not cells.has(about(task, temperature, draft, share))
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
                answers = write(model, target, prompts, **way)
            for draft, share in todo:
                with launch.status(f"{task}, T = {temperature:g}: {draft.label}{'' if share else ', own top-k'}"):
                    found = play(model, target, draft.drafter, draft.params, prompts, answers, share_noise=share, **way)
                cells.add({**about(task, temperature, draft, share), **found})
    print(cells.table(list(questions), temperatures, drafts))


def about(task: str, temperature: float, draft: Draft, share_noise: bool) -> dict[str, Any]:
    """What tells a cell from all others."""
    return {
        "target": FLAGS.target,
        "dtype": FLAGS.dtype,
        "draft": draft.label,
        "head": FLAGS.head,
        "draft_vocab": FLAGS.draft_vocab,
        "head_window": FLAGS.head_window,
        "weights": draft.digest,
        "tree": draft.tree,
        "share_noise": share_noise,
        "task": task,
        "temperature": temperature,
        "seed": FLAGS.seed,
        "prompts": FLAGS.num_prompts,
        "max_new_tokens": FLAGS.max_new_tokens,
    }


class Cells:
    """What has been measured, in memory and, if asked for, in a file."""

    def __init__(self, path: str | None) -> None:
        self._path = pathlib.Path(path) if path else None
        text = self._path.read_text(encoding="utf-8") if self._path and self._path.exists() else ""
        self._rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]

    def has(self, about: dict[str, Any]) -> bool:
        """Whether the cell is there."""
        return any(about.items() <= row.items() for row in self._rows)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a cell."""
        self._rows.append(row)
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def table(self, tasks: Sequence[str], temperatures: Sequence[float], drafts: Sequence[Draft]) -> str:
        """Tau: a line for each draft, temperature and noise, a column for each task, and all tasks together."""
        lines = []
        for draft in drafts:
            for temperature in temperatures:
                for share in (True, False) if temperature > 0 else (True,):
                    rows = [
                        next(row for row in self._rows if about(task, temperature, draft, share).items() <= row.items())
                        for task in tasks
                    ]
                    together = sum(row["tokens"] for row in rows) / max(1, sum(row["rounds"] for row in rows))
                    noise = "-" if temperature == 0 else "shared" if share else "not shared"
                    lines.append([draft.label, f"{temperature:g}", noise, *(row["tau"] for row in rows), together])
        return markdown_table(["draft", "T", "noise", *tasks, "all"], lines)


if __name__ == "__main__":
    launch.run(main, FLAGS)
