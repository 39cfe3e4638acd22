"""Tables and figures of measured rows, curves of training runs, and tau against the text that heads were trained on.

    python -m experiments.report --rows=heads.jsonl,field.jsonl --output=DIRECTORY
    python -m experiments.report --metrics=runs/eagle3/metrics.jsonl,runs/other/metrics.jsonl --output=DIRECTORY
    python -m experiments.report --tau_by_tokens=sweeps/text_size/tau_by_tokens.jsonl --output=DIRECTORY

--rows are files of experiments.evaluate or of a sweep, --metrics files of experiments.train, --tau_by_tokens one of a
sweep that trains heads; one of them is enough. The directory gets report.md and, for light and dark pages, every figure
as PNG and SVG. Rows of different targets, dtypes, devices, lengths of answers or prompts are not comparable and get
sections of their own.
"""

import functools
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

from absl import flags
from matplotlib.figure import Figure

from eagle_jax.evaluation import tables
from eagle_jax.evaluation.metrics import LEAST_ROUNDS
from eagle_jax.evaluation.rows import TIMED
from eagle_jax.evaluation.tables import Row
from eagle_jax.figures import text_curve
from eagle_jax.figures.charts import CHARTS
from eagle_jax.figures.theme import THEMES, Theme, save
from eagle_jax.figures.training_curves import Line, accuracy_by_step, read_metrics, training_curves
from eagle_jax.files import Location, check_directory, check_fields, local, read_jsonl, write_whole
from experiments.cli import launch

FLAGS = flags.FlagValues()
flags.DEFINE_list(
    "rows", None, "JSON lines of experiments.evaluate or of a sweep: one or more files", flag_values=FLAGS
)
flags.DEFINE_list(
    "metrics", None, "metrics.jsonl of training runs, each named after its folder: one or more files", flag_values=FLAGS
)
flags.DEFINE_string(
    "tau_table", None, "file for tau by tree and temperature of one head, as tau.json beside it", flag_values=FLAGS
)
flags.DEFINE_string(
    "tau_by_tokens", None, "heads with the tokens that they saw and their tau, as a sweep writes it", flag_values=FLAGS
)
flags.DEFINE_string("output", None, "directory to write; files of the same names are replaced", flag_values=FLAGS)

CELL = (*tables.SETTINGS, "label", "task", "temperature", "seed", "prompts", "turns")
"""Fields that identify a cell."""

CAPTIONS = {
    "speedup_by_method": "Speed-up over plain decoding in the same process, medians over the prompts.",
    "speedup_by_task": "The same, task by task.",
    "tau_by_depth": "What a round writes if it accepts no more than so many drafted tokens; last rounds count uncut.",
    "n_alpha": f"Chance that one more token is accepted when n drafted ones were, from {LEAST_ROUNDS} rounds on.",
    "tau_against_nodes": "What larger trees bring, in tokens per round and in time.",
    "tau_against_depth": "What deeper trees bring.",
    "time_split": "Where the time of a written token goes.",
}


TIME_CHARTS = ("speedup_by_method", "speedup_by_task", "time_split")
"""Charts of times, which teacher-forced rows do not have."""

COMPARED = {"tau_against_nodes": "nodes", "tau_against_depth": "depth"}
"""Charts drawn only where some method was measured with several of these sizes."""


