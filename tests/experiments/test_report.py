"""The report script on synthetic rows."""

import json
import re
from pathlib import Path

import pytest

from eagle_jax.figures.charts import CHARTS
from experiments import report
from experiments.cli import launch
from tests.evaluation.synthetic import METHODS, make_row, make_rows, played


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(rows: object, output: Path) -> int:
    return launch.call(report.main, report.FLAGS, [f"--rows={rows}", f"--output={output}"])


@pytest.fixture(autouse=True)
def one_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is what takes time; the others are drawn by the tests of figures."""
    assert report.CAPTIONS.keys() == CHARTS.keys()
    monkeypatch.setattr(report, "CHARTS", {"n_alpha": CHARTS["n_alpha"]})


def test_tables_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one.jsonl", make_rows())
    two = write(tmp_path / "two.jsonl", [make_row("prompt lookup", "gsm8k", 0.0, device="TPU v6", commit=None)])
    output = tmp_path / "a" / "report"
    assert run(f"{one},{two}", output) == 0
    names = {path.name for path in output.iterdir()}
    prefixes = ("toy-float32-cpu-128-tokens", "toy-float32-TPU-v6-128-tokens")
    figures = {
        f"{prefix}-n_alpha-{theme}.{end}"
        for prefix in prefixes
        for theme in ("light", "dark")
        for end in ("png", "svg")
    }
    assert names == {"report.md", *figures}
    said = f"wrote {output / 'report.md'} and 2 figures, for light and dark pages as PNG and SVG\n"
    assert capsys.readouterr().out == said
    text = (output / "report.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("#")]
    assert titles[:3] == ["# Measured", "## toy, float32, cpu, 128 tokens", "### T = 0: speed-up (tau)"]
    assert titles.index("## toy, float32, TPU v6, 128 tokens") == 8
    assert text.count("\nConversations and, in brackets, their turns: mt_bench 10 (10), gsm8k 10 (10).\n") == 1
    for label in METHODS:
        assert text.count(f"\n| {label} | ") == (9 if label == "prompt lookup" else 6)
    assert "Code: commit abc, None." in text
    for name in figures:
        assert (name in text) == name.endswith("svg")


def test_what_does_not_compare_stands_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First turns beside whole conversations, long answers beside short ones; another run of the same does compare."""
    monkeypatch.setattr(report, "draw", lambda chart, output, name: None)
    first = [row for row in make_rows() if row["label"] == "eagle3, 60 nodes"]
    field = [{**row, "label": "field", "turns": 20 if row["task"] == "mt_bench" else 10} for row in first]
    files = (first, field, [{**first[0], "label": "another"}], [{**row, "max_new_tokens": 256} for row in first])
    paths = [write(tmp_path / f"{number}.jsonl", rows) for number, rows in enumerate(files)]
    assert run(",".join(map(str, paths)), tmp_path / "report") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    one, two, three = text.split("\n## ")[1:]
    assert one.startswith("toy, float32, cpu, 128 tokens\n")
    assert "turns: mt_bench 10 (10), gsm8k 10 (10). In figures, of some of these tasks alone: another.\n" in one
    assert re.search(r"\n\| another \| 60, 7, 10 \| \d.* \| - \(-\) \| - \| - \|\n", one)
    assert two.startswith("toy, float32, cpu, 128 tokens (2)\n")
    assert "turns: mt_bench 10 (20), gsm8k 10 (10).\n" in two
    assert re.findall(r"\n\| (\w+) \| 60", two) == ["field", "field"]
    assert "toy-float32-cpu-128-tokens-2-n_alpha-light.svg" in two
    assert three.startswith("toy, float32, cpu, 256 tokens\n")


