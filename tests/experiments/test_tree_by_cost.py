"""Sizes of trees by cost, from the command line."""

import json
from pathlib import Path

import pytest

from experiments.bench import tree_by_cost
from experiments.cli import launch

COSTS = ["--ladder=1,2,4", "--pass_ms=1,1.2,3", "--draft_ms=0.5"]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "question.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in ("abab", "cc cc", "one two one", "x")))
    return f"--prompts_file={path}"


def call(*flags: str) -> int:
    return launch.call(tree_by_cost.main, tree_by_cost.FLAGS, [*flags, "--num_prompts=4", "--max_new_tokens=24"])


def test_policies(tiny_model: Path, prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The bound is no worse than the others, and shares of sizes add up."""
    assert call(f"--target={tiny_model}", "--drafts=prompt_lookup:5/3/1", prompts, *COSTS) == 0
    title, _, header, _, *rows = capsys.readouterr().out.strip().split("\n")
    assert title == f"prompt_lookup:5/3/1, {tiny_model}, T = 0, 4 prompts, half of them reported"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)]
    assert cells[0][:4] == ["policy", "tau", "ms a token", "over fixed"]
    assert cells[0][4:] == ["1 nodes", "2 nodes", "4 nodes"]
    by_name = {row[0]: row[1:] for row in cells[1:]}
    assert list(by_name) == ["best fixed size", "by cost, the drafter's confidence", "by cost, calibrated", "bound"]
    assert by_name["best fixed size"][2] == "1.00"
    assert float(by_name["bound"][2]) == max(float(row[2]) for row in by_name.values())
    for row in by_name.values():
        assert sum(int(cell.rstrip("%")) for cell in row[3:]) in (99, 100, 101)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --pass_ms and --draft_ms, got None and None"),
        (["--ladder=1,2", "--pass_ms=1", "--draft_ms=1"], "--pass_ms is one cost for each size, got 1 for 2 sizes"),
        (["--ladder=0,2", "--pass_ms=1,1", "--draft_ms=1"], "--ladder must be at least 1, got 0"),
        (
            [*COSTS, "--drafts=prompt_lookup:3/1/1"],
            "--ladder go up to 4, but trees of prompt_lookup:3/1/1 have 3 nodes",
        ),
    ],
)
def test_mistakes(
    flags: list[str], message: str, tiny_model: Path, prompts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(f"--target={tiny_model}", prompts, *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