def main() -> None:
    """Write the report of the files that the flags name."""
    if not (FLAGS.rows or FLAGS.metrics or FLAGS.tau_by_tokens):
        raise ValueError(
            "give --rows, files of experiments.evaluate, --metrics, of experiments.train, or --tau_by_tokens of a sweep"
        )
    if not (FLAGS.output or FLAGS.tau_table):
        raise ValueError("give --output, a directory for the report, or --tau_table, a file")
    launch.check_file("tau_table", FLAGS.tau_table)
    if FLAGS.output:
        check_directory(FLAGS.output)
    files = read_rows(FLAGS.rows) if FLAGS.rows else []
    if FLAGS.tau_table:
        table = tables.tau_table([row for file in files for row in file])
        write_whole(local(FLAGS.tau_table), json.dumps(table, indent=1) + "\n")
        print(f"wrote {FLAGS.tau_table}, {len(table['tau'])} trees", flush=True)
    if not FLAGS.output:
        return
    measured = tables.comparable(files)
    runs = read_runs(FLAGS.metrics or [])
    points = text_curve.read_points(FLAGS.tau_by_tokens) if FLAGS.tau_by_tokens else []
    output = local(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    sections = ["# Measured"]
    if files:
        sections += [introduction(files), *row_sections(measured, output)]
    if runs:
        sections += training_sections(runs, output)
    if points:
        draw(functools.partial(text_curve.tau_by_tokens, points), output, "tau_by_tokens")
        caption = "tau against the supervised tokens that a head saw; dashed: least squares, linear in their logarithm."
        sections += ["## Text", text_curve.fits_in_words(points), picture("tau_by_tokens", caption)]
    (output / "report.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    figures = len(list(output.glob("*.svg"))) // len(THEMES)
    print(f"wrote {output / 'report.md'} and {figures} figures, for light and dark pages as PNG and SVG", flush=True)


def read_runs(paths: Sequence[str]) -> dict[str, list[Line]]:
    """The metrics of runs by the name of their folder.

    Raises:
      ValueError: two runs of one name, or a file that holds no metrics.
    """
    runs: dict[str, list[Line]] = {}
    for path in paths:
        name = pathlib.Path(path).resolve().parent.name
        if name in runs:
            raise ValueError(f"runs are named after their folders, got two called {name!r}")
        runs[name] = read_metrics(path)
    return runs


def read_rows(paths: Sequence[str]) -> list[list[Row]]:
    """The rows of each file.

    Raises:
      ValueError: a line that is no row, no row at all, or a cell that occurs twice.
    """
    files: list[list[Row]] = []
    seen: dict[tuple[object, ...], str] = {}
    for path in paths:
        rows: list[Row] = []
        for row, location in read_jsonl(path, _row, what="a row of experiments.evaluate"):
            cell = tuple(row[name] for name in CELL)
            if cell in seen:
                raise ValueError(f"{location} measures {row['label']!r} on {row['task']} again, after {seen[cell]}")
            seen[cell] = str(location)
            rows.append(row)
        files.append(rows)
    if not any(files):
        raise ValueError(f"no rows in {', '.join(paths)}")
    return files


def _row(record: Row, location: Location) -> tuple[Row, Location]:
    if "mode" not in record:
        check_fields(record, ("speedup",))
    row = tables.upgraded(record)
    check_fields(row, CELL)
    return row, location


def row_sections(measured: Sequence[Sequence[Row]], output: pathlib.Path) -> list[str]:
    """Tables and figures of each group of comparable rows."""
    sections: list[str] = []
    titles: list[str] = []
    for own in measured:
        title = "{}, {}, {}, {} tokens".format(*(own[0][name] for name in tables.SETTINGS))
        titles.append(title)
        title += f" ({titles.count(title)})" if titles.count(title) > 1 else ""
        sections += [f"## {title}", conversations(own), *method_sections(own)]
        prefix = re.sub(r"\W+", "-", title).strip("-")
        with launch.status(f"Drawing {title}"):
            for name, chart in CHARTS.items():
                shown = [row for row in own if row["mode"] == TIMED] if name in TIME_CHARTS else own
                if shown and (name not in COMPARED or differs(shown, COMPARED[name])):
                    draw(functools.partial(chart, shown), output, f"{prefix}-{name}")
                    sections.append(picture(f"{prefix}-{name}", CAPTIONS[name]))
    return sections


def conversations(rows: Sequence[Row]) -> str:
    """The conversations of a section, and the methods that did not answer all of them."""
    counts = []
    for (task,), own in tables.groups(rows, "task"):
        turns = sorted(tables.distinct(own, "turns"))  # several where answers of some seed left no room for the last
        counts.append(f"{task} {own[0]['prompts']} ({' or '.join(map(str, turns))})")
    text = f"Conversations and, in brackets, their turns: {', '.join(counts)}."
    tasks = tables.distinct(rows, "task")
    part = [label for (label,), own in tables.groups(rows, "label") if not tables.has_all(own, tasks)]
    return f"{text} In figures, of some of these tasks alone: {'; '.join(part)}." if part else text


def differs(rows: Sequence[Row], size: str) -> bool:
    """Whether trees of one method differ in this size."""
    return any(len({row["tree"][size] for row in own}) > 1 for _, own in tables.groups(rows, "method"))


def training_sections(runs: Mapping[str, Sequence[Line]], output: pathlib.Path) -> list[str]:
    """Curves of all runs together, and of each one's unrolled steps where it has some."""
    with launch.status("Drawing training runs"):
        draw(functools.partial(training_curves, runs), output, "training")
        sections = ["## Training", picture("training", "Loss, and tau: simulated on text, measured by the decoder.")]
        for name, lines in runs.items():
            if any("accuracy_1" in line for line in lines if line["kind"] == "heldout"):
                draw(functools.partial(accuracy_by_step, lines), output, f"steps-{name}")
                caption = f"{name}: accuracy on held-out text, step by step of the head on its own output."
                sections.append(picture(f"steps-{name}", caption))
    return sections


def introduction(files: Sequence[Sequence[Row]]) -> str:
    """What the numbers mean, and the commit they were measured with."""
    rows = [row for file in files for row in file]
    commits = ", ".join(str(commit) for commit in tables.distinct(rows, "commit"))
    how = "Teacher-forced on answers that plain decoding wrote: no times. "
    if timed := [row for row in rows if row["mode"] == TIMED]:
        batches = " or ".join(str(batch) for batch in tables.distinct(timed, "batch"))
        who = "all methods" if len(files) == 1 and in_one_run(timed) else "each method"
        how = f"Batch {batches}; plain decoding and {who} in one process, in alternation, on the same prompts. "
    return (
        f"{how}"
        "**tau**: tokens per round, bonus included (plain decoding: 1); of all rounds: all tasks together, where long "
        "answers count more than in a mean of tasks. **Speed-up**: median over the prompts of plain "
        "decoding's time a token over the method's. **Efficiency**: speed-up / tau. **Identical**: prompts answered "
        "with plain decoding's very tokens; the margin is the largest lead, in logits, of the best score where one was "
        "not. "
        f"Code: commit {commits}."
    )


def in_one_run(rows: Sequence[Row]) -> bool:
    """Whether all methods were compared with the same plain decoding; points of a sweep have one each."""
    cells = tables.groups(rows, *tables.SETTINGS, "task", "temperature", "seed")
    return all(len(tables.distinct(own, "plain_decode_seconds")) == 1 for _, own in cells)


def method_sections(rows: Sequence[Row]) -> list[str]:
    """Tables, a section a temperature."""
    sections = []
    for (temperature,), own in tables.groups(rows, "temperature"):
        sections += [f"### T = {temperature:g}: {tables.cells(own)}", tables.method_table(own)]
        if timed := [row for row in own if row["mode"] == TIMED]:
            sections += [f"### T = {temperature:g}: speed and exactness", tables.speed_table(timed)]
        sections += [f"### T = {temperature:g}: acceptance", tables.acceptance_table(own)]
    return sections


def draw(chart: Callable[[Theme], Figure], output: pathlib.Path, name: str) -> None:
    """A chart in every theme, as PNG and SVG."""
    for theme_name, theme in THEMES.items():
        save(chart(theme), output, f"{name}-{theme_name}")


def picture(name: str, caption: str) -> str:
    """Markdown of a chart, dark or light with the page."""
    dark, light = (f"{name}-{theme}.svg" for theme in ("dark", "light"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{caption}" src="{light}"></picture>\n\n{caption}'
    )


if __name__ == "__main__":
    launch.run(main, FLAGS)
