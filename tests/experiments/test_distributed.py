"""Two processes of `experiments.generate` write on one mesh what one process writes, and one of them says so."""

import json
from pathlib import Path
from typing import Any

import pytest

from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.evaluation import metrics
from eagle_jax.models.transformer import make_target
from eagle_jax.sharding import make_mesh
from experiments import generate
from experiments.cli import launch
from tests.processes import run_two

ASKED = ["abab", "cc", "one two one"]


def run(folder: str, output: str, *flags: str) -> int:
    named = [f"--target={folder}/model", f"--prompts_file={folder}/question.jsonl", f"--json_output={folder}/{output}"]
    law = ["--method=prompt_lookup", "--depth=2", "--temperature=1", "--max_new_tokens=12", "--compare"]
    return launch.call(generate.main, generate.FLAGS, [*named, *law, *flags])


def margin(folder: str, **where: Any) -> float:
    """Of a text of its own; on a mesh every process must find it."""
    model = load_target(f"{folder}/model", **where)
    return metrics.margin(make_target(model.config), model.params, [5, 6, 7], temperature=1.0)


def join(process: int, port: int, folder: str) -> None:
    """What each of the processes runs."""
    together = [f"--distributed=127.0.0.1:{port},2,{process}", "--mesh=2x4"]
    assert run(folder, "one_by_one.json", *together) == 2, "one row is not dealt out over two groups"
    assert run(folder, "two.json", "--batch=2", "--mesh=2x4") == 0
    assert run(folder, "alone.json", "--batch=2", "--mesh=1x4") == 2, "half of the devices"
    assert run(folder, "slow.json", "--mesh=1x8") == 0
    print(json.dumps(margin(folder, mesh=make_mesh(2, 4))))


@pytest.mark.slow
def test_two_processes(tiny_model: Path, tmp_path: Path) -> None:
    folder = str(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    (tmp_path / "question.jsonl").write_text("\n".join(json.dumps({"prompt": text}) for text in ASKED))
    assert run(folder, "one.json") == 0
    first, second = run_two(__name__, folder)
    assert [json.loads(lines[-1]) for lines in (first, second)] == pytest.approx([margin(folder)] * 2, abs=1e-4)
    closing = [[line for line in lines if line.startswith("plain decoding:")] for lines in (first, second)]
    assert (len(closing[0]), closing[1]) == (2, [])
    one, two, slow = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two", "slow"))
    assert (two["mesh"], two["batch"], two["identical_prompts"], slow["identical_prompts"]) == ("2x4", 2, 3, 3)
    assert one["answers"] == two["answers"] == slow["answers"]
    assert one["rounds"] == two["rounds"] == slow["rounds"]
