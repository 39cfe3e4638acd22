"""Tables and figures of measured rows.

    python -m experiments.report --rows=heads.jsonl,field.jsonl --output=DIRECTORY

--rows are files of experiments.evaluate. The directory gets report.md and, for light and dark pages, every figure as
PNG and SVG. Rows of different targets, dtypes or devices stand in sections of their own: they do not compare.
"""

import json
import pathlib
import re
from collections.abc import Sequence

from absl import flags

from eagle_jax.evaluation import tables
from eagle_jax.evaluation.figures import CHARTS
from eagle_jax.evaluation.tables import Row
from eagle_jax.evaluation.themes import THEMES
from experiments import launch

FLAGS = flags.FlagValues()
flags.DEFINE_list("rows", None, "JSON lines of experiments.evaluate: one or more files", flag_values=FLAGS)
flags.DEFINE_string("output", None, "directory to write; files of the same names are replaced", flag_values=FLAGS)

CELL = ("target", "dtype", "device", "label", "task", "temperature", "seed")
"""What tells cells apart."""

CAPTIONS = {
    "speedup_by_method": "Speed-up over plain decoding in the same process, medians over the prompts.",
    "tau_by_depth": "What a round writes if it accepts no more than so many drafted tokens.",
    "n_alpha": "Chance that one more token is accepted when n drafted ones were.",
    "tau_against_nodes": "What larger trees bring, in tokens a round and in time.",
    "time_split": "Where the time of a written token goes.",
}


def main() -> None:
    """Write the report that the flags ask for."""
    for name in ("rows", "output"):
        if not getattr(FLAGS, name):
            raise ValueError(f"give --{name}")
    rows = read_rows(FLAGS.rows)
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    sections = ["# Measured", introduction(rows)]
    for (target, dtype, device), own in tables.groups(rows, "target", "dtype", "device"):
        title = f"{target}, {dtype}, {device}"
        sections.append(f"## {title}")
        sections += method_sections(own)
        prefix = re.sub(r"\W+", "-", title).strip("-")
        with launch.status(f"Drawing {title}"):
            draw_all(own, output, prefix)
        sections += [picture(prefix, name) for name in CHARTS]
    (output / "report.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print(f"wrote {output / 'report.md'} and {len(list(output.glob('*.svg')))} figures", flush=True)


def read_rows(paths: Sequence[str]) -> list[Row]:
    """All rows, in the order of the files.

    Raises:
      ValueError: a line that is no row, no row at all, or a cell that stands there twice.
    """
    rows: list[Row] = []
    seen: dict[tuple[object, ...], str] = {}
    for path in paths:
        for number, line in enumerate(pathlib.Path(path).read_text(encoding="utf-8").split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
                cell = tuple(row[name] for name in CELL)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{where}: not a row of experiments.evaluate") from error
            if cell in seen:
                raise ValueError(f"{where} measures {row['label']!r} on {row['task']} again, after {seen[cell]}")
            seen[cell] = where
            rows.append(row)
    if not rows:
        raise ValueError(f"no rows in {', '.join(paths)}")
    return rows


def introduction(rows: Sequence[Row]) -> str:
    """What the numbers mean and what code they were measured with."""
    commits = ", ".join(str(commit) for commit in tables.distinct(rows, "commit"))
    return (
        "Batch 1; plain decoding and all methods in one process, in alternation, on the same prompts; compiling apart. "
        "**tau**: tokens a round, bonus included (plain decoding: 1). **Speed-up**: median over the prompts of plain "
        "decoding's time a token over the method's. **Efficiency**: speed-up / tau. **Identical**: prompts answered "
        "with plain decoding's very tokens; the margin is the largest lead, in logits, of the best score where one was "
        "not. "
        f"Code: commit {commits}."
    )


def method_sections(rows: Sequence[Row]) -> list[str]:
    """Tables, a section a temperature."""
    sections = []
    for (temperature,), own in tables.groups(rows, "temperature"):
        sections += [
            f"### T = {temperature:g}: speed-up / tau",
            tables.method_table(own),
            f"### T = {temperature:g}: speed and exactness",
            tables.speed_table(own),
            f"### T = {temperature:g}: acceptance",
            tables.acceptance_table(own),
        ]
    return sections


def draw_all(rows: Sequence[Row], output: pathlib.Path, prefix: str) -> None:
    """Every chart, in every theme, as PNG and SVG."""
    for name, chart in CHARTS.items():
        for theme_name, theme in THEMES.items():
            figure = chart(rows, theme)
            for ending in ("png", "svg"):
                figure.savefig(output / f"{prefix}-{name}-{theme_name}.{ending}", dpi=150)


def picture(prefix: str, name: str) -> str:
    """A chart as the page's background wants it."""
    dark, light = (f"{prefix}-{name}-{theme}.svg" for theme in ("dark", "light"))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img alt="{name.replace("_", " ")}" src="{light}"></picture>\n\n{CAPTIONS[name]}'
    )


if __name__ == "__main__":
    launch.run(main, FLAGS)
