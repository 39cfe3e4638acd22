import sys
from pathlib import Path

import pytest

from experiments.bench import measure
from experiments.cli import launch

SHORT = ["--prompt_tokens=20", "--new_tokens=8", "--repeats=1"]


def table(capsys: pytest.CaptureFixture[str], tiny_model: Path, what: str) -> list[list[str]]:
    """The rows of the printed table, header first."""
    assert launch.call(measure.main, measure.FLAGS, [f"--target={tiny_model}", f"--what={what}", *SHORT]) == 0
    settings, _, header, _, *rows = capsys.readouterr().out.strip().split("\n")
    assert settings.startswith(f"{tiny_model}, float32, cpu, ")
    assert settings.endswith("prompt of 20 tokens, 8 new ones, medians of 1")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)]


def test_pass_costs(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    header, *rows = table(capsys, tiny_model, "pass_costs")
    assert header == ["tokens", "ms a pass", "over 1 token"]
    assert [int(row[0]) for row in rows] == [1, 2, 4, 8, 12, 16, 32, 64]
    assert rows[0][2] == "1.00"
    assert all(float(row[1]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("what", "names"), [("length", ["512", "4096"]), ("sampling", ["T = 0", "T = 1", "T = 0.7, top-p 0.9"])]
)
def test_plain_decoding(capsys: pytest.CaptureFixture[str], tiny_model: Path, what: str, names: list[str]) -> None:
    _, *rows = table(capsys, tiny_model, what)
    assert [row[0] for row in rows] == names
    assert rows[0][2] == "1.00"


def test_parts_of_a_round(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    header, *rows = table(capsys, tiny_model, "split")
    assert header == ["part of a round of prompt_lookup, 11 nodes", "ms", "share"]
    assert [row[0] for row in rows] == ["round", "draft", "target", "observe", "rest"]
    costs = [float(row[1]) for row in rows]
    assert all(cost > 0 for cost in costs[:4])
    assert costs[0] == pytest.approx(sum(costs[1:]), rel=0.1)


def test_pytorch_writes_the_same_tokens(capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    pytest.importorskip("torch")
    header, *rows = table(capsys, tiny_model, "torch")
    speeds = ["ms a token, prompt included", "speed-up", "ms a token", "speed-up"]
    assert header == ["plain decoding by", *speeds, "equal tokens"]
    assert [(row[0], row[-1]) for row in rows] == [("transformers and torch", "8/8"), ("eagle_jax", "8/8")]
    assert rows[0][2] == rows[0][4] == "1.00"


def test_pytorch_is_asked_for_in_one_line(
    capsys: pytest.CaptureFixture[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert launch.call(measure.main, measure.FLAGS, [f"--target={tiny_model}", "--what=torch", *SHORT]) == 2
    assert "the comparison needs PyTorch" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt_tokens=0"], "got 0 and 128"),
        (["--new_tokens=1"], "got 240 and 1"),
        (["--prompt_tokens=400"], "must come to less than 512, got 400 and 128"),
        (["--what=speed"], "value should be one of <peers|pass_costs|torch|length|sampling|split>"),
        (["--repeats=0", "--prompt_tokens=20", "--new_tokens=8"], "repeats must be at least 1, got 0"),
    ],
)
def test_bad_flags(capsys: pytest.CaptureFixture[str], tiny_model: Path, arguments: list[str], message: str) -> None:
    assert launch.call(measure.main, measure.FLAGS, [f"--target={tiny_model}", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
