"""The exactness script: its rows, what a difference comes to, and what it refuses before it loads anything."""

import json
from pathlib import Path
from typing import Any

import pytest

from eagle_jax.provenance import git_commit
from experiments import exactness
from experiments.cli import launch

SHORT = ["--num_prompts=3", "--batch=2", "--max_new_tokens=12", "--laws=0,0.7:0.9"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "question.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{word} {word} {word}"}) for word in ("one", "two", "three")))
    return path


def call(model: Path | str, questions: Path, *more: str) -> int:
    arguments = [f"--target={model}", f"--prompts_file={questions}", *SHORT, *more]
    return launch.call(exactness.main, exactness.FLAGS, arguments)


def test_rows(tiny_model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One for each law and method, with all that it was measured with."""
    output = tmp_path / "rows.jsonl"
    assert call(tiny_model, questions, "--methods=vanilla,chain", "--draft=self:1", f"--output={output}") == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2 + 2 + 4
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["method"], row["temperature"], row["top_p"]) for row in rows] == [
        ("vanilla", 0.0, 1.0),
        ("chain", 0.0, 1.0),
        ("vanilla", 0.7, 0.9),
        ("chain", 0.7, 0.9),
    ]
    for row, line in zip(rows, shown[4:], strict=True):
        assert (row["target"], row["dtype"], row["device"]) == (str(tiny_model), "float32", "cpu")
        assert (row["seed"], row["batch"], row["max_new_tokens"], row["prompts"]) == (0, 2, 12, 3)
        assert (row["answers"], row["differing"], row["first_difference_margin"]) == (3, 0, None)
        assert row["commit"] == git_commit()
        assert row["tokens"] <= 36
        assert line.startswith(f"| {row['method']} | T = {row['temperature']:g}")
        assert line.endswith(f"| 3 | {row['tokens']} | {row['tau']:.2f} | 0 | - |")
    assert [row["given"] for row in rows[:2]] == [{}, {"draft": "self:1"}]
    assert rows[1]["tree"] == {"nodes": 6, "depth": 4, "top_k": 1}
    assert rows[0]["weights"] != rows[1]["weights"]


def test_differences(
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Counted, with the largest margin; what was finished before a crash is there, and nothing is written over."""
    output, write, written = tmp_path / "rows.jsonl", exactness.write, []

    def wrong(*args: Any) -> tuple[list[list[int]], float]:
        """The method, which writes second, answers otherwise from token 3 on; with the second law it is stopped."""
        answers, tau = write(*args)
        written.append(answers)
        if len(written) == 4:
            raise KeyboardInterrupt
        if len(written) == 2:
            answers[1][3] = (answers[1][3] + 1) % 257
        return answers, tau

    monkeypatch.setattr(exactness, "write", wrong)
    assert call(tiny_model, questions, f"--output={output}") == launch.INTERRUPTED
    (row,) = (json.loads(line) for line in output.read_text().splitlines())
    assert (row["answers"], row["differing"]) == (3, 1)
    assert row["first_difference_margin"] > 0

    written.clear()
    with pytest.raises(SystemExit, match="1"):
        call(tiny_model, questions, "--laws=0", "--near_tie=0")
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"| 1 | {row['first_difference_margin']:.3g} |")

    whole = output.read_text()
    assert call("nothing", questions, f"--output={output}") == launch.USER_ERROR
    assert f"--output={output} must name a new file, there is one of {len(whole)} bytes" in capsys.readouterr().err
    assert output.read_text() == whole


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--methods=", "--methods names none; there are vanilla, "),
        ("--laws=0.7:1.5", "top_p must be above 0 and at most 1, got 1.5"),
        ("--laws=hot", "--laws takes T or T:top_p, such as 0.7:0.9, got 'hot'"),
        ("--batch=0", "--batch must be at least 1, got 0"),
        ("--output=no/rows", "--output=no/rows must name a file in a folder that exists, no is none"),
    ],
)
def test_mistakes(flag: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("nothing", tmp_path / "none.jsonl", flag) == launch.USER_ERROR
    assert message in capsys.readouterr().err
