"""Measure every point of an ablation, and put them into one table.

    python -m experiments.sweep --config=configs/ablations/tree_sizes.py --data=DIRECTORY --output=sweeps/tree_sizes

A config of configs/ablations is one of configs/eval with a single `method`, and a function `sweep(add)` that calls
`add` for each point with what changes: add(**{"method.nodes": 16, "method.depth": 5}). All points are methods of one
evaluation (`experiments.evaluate`), beside the same plain decoding. Where the config has a `train` part, a point first
trains a head (--answers, as for experiments.train --data), in a process of its own; `train.X` changes field X of the
training config. Such a point is measured once its head is there, and tau_by_tokens.jsonl (for experiments.report) has
the tokens that each head saw.

The same command continues where an earlier one stopped, and points may be added. DIRECTORY gets heads/, rows.jsonl with
its journal (for experiments.report) and summary.md. --mode=teacher_forced finds tau and n-alpha alone, which takes a
fraction of the time.
"""

import importlib.util
import json
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from eagle_jax.evaluation import tables
from eagle_jax.evaluation.acceptance import why_not
from eagle_jax.evaluation.checks import check_type
from eagle_jax.evaluation.rows import TEACHER_FORCED, TIMED
from eagle_jax.figures.training_curves import read_metrics
from eagle_jax.files import check_directory, write_whole
from eagle_jax.journal import Journal, Record
from eagle_jax.provenance import file_digest
from experiments.cli import launch
from experiments.cli.evaluation_config import read_config
from experiments.cli.method_entries import read_entries
from experiments.evaluate import evaluate

FLAGS = flags.FlagValues()
flags.DEFINE_string("config", None, "what to vary: a file of configs/ablations", flag_values=FLAGS)
flags.DEFINE_string("data", None, "directory with questions, as for experiments.evaluate", flag_values=FLAGS)
flags.DEFINE_string("output", None, "directory of the sweep", flag_values=FLAGS)
flags.DEFINE_list("points", None, "names of the points to train and measure; left out, all", flag_values=FLAGS)
flags.DEFINE_enum("mode", None, [TIMED, TEACHER_FORCED], "as of experiments.evaluate; else the config's", FLAGS)
flags.DEFINE_list("answers", None, "where heads are trained: conversations to train on", flag_values=FLAGS)
flags.DEFINE_string("features", None, "where heads are trained: directory for the target's features", flag_values=FLAGS)
flags.DEFINE_bool("quiet", False, "no progress bars", flag_values=FLAGS)

TEACHER_FORCED_BATCH = 10
"""Conversations that are answered together where the config says 1 and nothing is timed."""

TRAIN: dict[str, Any] = {"config": str, "fields": dict, "time_limit": float}
"""What the `train` part of a config holds."""


class Point(NamedTuple):
    """One setting of what is varied."""

    name: str  # of its files
    label: str  # in tables
    method: dict[str, Any]
    train: dict[str, Any] | None  # what to train before: `config`, `fields`, `time_limit`
    recipe: dict[str, Any] | None  # the complete training config that these give

    def entry(self, heads: pathlib.Path) -> dict[str, Any]:
        """The method of an evaluation, with the point's own head where it trains one."""
        head = {"head": str(head_of(self, heads))} if self.train else {}
        return {"label": self.label, **self.method, **head}


