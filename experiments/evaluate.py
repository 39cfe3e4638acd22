"""Measure drafting methods on benchmark questions, against plain decoding, and write one JSON row a cell.

    python -m experiments.evaluate --config=configs/eval/heads.py --data=DIRECTORY --output=rows.jsonl

--data holds TASK/question.jsonl files in Spec-Bench's format; the config names tasks, methods, temperatures and seeds.
A cell is a method on a task at a temperature with a seed. In every cell plain decoding and all methods answer the same
prompts in turn (`eagle_jax.evaluation.side_by_side`); `eagle_jax.evaluation.rows` says what the numbers mean.

The same command goes on where an earlier one stopped, `kill -9` included: each conversation is kept in FILE.journal
beside the output, rows are made of it whenever a cell is complete.
"""

import itertools
import pathlib
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.evaluation import tables
from eagle_jax.evaluation.checks import check_type
from eagle_jax.evaluation.side_by_side import SideBySide
from eagle_jax.evaluation.tasks import read_tasks
from eagle_jax.journal import Journal, Record, write_rows
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import make_sampling
from experiments.cli import launch
from experiments.cli.grid import TURNS, Evaluation, Key
from experiments.cli.method_entries import build, read_entries, with_trees

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
    "config",
    None,
    "what to measure: a file of configs/eval; its fields are flags, as in --config.num_prompts=2",
    flag_values=FLAGS,
)
flags.DEFINE_string("data", None, "directory with a folder for each task, question.jsonl inside", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON lines, one row a cell", flag_values=FLAGS)
flags.DEFINE_bool("quiet", False, "no progress bar", flag_values=FLAGS)

FIELDS: dict[str, Any] = {
    "target": str,
    "dtype": str,
    "tasks": tuple[str, ...],
    "num_prompts": int,
    "turns": str,
    "max_new_tokens": int,
    "temperatures": tuple[float, ...],
    "seeds": tuple[int, ...],
    "warm_ups": int,
    "methods": tuple[dict, ...],
}
"""What a config holds, and of which type."""


def main() -> None:
    """Measure as the flags say, and print the tables."""
    launch.need(FLAGS, "config", "data", "output")
    config = FLAGS.config
    rows = evaluate(config, FLAGS.data, FLAGS.output, quiet=FLAGS.quiet)
    for (temperature,), own in tables.groups(rows, "temperature"):
        print(
            f"{config.target}, {config.dtype}, T = {temperature:g}; {tables.cells(own)}\n\n{tables.method_table(own)}\n"
        )


def evaluate(config: ConfigDict, data: str, output: str, *, quiet: bool = False) -> list[Record]:
    """Measure what the file `output` lacks; all of its rows.

    Raises:
      ValueError: a config, a question file or an output file that cannot be used, in one line.
    """
    check_config(config)
    entries = read_entries(config.methods, config.dtype, config.temperatures)
    questions = read_tasks(data, config.tasks, config.num_prompts)
    journal_path = beside(output)
    with launch.status(f"Loading {config.target}") as progress:
        model = load_target(config.target, config.dtype, packed=True, progress=progress)
    entries = with_trees(entries, model, config.temperatures)
    bench = SideBySide(
        model,
        make_target(model.config),
        build(entries, model),
        max_new_tokens=config.max_new_tokens,
        warm_ups=config.warm_ups,
    )
    for asked in questions.values():
        bench.check([*asked.values()])
    evaluation = Evaluation(config, entries, questions, bench)
    with Journal(journal_path, evaluation.settings()) as journal:
        fill(evaluation, journal, output, quiet)
        write_rows(output, evaluation.rows(journal.records))
        return evaluation.rows(journal.records)


def check_config(config: ConfigDict) -> None:
    """Refuse a config that says too little, too much or something impossible.

    Raises:
      ValueError: as said.
    """
    for name in sorted(FIELDS.keys() ^ config.keys()):
        raise ValueError(f"the config {'has no' if name in FIELDS else 'has the unknown'} field {name!r}")
    for name, kind in FIELDS.items():
        check_type(f"the config's {name}", config[name], kind)
    for name in ("tasks", "temperatures", "seeds"):
        if not config[name] or len(set(config[name])) < len(config[name]):
            raise ValueError(f"the config's {name} must be distinct, one at least, got {config[name]!r}")
    for task in config.tasks:
        if "," in task:
            raise ValueError(f"the config's tasks are names, several as --config.tasks=\"('a','b')\", got {task!r}")
    for temperature in config.temperatures:
        make_sampling(1, temperature=temperature, max_new_tokens=config.max_new_tokens)
    for seed in config.seeds:
        make_sampling(1, seed=seed)
    if config.turns not in TURNS:
        raise ValueError(f"the config's turns must be one of {', '.join(TURNS)}, got {config.turns!r}")
    if config.warm_ups < 0:
        raise ValueError(f"the config's warm_ups must be at least 0, got {config.warm_ups}")


def beside(output: str) -> pathlib.Path:
    """The journal of an output file.

    Raises:
      ValueError: the output cannot be written, or is there without its journal.
    """
    path = pathlib.Path(output)
    journal = path.with_name(path.name + ".journal")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--output={output} must name a file in a folder that exists")
    if path.exists() and not journal.exists():
        raise ValueError(f"{path} is there without {journal.name}, so it cannot be continued; nothing was written")
    return journal


def fill(evaluation: Evaluation, journal: Journal, output: str, quiet: bool) -> None:
    """Hold the conversations that the journal lacks; rows are written whenever a block is complete."""
    keys = evaluation.keys
    done = {Key(*record["key"]) for record in journal.records}
    pending = [key for key in keys if key not in done]
    if not pending:
        return
    block: tuple[object, ...] = ()
    with tqdm(total=len(keys), initial=len(done), unit="prompt", disable=quiet, dynamic_ncols=True) as bar:
        for key, coming in itertools.zip_longest(pending, pending[1:]):
            if key[:-1] != block:
                block = key[:-1]
                bar.set_postfix_str(f"compiling for {key.task}, warming up")
                asked = [*evaluation.questions[key.task].values()]
                evaluation.bench.prepare(asked, evaluation.turns, key.temperature)
            bar.set_postfix_str(f"{key.task}, T = {key.temperature:g}, seed {key.seed}")
            journal.add(evaluation.measure(key))
            bar.update()
            if coming is None or coming[:-1] != key[:-1]:
                write_rows(output, evaluation.rows(journal.records))


if __name__ == "__main__":
    launch.run(main, FLAGS)
