"""Runs of the training script on a tiny model: configs, conversations, and what a run has left."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from experiments import train
from experiments.cli import launch

DRAFT_SIZE = 40
STEPS = 2
CONFIG = f"""
from configs.train import BASE as base

def get_config():
    config = base.get_config()
    config.target = TARGET
    config.epochs = 0.8
    config.optimizer.name = "adamw"  # compiles sooner
    config.data.update(length=64, slots=48, batch=2, heldout=2)
    config.features.update(dtype="float32", length=64, batch=3)
    config.loop.update(log_every=1, save_every=2, heldout_every=2, evaluate_every=2)
    config.evaluation.update(num_prompts=2, max_new_tokens=6, nodes=4, depth=1, top_k=2)
    if "head" in config:
        config.head.draft_vocab_size = {DRAFT_SIZE}
    if "block" in config.get("head", {{}}):
        config.head.update(num_layers=2, block=3, edge_rank=4)
        config.recipe.num_anchors = 5
    if "num_steps" in config.get("recipe", {{}}):
        config.recipe.num_steps = 2
    if "draft" in config:
        config.draft.layers, config.draft.vocab_size = (0, -1), 40
    return config
"""
BASES = {"eagle3": "eagle3_smollm2", "gpu": "eagle3_gpu", "eagle": "eagle_smollm2", "draft": "distill_draft"}
BASES |= {"one_pass": "one_pass_smollm2"}


def conversation(number: int) -> dict[str, Any]:
    answer = " ".join(str(number + step) for step in range(6))
    return {"messages": [{"role": "user", "content": f"Count from {number}"}, {"role": "assistant", "content": answer}]}


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


class Task(NamedTuple):
    """What is trained on what."""

    target: Path
    data: Path
    configs: Path  # a folder, one file a kind


def run(task: Task, folder: Path, *more: str, kind: str = "eagle3") -> int:
    """Train in `folder`; later flags go first."""
    flags = [f"--config={task.configs / kind}.py", f"--data={task.data}", f"--run={folder / 'run'}", "--quiet", *more]
    return launch.call(train.main, train.FLAGS, flags)


def refused(capsys: pytest.CaptureFixture[str], task: Task, folder: Path, *more: str, kind: str = "eagle3") -> str:
    """The one line of a run that must fail."""
    assert run(task, folder, *more, kind=kind) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, without what the clock decides."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