def main() -> None:
    """Train and measure the points that the flags name, and write the tables."""
    launch.need(FLAGS, "config", "data", "output")
    base, points = read_points(FLAGS.config)
    chosen = choose(points, FLAGS.points)
    if FLAGS.mode:
        base = {**base, "mode": FLAGS.mode}
    if base.get("mode") == TEACHER_FORCED and base.get("batch", 1) == 1:
        base = {**base, "batch": TEACHER_FORCED_BATCH}  # nothing is timed, so nothing speaks for one at a time
    if any(point.train for point in chosen) and not FLAGS.answers:
        raise ValueError(f"{FLAGS.config} trains heads: give --answers, conversations to train on")
    output = check_directory(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    heads = output / "heads"
    failed = train_all([point for point in chosen if point.train], heads)
    left_out = {point.label: reason for point in points if (reason := unmeasurable(point, base))}
    ready = [point for point in points if point.label not in left_out and is_trained(point, heads)]
    rows: list[Record] = []
    if ready:
        config = ConfigDict({**base, "methods": [point.entry(heads) for point in ready]})
        labels = [point.label for point in chosen]
        rows = evaluate(config, FLAGS.data, str(output / "rows.jsonl"), labels=labels, quiet=FLAGS.quiet)
    measured = {row["label"] for row in rows}
    missing = [point.label for point in points if point.label not in measured and point.label not in left_out]
    summary = "\n\n".join(summary_of(rows, left_out, missing))
    write_whole(output / "summary.md", summary + "\n")
    if curve := tau_by_tokens([point for point in ready if point.train], heads, rows):
        write_whole(output / "tau_by_tokens.jsonl", "".join(json.dumps(point) + "\n" for point in curve))
    print(summary, flush=True)
    if failed:
        raise ValueError("; ".join(f"{label!r}: {reason}" for label, reason in failed.items()))


def tau_by_tokens(points: Sequence[Point], heads: pathlib.Path, rows: Sequence[Record]) -> list[Record]:
    """The trained heads that were measured, with the tokens that each saw and its tau over all tasks by temperature."""
    curve: list[Record] = []
    tasks = tables.distinct(rows, "task")
    for point in points:
        metrics, own = (
            heads / point.name / "run" / "metrics.jsonl",
            [row for row in rows if row["label"] == point.label],
        )
        if own and metrics.is_file():  # a run may be deleted once its head is there
            tau = {f"{at:g}": tables.tau_of_all(some, tasks) for (at,), some in tables.groups(own, "temperature")}
            tokens = max(line["tokens"] for line in read_metrics(metrics) if "tokens" in line)
            curve.append({"label": point.label, "tokens": tokens, "tau": tau})
    return curve


def train_all(points: Sequence[Point], heads: pathlib.Path) -> dict[str, str]:
    """Train what is not trained yet; why some points failed, which leaves the others alone."""
    failed = {}
    for number, point in enumerate(points, start=1):
        print(f"[{number}/{len(points)}] {point.label}", file=sys.stderr, flush=True)
        try:
            train(point, heads)
        except ValueError as error:
            failed[point.label] = str(error)
    return failed


def read_points(path: str) -> tuple[dict[str, Any], list[Point]]:
    """The evaluation that all points share, and the points of a config file.

    Raises:
      ValueError: the file is no config of an ablation, two points have one name, or a point cannot be measured.
    """
    module = load_module(path)
    for name in ("get_config", "sweep"):
        if not callable(getattr(module, name, None)):
            raise ValueError(f"{path} has no function {name}: it is not a config of an ablation")
    base = module.get_config().to_dict()
    method, trained = base.pop("method", None), base.pop("train", None)
    check_type("the config's method", method, dict)
    check_type("the config's train", trained, dict | None)
    for field, kind in TRAIN.items() if trained else ():
        check_type(f"the config's train.{field}", trained.get(field), kind)
    points: list[Point] = []

    def add(*, label: str = "", **changes: Any) -> None:
        text = label or ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in changes.items())
        name = re.sub(r"[^A-Za-z0-9.=_-]+", "_", text) or "base"
        if any(point.name == name for point in points):
            raise ValueError(f"{path} has two points called {name!r}")
        points.append(make_point(name, text or "base", method, trained, changes))

    module.sweep(add)
    if not points:
        raise ValueError(f"{path}: sweep(add) adds no point")
    config = read_config({**base, "methods": [{"label": point.label, **point.method} for point in points]})
    read_entries(config.methods, config.dtype, config.temperatures)
    return base, points