@pytest.mark.parametrize(
    ("seconds", "files", "who"), [(9.0, 1, "all methods"), (None, 1, "each method"), (9.0, 2, "each method")]
)
def test_one_process_is_claimed_of_one_run_alone(
    seconds: float | None, files: int, who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points of a sweep have a plain decoding each, as have two files."""
    monkeypatch.setattr(report, "draw", lambda chart, output, name: None)
    rows = [row if seconds is None else {**row, "plain_decode_seconds": seconds} for row in make_rows()]
    paths = [write(tmp_path / f"{number}.jsonl", rows[number::files]) for number in range(files)]
    assert run(",".join(map(str, paths)), tmp_path / "report") == 0
    assert f"plain decoding and {who} in one process" in (tmp_path / "report" / "report.md").read_text()


def test_rows_without_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sweep played back: tau and acceptance alone."""
    monkeypatch.setattr(report, "CHARTS", dict(CHARTS))
    drawn: list[str] = []
    monkeypatch.setattr(report, "draw", lambda chart, output, name: drawn.append(f"{name} {len(chart().axes)}"))
    assert run(write(tmp_path / "rows.jsonl", [played(row) for row in make_rows()]), tmp_path / "report") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "### T = 0: tau\n" in text
    assert "| - (" not in text
    assert "speed and exactness" not in text
    assert drawn == [
        f"toy-float32-cpu-128-tokens-{name}"
        for name in ("tau_by_depth 2", "n_alpha 2", "tau_against_nodes 1", "tau_against_depth 2")
    ]


def test_trees_of_one_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts over sizes need two of them in one method."""
    monkeypatch.setattr(report, "CHARTS", dict(CHARTS))
    drawn: list[str] = []
    monkeypatch.setattr(report, "draw", lambda chart, output, name: drawn.append(name))
    rows = [row for row in make_rows() if row["label"] in ("eagle3, 60 nodes", "prompt lookup")]
    assert run(write(tmp_path / "rows.jsonl", rows), tmp_path / "report") == 0
    assert {
        name.removeprefix("toy-float32-cpu-128-tokens-") for name in drawn
    } == CHARTS.keys() - report.COMPARED.keys()


def write_run(folder: Path, steps: int = 1) -> Path:
    folder.mkdir()
    lines: list[dict[str, object]] = [{"step": 10, "kind": "train", "loss": 2.0, "simulated_tau": 1.1}]
    lines += [{"step": 10, "kind": "heldout", "simulated_tau": 1.1, **{f"accuracy_{i}": 0.5 for i in range(steps)}}]
    return write(folder / "metrics.jsonl", lines)


def test_training_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [write_run(tmp_path / "one"), write_run(tmp_path / "unrolled", steps=2)]
    output = tmp_path / "report"
    assert launch.call(report.main, report.FLAGS, [f"--metrics={paths[0]},{paths[1]}", f"--output={output}"]) == 0
    names = {f"{name}-{theme}" for name in ("training", "steps-unrolled") for theme in ("light", "dark")}
    assert {path.stem for path in output.glob("*.svg")} == {path.stem for path in output.glob("*.png")} == names
    text = (output / "report.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == ["# Measured", "## Training"]
    assert all(f"{name}.svg" in text for name in names)
    said = f"wrote {output / 'report.md'} and 2 figures, for light and dark pages as PNG and SVG\n"
    assert capsys.readouterr().out == said


def test_two_runs_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "one")
    assert launch.call(report.main, report.FLAGS, [f"--metrics={path},{path}", f"--output={tmp_path}"]) == 2
    assert capsys.readouterr().err == "error: runs are named after their folders, got two called 'one'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "error: no rows in FILE"),
        ("{}\n", "error: FILE, line 1: not a row of experiments.evaluate"),
        ('{"settings": {}}\n', "error: FILE, line 1: not a row of experiments.evaluate"),
        ("[]\n", "error: FILE, line 1: not a row of experiments.evaluate"),
        ("{\n", "error: FILE, line 1: not a row of experiments.evaluate"),
        (
            2 * (json.dumps(make_row("prompt lookup", "gsm8k", 0.0)) + "\n\n"),
            "error: FILE, line 3 measures 'prompt lookup' on gsm8k again, after FILE, line 1",
        ),
    ],
)
def test_files_that_hold_no_rows(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    assert run(path, tmp_path / "report") == 2
    assert capsys.readouterr().err.replace(str(path), "FILE") == message + "\n"
    assert not (tmp_path / "report").exists()


def test_bad_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none.jsonl", tmp_path / "report") == 2
    assert launch.call(report.main, report.FLAGS, ["--rows=x"]) == 2
    assert launch.call(report.main, report.FLAGS, ["--output=x"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path / 'none.jsonl'}: No such file or directory",
        "error: give --output, a directory for the report, or --tau_table, a file",
        "error: give --rows, files of experiments.evaluate, --metrics, of experiments.train, or --tau_by_tokens of a"
        " sweep",
    ]
