"""Measure every point of an ablation, and put them into one table.

    python -m experiments.sweep --config=configs/ablations/tree_sizes.py --data=DIRECTORY --output=sweeps/tree_sizes

A config of configs/ablations is one of configs/eval with a single `method`, and a function `sweep(add)` that calls
`add` for each point with what changes: add(**{"method.nodes": 16, "method.depth": 5}). Where it has a `train` part, a
point first trains a head (--answers, as for experiments.train --data), then measures it; `train.X` changes field X of
the training config.

The same command goes on where an earlier one stopped. DIRECTORY gets points/, a file of rows for each point, rows.jsonl
with all of them (for experiments.report) and summary.md. With --replay tau and n-alpha alone are found, which takes a
fraction of the time. With --processes every point has a process of its own, as it has wherever several train heads: one
that measures would keep the accelerator from the next that trains.
"""

import functools
import hashlib
import json
import pathlib
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from absl import flags

from eagle_jax.checkpoint.head_names import Kind
from eagle_jax.evaluation import tables
from eagle_jax.evaluation.tasks import read_tasks
from eagle_jax.files import local, write_whole
from eagle_jax.journal import Record, write_rows
from eagle_jax.resume import check_same
from experiments.cli import children, draft_weights, launch
from experiments.cli.grid import digests
from experiments.cli.methods import METHODS
from experiments.evaluate import evaluate
from experiments.playback import playback, why_not
from experiments.points import Point, read_points

FLAGS = flags.FlagValues()
flags.DEFINE_string("config", None, "what to vary: a file of configs/ablations", flag_values=FLAGS)
flags.DEFINE_string("data", None, "directory with questions, as for experiments.evaluate", flag_values=FLAGS)
flags.DEFINE_string("output", None, "directory of the sweep", flag_values=FLAGS)
flags.DEFINE_list("points", None, "names of the points to measure; left out, all", flag_values=FLAGS)
flags.DEFINE_bool(
    "replay", False, "tau alone, played back on plain decoding's answers: no times, much faster", flag_values=FLAGS
)
flags.DEFINE_bool("processes", False, "a process for each point", flag_values=FLAGS)
flags.DEFINE_list("answers", None, "where heads are trained: conversations to train on", flag_values=FLAGS)
flags.DEFINE_string("features", None, "where heads are trained: directory for the target's features", flag_values=FLAGS)
flags.DEFINE_bool("quiet", False, "no progress bars", flag_values=FLAGS)


def main() -> None:
    """Run the points that the flags ask for, and write the tables."""
    launch.need(FLAGS, "config", "data", "output")
    points = read_points(FLAGS.config)
    asked = choose(points, FLAGS.points)
    if any(point.train for point in asked) and not FLAGS.answers:
        raise ValueError(f"{FLAGS.config} trains heads: give --answers, conversations to train on")
    output = local(FLAGS.output)
    (output / "points").mkdir(parents=True, exist_ok=True)
    check_sweep(output / "sweep.json", {point.name: about(point) for point in points})
    failed = run(asked, output)
    rows, unmeasured = collect(points, output)
    summary = "\n\n".join(summarise(rows, unmeasured))
    if rows:
        write_rows(output / "rows.jsonl", rows)
    write_whole(output / "summary.md", summary + "\n")
    print(summary, flush=True)
    if failed:
        if len(asked) == 1:
            raise failed[asked[0].label]
        refuse(failed)


def run(points: Sequence[Point], output: pathlib.Path) -> dict[str, Exception]:
    """Measure those points that were not; what went wrong, by label: a point that fails leaves the others alone."""
    apart = FLAGS.processes or (len(points) > 1 and any(point.train for point in points))
    failed: dict[str, Exception] = {}
    for number, point in enumerate(points, start=1):
        print(f"[{number}/{len(points)}] {point.label}", file=sys.stderr, flush=True)
        reason = left_out(point)
        if reason:
            print(f"left out: {reason}", file=sys.stderr, flush=True)
        elif not files_of(point, output)[1].exists():
            try:
                if apart:
                    in_a_process(point)
                else:
                    measure(point, output)
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # or the weights of this point would stay in memory
                failed[point.label] = error
    return failed


def refuse(failed: Mapping[str, Exception]) -> NoReturn:
    """End with what went wrong in several points, by label.

    Raises:
      ValueError: they cannot be measured as they are.
      RuntimeError: one of them met a bug, which is the cause.
    """
    reasons = "points failed: " + "; ".join(f"{label!r}: {error}" for label, error in failed.items())
    for error in failed.values():
        if not launch.is_mistake(error):
            raise RuntimeError(reasons) from error
    raise ValueError(reasons)


def left_out(point: Point) -> str | None:
    """Why the point can never be measured as the flags ask for, None where it can."""
    return why_not(point.evaluation()) if FLAGS.replay else None


def about(point: Point) -> Record:
    """What decides the numbers of a point, as JSON keeps it.

    Raises:
      ValueError: questions that cannot be used.
    """
    questions = digests(read_tasks(FLAGS.data, point.config["tasks"], point.config["num_prompts"]))
    settings: Record = {"config": point.config, "questions": questions}
    if point.train:
        settings |= {"train": point.recipe, "answers": [digest(pathlib.Path(path)) for path in FLAGS.answers or ()]}
    else:
        hashes = {name: {path.name: digest(path) for path in files} for name, files in drafts_of(point).items()}
        settings |= {name: found for name, found in hashes.items() if found}
    if FLAGS.replay:
        settings["replay"] = True
    return json.loads(json.dumps(settings))