def load_module(path: str, field: str = "--config") -> ModuleType:
    """Run a Python file.

    Raises:
      ValueError: there is no such file; `field` says who named it.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{field}={path} names no file")
    spec = importlib.util.spec_from_file_location("ablation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_point(
    name: str, label: str, method: Mapping[str, Any], trained: dict[str, Any] | None, changes: Mapping[str, Any]
) -> Point:
    """A point: the base with some fields of the method and of the training config changed.

    Raises:
      ValueError: a field that neither has.
    """
    own, recipe = dict(method), None
    fields = dict(trained["fields"]) if trained else {}
    for key, value in changes.items():
        part, _, field = key.partition(".")
        if part == "method" and field:
            own[field] = value  # whoever builds the method knows its fields
        elif part == "train" and field and trained:
            fields[field] = value
        else:
            raise ValueError(f"point {label!r} changes {key!r}; it may change method.X" + ", train.X" * bool(trained))
    if trained:
        recipe = load_module(trained["config"], "the config's train.config").get_config().to_dict()
        for key, value in fields.items():
            holder: Any = recipe
            *parents, field = key.split(".")
            for parent in parents:
                holder = holder.get(parent) if isinstance(holder, dict) else None
            if not isinstance(holder, dict) or field not in holder:
                raise ValueError(f"point {label!r} changes 'train.{key}', which {trained['config']} does not have")
            holder[field] = value
        trained = {**trained, "fields": fields}
    return Point(name, label, own, trained, recipe)


def choose(points: Sequence[Point], names: Sequence[str] | None) -> list[Point]:
    """The points of these names, all where None.

    Raises:
      ValueError: an unknown name.
    """
    known = {point.name: point for point in points}
    for name in names or ():
        if name not in known:
            raise ValueError(f"no point is called {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(points)


def unmeasurable(point: Point, base: Mapping[str, Any]) -> str | None:
    """Why the point can never be measured in this mode, None where it can."""
    if base.get("mode", TIMED) != TEACHER_FORCED:
        return None
    return why_not(point.method.get("rule", "match"), point.method.get("give_up", False))


def head_of(point: Point, heads: pathlib.Path) -> pathlib.Path:
    """Where the point's head is exported to."""
    return heads / point.name / "head"


def is_trained(point: Point, heads: pathlib.Path) -> bool:
    """Whether nothing is left to train."""
    return not point.train or head_of(point, heads).is_dir()


def train(point: Point, heads: pathlib.Path) -> None:
    """Train the point's head in a process of its own, unless it is there; it may run out of time and continue later.

    The process ends before this one touches the accelerator.

    Raises:
      ValueError: training failed, or the folder belongs to another recipe or other answers.
    """
    folder, head, wanted = heads / point.name, head_of(point, heads), point.train
    assert wanted is not None
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"recipe": point.recipe, "answers": [file_digest(path) for path in FLAGS.answers]}
    with Journal(folder / "recipe.json", identity):
        pass  # refuses another recipe
    if head.is_dir():
        return
    command = [sys.executable, "-m", "experiments.train", f"--config={wanted['config']}"]
    command += [f"--config.{field}={value}" for field, value in wanted["fields"].items()]
    command += [f"--data={','.join(FLAGS.answers)}", f"--run={folder / 'run'}", f"--export={head}"]
    command += [f"--time_limit={wanted['time_limit']}", f"--quiet={FLAGS.quiet}"]
    command += [f"--features={FLAGS.features}"] if FLAGS.features else []
    if code := run_process(command):
        raise ValueError(f"training failed with exit code {code}: {' '.join(command)}")


def run_process(command: Sequence[str]) -> int:
    """Run a command to its end, its output on stderr; its exit code.

    Ctrl-C and SIGTERM are passed on, and the end of the command is waited for all the same: it may have to save. It
    has a process group of its own, so that a terminal's Ctrl-C does not reach it twice.

    Raises:
      KeyboardInterrupt: a signal came; the command has ended.
    """
    received: list[int] = []
    child: subprocess.Popen[Any] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if child is not None:
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(command, stdout=sys.stderr, process_group=0)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt
    return code


def summary_of(rows: Sequence[Record], left_out: Mapping[str, str], missing: Sequence[str]) -> list[str]:
    """Tables, a section a temperature, and what is missing."""
    sections = []
    for (target, temperature), own in tables.groups(rows, "target", "temperature"):
        sections += [f"## {target}, T = {temperature:g}: {tables.cells(own)}", tables.method_table(own)]
        sections += [f"## {target}, T = {temperature:g}: acceptance", tables.acceptance_table(own)]
    if left_out:
        sections.append(f"Left out: {'; '.join(f'{label} ({reason})' for label, reason in left_out.items())}.")
    if missing:
        sections.append(f"Not finished, the same command continues: {'; '.join(missing)}.")
    return sections


if __name__ == "__main__":
    launch.run(main, FLAGS)
