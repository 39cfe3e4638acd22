"""Measure drafting methods on benchmark questions, against plain decoding, and write one JSON row a cell.

    python -m experiments.evaluate --config=configs/eval/heads.py --data=DIRECTORY --output=rows.jsonl

--data holds TASK/question.jsonl files in Spec-Bench's format; the config names tasks, methods, temperatures and seeds.
A cell is a method on a task at a temperature with a seed; `eagle_jax.evaluation.rows` says what its numbers mean.
--config.mode=timed has plain decoding and all methods answer the same prompts in turn; teacher_forced finds tau alone,
on answers that plain decoding writes once, in a fraction of the time. --config.batch answers so many together. With
--near_tie the exit code is 1 where an answer differs from plain decoding's and the target's best score leads by more
than that there: no rounding, but a mistake.

The same command continues where an earlier one stopped, `kill -9` included: each group of conversations is in
FILE.journal beside the output, and rows are made of it whenever a cell is complete. Methods may join later.
"""

import pathlib
import sys
from collections.abc import Collection

from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from eagle_jax.evaluation import tables
from eagle_jax.evaluation.rows import TIMED
from eagle_jax.files import local
from eagle_jax.journal import Journal, Record, write_rows
from experiments.cli import launch
from experiments.cli.evaluation_config import read_config
from experiments.cli.grid import Evaluation, prepare_evaluation

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
    "config",
    None,
    "what to measure: a file of configs/eval; its fields are flags, as in --config.num_prompts=2",
    flag_values=FLAGS,
)
flags.DEFINE_string("data", None, "directory with a folder for each task, question.jsonl inside", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON lines, one row a cell", flag_values=FLAGS)
flags.DEFINE_float(
    "near_tie",
    None,
    "fail where an answer differs by a larger margin than this, in logits, such as 1e-3",
    flag_values=FLAGS,
)
flags.DEFINE_bool("quiet", False, "no progress bar", flag_values=FLAGS)


def main() -> None:
    """Measure as the flags say, and print the tables."""
    launch.need(FLAGS, "config", "data", "output")
    config = FLAGS.config
    rows = evaluate(config, FLAGS.data, FLAGS.output, quiet=FLAGS.quiet)
    for (temperature,), own in tables.groups(rows, "temperature"):
        print(
            f"{config.target}, {config.dtype}, T = {temperature:g}; {tables.cells(own)}\n\n{tables.method_table(own)}\n"
        )
        if own[0]["mode"] == TIMED:
            print(tables.speed_table(own) + "\n")
    if FLAGS.near_tie is not None and (wrong := differing(rows, FLAGS.near_tie)):
        print(f"not plain decoding's text: {', '.join(wrong)}", file=sys.stderr)
        sys.exit(1)


def evaluate(
    config: ConfigDict, data: str, output: str, *, labels: Collection[str] | None = None, quiet: bool = False
) -> list[Record]:
    """Measure what the file `output` lacks; all of its rows.

    Args:
      config: as the files of configs/eval give it.
      data: directory with questions.
      output: file of rows; its journal stands beside it.
      labels: of the methods that are measured now; None: all.
      quiet: no progress bar.

    Raises:
      ValueError: a config, a question file or an output file that cannot be used, in one line.
    """
    checked = read_config(config)
    output = str(local(output))
    journal_path = beside(output)
    evaluation = prepare_evaluation(checked, data)
    with Journal(
        journal_path, evaluation.settings(), growing=("methods", "weights", "files", "chosen_nodes")
    ) as journal:
        fill(evaluation, journal, output, labels, quiet)
        rows = evaluation.rows(journal.records)
        write_rows(output, rows)
        return rows


def beside(output: str) -> pathlib.Path:
    """The journal of an output file.

    Raises:
      ValueError: the output cannot be written, or is there without its journal.
    """
    path = pathlib.Path(output)
    journal = path.with_name(path.name + ".journal")
    launch.check_file("output", output)
    if path.exists() and not journal.exists():
        raise ValueError(f"{path} is there without {journal.name}, so it cannot be continued; nothing was written")
    return journal


def fill(evaluation: Evaluation, journal: Journal, output: str, labels: Collection[str] | None, quiet: bool) -> None:
    """Play the conversations that the journal lacks; rows are written whenever a block is complete."""
    missing = {
        key: chosen
        for key, some in evaluation.missing(journal.records).items()
        if (chosen := [label for label in some if labels is None or label in labels])
    }
    if not missing:
        return
    block: tuple[object, ...] = ()
    total = len(evaluation.keys)
    with tqdm(total=total, initial=total - len(missing), unit="group", disable=quiet, dynamic_ncols=True) as bar:
        for key, chosen in missing.items():
            if key[:-1] != block:
                if block:
                    write_rows(output, evaluation.rows(journal.records))
                block = key[:-1]
                bar.set_postfix_str(f"compiling for {key.task}, warming up")
                questions = [*evaluation.questions[key.task].values()]
                sampling = evaluation.config.sampling(key.temperature, key.seed)
                evaluation.bench.prepare(questions, evaluation.config.num_turns, sampling)
            bar.set_postfix_str(f"{key.task}, T = {key.temperature:g}, seed {key.seed}")
            journal.add(evaluation.measure(key, chosen))
            bar.update()


def differing(rows: list[Record], near_tie: float) -> list[str]:
    """Cells with answers that are not plain decoding's, by more than a near-tie of the arithmetic."""
    return [
        f"{row['label']} on {row['task']} at T = {row['temperature']:g}"
        for row in rows
        if row["mode"] == TIMED
        and row["rule"] == "match"
        and row["identical_prompts"] < row["prompts"]
        and (row["first_difference_margin"] is None or row["first_difference_margin"] >= near_tie)
    ]


if __name__ == "__main__":
    launch.run(main, FLAGS)