def drafts_of(point: Point) -> dict[str, list[pathlib.Path]]:
    """The files of the head and of the draft model that a point drafts with, where it has one."""
    given, target = point.config["method"], point.config["target"]
    method, found = METHODS[given["method"]], {}
    if method.takes_head:
        kind: Kind = "eagle3" if given["method"] == "eagle3" else "eagle"
        found["head"] = draft_weights.head_files(given.get("head", ""), kind, target)
    if method.takes_draft:
        found["draft"] = draft_weights.draft_files(given.get("draft", ""), target)
    return found


def digest(path: pathlib.Path) -> str:
    """The hash of a file, computed once as long as nobody writes to it."""
    return _digest(path, path.stat().st_mtime_ns)


@functools.cache
def _digest(path: pathlib.Path, changed: int) -> str:
    del changed
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def check_sweep(path: pathlib.Path, settings: Record) -> None:
    """Remember what the directory holds; points may be added, those that are there stay as they are.

    Raises:
      ValueError: a point of the same name with other settings.
    """
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for name in sorted(found.keys() & settings.keys()):
        check_same(f"{path.parent}: point {name!r}", found[name], settings[name])
    write_rows(path, [{**found, **settings}])


def in_a_process(point: Point) -> None:
    """Measure one point in a process of its own.

    Raises:
      ValueError: it failed; its own last line says why.
    """
    flags_given = {name: getattr(FLAGS, name) for name in ("config", "data", "output", "features")}
    command = [sys.executable, "-m", "experiments.sweep", f"--points={point.name}", f"--quiet={FLAGS.quiet}"]
    command += [f"--replay={FLAGS.replay}"]
    command += [f"--{name}={value}" for name, value in flags_given.items() if value is not None]
    command += [f"--answers={','.join(FLAGS.answers)}"] if FLAGS.answers else []
    if code := children.run(command, stdout=subprocess.DEVNULL):
        raise ValueError(f"its process ended with exit code {code}")


def measure(point: Point, output: pathlib.Path) -> None:
    """Train if need be, then evaluate; training comes before this process touches the accelerator."""
    rows, finished = files_of(point, output)
    trained = {}
    if point.train:
        head = train(point.train, output / "heads" / point.name)
        if head is None:
            return
        trained["head"] = str(head)
    if FLAGS.replay:
        write_rows(rows, playback(point.evaluation(**trained), FLAGS.data, output / "answers"))
    else:
        evaluate(point.evaluation(**trained), FLAGS.data, str(rows), quiet=FLAGS.quiet)
    finished.touch()


def files_of(point: Point, output: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Its rows, and the mark that they are complete."""
    rows = output / "points" / f"{point.name}.jsonl"
    return rows, rows.with_name(f"{point.name}.finished")


def train(wanted: Mapping[str, Any], folder: pathlib.Path) -> pathlib.Path | None:
    """Train a head in a process of its own; its directory, or None where time ran out before the end.

    Raises:
      ValueError: training failed.
    """
    head = folder / "head"
    if head.is_dir():
        return head
    command = [sys.executable, "-m", "experiments.train", f"--config={wanted['config']}"]
    command += [f"--config.{field}={value}" for field, value in wanted.get("fields", {}).items()]
    command += [f"--data={','.join(FLAGS.answers)}", f"--run={folder / 'run'}", f"--export={head}"]
    command += [f"--time_limit={wanted['time_limit']}", f"--quiet={FLAGS.quiet}"]
    command += [f"--features={FLAGS.features}"] if FLAGS.features else []
    if code := children.run(command, stdout=sys.stderr):
        raise ValueError(f"training failed with exit code {code}: {' '.join(command)}")
    return head if head.is_dir() else None


def collect(points: Sequence[Point], output: pathlib.Path) -> tuple[list[Record], list[Point]]:
    """Rows of the finished points, and the other points."""
    rows: list[Record] = []
    unmeasured = []
    for point in points:
        path, finished = files_of(point, output)
        if finished.exists():
            rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        else:
            unmeasured.append(point)
    return rows, unmeasured


def summarise(rows: Sequence[Record], unmeasured: Sequence[Point]) -> list[str]:
    """Tables, a section a temperature, and what is missing."""
    sections = []
    for (target, temperature), own in tables.groups(rows, "target", "temperature"):
        sections += [f"## {target}, T = {temperature:g}: {tables.cells(own)}", tables.method_table(own)]
        sections += [f"## {target}, T = {temperature:g}: acceptance", tables.acceptance_table(own)]
    reasons = {point.label: left_out(point) for point in unmeasured}
    never = [f"{label} ({reason})" for label, reason in reasons.items() if reason]
    if never:
        sections.append(f"Left out: {'; '.join(never)}.")
    missing = [label for label, reason in reasons.items() if not reason]
    if missing:
        sections.append(f"Not finished, the same command goes on: {'; '.join(missing)}.")
    return sections


if __name__ == "__main__":
    launch.run(main, FLAGS)
