"""The script that plays answers back: its cells agree with real decoding, and nothing is measured twice."""

import json
from pathlib import Path

import pytest

from eagle_jax.provenance import git_commit
from experiments import generate, replay
from experiments.cli import launch

SHORT = ["--num_prompts=2", "--batch=2", "--max_new_tokens=12", "--temperatures=0,1"]


@pytest.fixture
def tasks(tmp_path: Path) -> list[Path]:
    """Two tasks of three questions."""
    found = []
    for name in ("sums", "rhymes"):
        path = tmp_path / name / "question.jsonl"
        path.parent.mkdir()
        path.write_text("\n".join(json.dumps({"prompt": f"{name} {i} {name} {i}"}) for i in range(3)))
        found.append(path)
    return found


def call(model: Path, tasks: list[Path], *more: str) -> int:
    """The script's exit code."""
    paths = ",".join(map(str, tasks))
    return launch.call(replay.main, replay.FLAGS, [f"--target={model}", f"--tasks={paths}", *SHORT, *more])


def test_cells_are_those_of_decoding(
    tiny_model: Path, tasks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tau of each task, the table over both, and a second run that repeats nothing."""
    output = tmp_path / "grid.jsonl"
    more = ["--drafts=prompt_lookup:5/3/1", f"--output={output}"]
    assert call(tiny_model, tasks, *more) == 0
    table = capsys.readouterr().out.strip().split("\n")
    assert table[0] == "| draft | T | noise | sums | rhymes | all |"
    assert len(table) == 2 + 3  # T = 0, T = 1 with shared noise and without
    shared, *found = (json.loads(line) for line in output.read_text().splitlines())
    assert shared["settings"]["max_new_tokens"] == 12
    assert len(found) == 6
    for cell in found:
        record = tmp_path / "record.json"
        arguments = [
            f"--target={tiny_model}",
            "--method=prompt_lookup",
            "--nodes=5",
            f"--prompts_file={tmp_path / cell['task'] / 'question.jsonl'}",
            "--num_prompts=2",
            "--max_new_tokens=12",
            f"--temperature={cell['temperature']}",
            f"--json_output={record}",
        ]
        assert launch.call(generate.main, generate.FLAGS, arguments) == 0
        real = json.loads(record.read_text())
        assert (cell["tokens"], cell["rounds"]) == (real["tokens"], real["rounds"])
        assert cell["tau"] == pytest.approx(real["tau"])
        assert (cell["device"], cell["commit"]) == ("cpu", git_commit())
    capsys.readouterr()
    whole = output.read_text()
    output.write_text(whole[:-20])  # the last cell is cut short, as by a crash
    assert call(tiny_model, tasks, *more) == 0
    assert capsys.readouterr().out.strip().split("\n") == table
    assert output.read_text() == whole


def test_other_questions_are_other_cells(
    tiny_model: Path, tasks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "grid.jsonl"
    more = ["--drafts=prompt_lookup:5/3/1", f"--output={output}", "--temperatures=0"]
    assert call(tiny_model, tasks[:1], *more) == 0
    tasks[0].write_text(tasks[0].read_text().replace("sums 0", "sums 7"))
    assert call(tiny_model, tasks[:1], *more) == 0
    one, other = (json.loads(line) for line in output.read_text().splitlines()[1:])
    assert one["questions"] != other["questions"]
    capsys.readouterr()
    assert call(tiny_model, tasks[:1], *more, "--max_new_tokens=9") == 2
    assert "is another run: its max_new_tokens is 12, not 9" in capsys.readouterr().err


def test_cells_of_several_commits(
    tiny_model: Path,
    tasks: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A journal goes on with other code; the table is of all its cells, and as that of one go."""
    output = tmp_path / "grid.jsonl"
    more = ["--drafts=prompt_lookup:5/3/1", "--temperatures=0"]
    assert call(tiny_model, tasks, *more) == 0
    table = capsys.readouterr().out
    for commit, some in (("one", tasks[:1]), ("other", tasks)):
        monkeypatch.setattr(replay, "commit", lambda commit=commit: commit)
        assert call(tiny_model, some, *more, f"--output={output}") == 0
    assert capsys.readouterr().out.endswith(table)
    found = [json.loads(line) for line in output.read_text().splitlines()[1:]]
    assert [(cell["task"], cell["commit"]) for cell in found] == [("sums", "one"), ("rhymes", "other")]
    together = sum(cell["tokens"] - 2 for cell in found) / sum(cell["rounds"] for cell in found)
    assert table.endswith(f"| {together:.2f} |\n")


def test_cells_that_leave_first_tokens_out(
    tiny_model: Path, tasks: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written by earlier code: their sums would not go with the others'."""
    output = tmp_path / "grid.jsonl"
    more = ["--drafts=prompt_lookup:5/3/1", "--temperatures=0", f"--output={output}"]
    assert call(tiny_model, tasks[:1], *more) == 0
    tokens = json.loads(output.read_text().splitlines()[1])["tokens"]
    output.write_text(output.read_text().replace(f'"tokens": {tokens}', f'"tokens": {tokens - 2}'))
    assert call(tiny_model, tasks[:1], *more) == 2
    assert f"its {tokens - 2} tokens of 2 answers in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--drafts=medusa"], "method 'medusa' is not one of"),
        (
            ["--drafts=eagle3:60"],
            "a draft is METHOD or METHOD:NODES/DEPTH/TOP_K, such as eagle3:60/7/10, got 'eagle3:60'",
        ),
        (["--drafts=lookahead"], "lookahead learns from tokens that were refused, which only the target's passes can"),
        (["--batch=0"], "--batch must be at least 1, got 0"),
        (["--num_prompts=9"], "num_prompts is 9"),
    ],
)
def test_mistakes_are_one_line(
    tiny_model: Path, tasks: list[Path], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, nothing measured."""
    assert call(tiny_model, tasks, *more) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
