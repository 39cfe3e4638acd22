"""The drawing script on a tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.pretrained import load_target
from experiments import draw
from experiments.cli import launch
from tests.checkpoint.heads import random_block_head, random_head

COMMON = ["--nodes=5", "--depth=1", "--top_k=2", "--max_new_tokens=12"]


@pytest.fixture(scope="module")
def head(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads") / "eagle3"
    model = load_target(str(tiny_model))
    save_head(folder, *random_head("eagle3", model.config), model.config)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One theme is enough here, and programs run for milliseconds but compile for seconds."""
    monkeypatch.setattr(draw, "THEMES", {"dark": draw.THEMES["dark"]})
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def run(*arguments: str) -> int:
    return launch.call(draw.main, draw.FLAGS, arguments)


def test_trees_with_what_was_dropped(
    tiny_model: Path, head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"--target={tiny_model}", f"--head={head}", f"--output={tmp_path}"]
    asked = ["--prompt=Hello", "--first=2", "--rounds=2", "--dropped=2", "--log_probabilities"]
    assert run(*models, *COMMON, *asked) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        f"round-{number}-dark.{ending}" for number in (2, 3) for ending in ("png", "svg")
    }
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[::2]] == ["round 2", "round 3"]
    assert said[1::2] == [f"wrote {tmp_path}/round-{number}-{{dark}}.{{png,svg}}" for number in (2, 3)]
    picture = (tmp_path / "round-2-dark.svg").read_text()
    nodes = {f"node-{node}" for node in range(8)}  # the root, 4 drafted, 2 dropped, the target's own
    assert all(f'id="{name}"' in picture for name in nodes)
    assert "cannot be accepted" in picture


def test_the_lists_of_slots(tiny_model: Path, tmp_path: Path) -> None:
    """Above the tree, a column for each slot that the tree is deep."""
    model, head = load_target(str(tiny_model)), tmp_path / "head"
    save_head(head, *random_block_head(model.config), model.config, engine=None)
    models = [f"--target={tiny_model}", f"--head={head}", f"--output={tmp_path}", "--method=one_pass"]
    assert run(*models, *COMMON, "--prompt=Hello", "--slots=3", "--temperature=1", "--noise_level=1") == 0
    picture = (tmp_path / "round-1-dark.svg").read_text()
    listed = [f'id="list-{slot}-{line}"' for slot in range(2) for line in range(3)]
    assert all(name in picture for name in [*listed, 'id="node-4"'])
    assert 'id="list-2-0"' not in picture
    assert 'id="list-0-3"' not in picture


def test_strip_reliability_and_times(
    tiny_model: Path, head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"--target={tiny_model}", f"--head={head}", f"--output={tmp_path}"]
    assert run(*models, *COMMON, "--what=strip", "--prompt=Hello", "--rounds=3") == 0
    assert capsys.readouterr().out.startswith("3 rounds: ")
    questions = tmp_path / "question.jsonl"
    questions.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("Hello", "Good day")))
    assert run(*models, *COMMON, "--what=reliability", f"--prompts_file={questions}", "--num_prompts=2") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"wrote {tmp_path}/reliability-{{dark}}.{{png,svg}}"
    assert [line.split(":")[0] for line in lines] == ["T = 0", "T = 0", "T = 1", "T = 1"]
    assert "tokens, mean confidence" in lines[0]
    assert run(*models, "--what=times", "--prompt=Hello", "--drafts=eagle3:5/1/2", "--repeats=1") == 0
    assert capsys.readouterr().out.startswith("eagle3:5/1/2: round ")
    names = {path.name for path in tmp_path.glob("*.svg")}
    assert names == {"rounds-1-3-dark.svg", "reliability-dark.svg", "times-dark.svg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=x"], "give --prompt: tree, strip, times: the user's message"),
        (["--prompt=Hello"], "give --output: directory to write; files of the same names are replaced"),
        (["--what=reliability", "--output=x"], "give --prompts_file: reliability: questions, JSON lines"),
        (["--prompt=Hello", "--output=x", "--first=0"], "--first must be at least 1, got 0"),
        (["--prompt=Hello", "--output=x", "--dropped=-1"], "--dropped must be at least 0, got -1"),
        (["--prompt=Hello", "--output=x", "--slots=-1"], "--slots must be at least 0, got -1"),
        (
            ["--prompt=Hello", "--output=x", "--slots=4"],
            "--method=eagle3 has no slots, as one_pass has",
        ),
        (
            ["--prompt=Hello", "--output=x", "--method=one_pass", "--slots=4", "--dropped=3"],
            "--slots=4 and --dropped=3 are two pictures: give one of them",
        ),
        (
            ["--prompt=Hello", "--output=x", "--method=prompt_lookup", "--dropped=3"],
            "--method=prompt_lookup drops no nodes, as eagle2, eagle3 and one_pass do",
        ),
    ],
)
def test_bad_flags(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_round_that_never_comes(
    tiny_model: Path, head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [f"--target={tiny_model}", f"--head={head}", f"--output={tmp_path}"]
    assert run(*models, *COMMON, "--prompt=Hello", "--first=30") == 2
    assert "round 30 was requested, the answer has " in capsys.readouterr().err
