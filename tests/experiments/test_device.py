"""Costs of a shape without a checkpoint: every kind of cost, in pieces, and mistakes in one line."""

import json
from pathlib import Path

import pytest

from configs.targets import shapes
from configs.targets.shapes import Published
from eagle_jax.testing import tiny_transformer
from experiments.bench import device
from experiments.cli import launch

SHORT = ["--shapes=tiny", "--dtypes=float32", "--prompt_tokens=8", "--repeats=1", "--trees=4/1/2", "--passes=8"]
COSTS = ["plain step", "round 4/1/2", "pass over 8", "prompt of 8"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the table of shapes that compiles in seconds."""
    monkeypatch.setitem(shapes.TARGETS, "tiny", Published(tiny_transformer(num_layers=3)[0], 0))


def run(output: Path, *more: str) -> int:
    return launch.call(device.main, device.FLAGS, [*SHORT, f"--output={output}", *more])


def test_in_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is not measured again, what is missing is; the table has all of it."""
    output = tmp_path / "device.jsonl"
    assert run(output, "--batches=1,2", "--time_limit=-1") == 0
    assert "time is up, 8 of 8 costs are missing; the same command goes on" in capsys.readouterr().out
    assert run(output, "--batches=1") == 0
    monkeypatch.setattr(device, "_round", lambda at, tree: 1.0 + tree.nodes)
    assert run(output, "--batches=1,2") == 0
    records = [json.loads(line) for line in output.read_text().splitlines()][1:]
    assert [record["key"] for record in records] == [
        ["tiny", "float32", batch, what] for batch in (1, 2) for what in COSTS
    ]
    assert all(record["ms"] > 0 for record in records)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")][-8:]
    assert [row[3].strip() for row in rows] == 2 * COSTS
    assert [float(rows[row][5]) for row in (0, 4, 5)] == [1.0, 1.0, 2.5]
    assert records[5]["ms"] == 5.0


def test_a_batch_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, and the others are measured."""

    def full(at: object, tree: object) -> float:
        raise device.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(device, "_round", full)
    assert run(tmp_path / "device.jsonl", "--batches=1") == 0
    records = [json.loads(line) for line in (tmp_path / "device.jsonl").read_text().splitlines()][1:]
    assert [(record["ms"] is None, record.get("reason")) for record in records] == [
        (True, "does not fit"),
        (True, "does not fit"),
        (False, None),
        (False, None),
    ]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--shapes=gpt-5", "target config 'gpt-5' is not one of smollm2-135m, llama2-7b, "),
        ("--trees=60", "--trees takes nodes/depth/top-k, such as 60/7/10, got '60'"),
        ("--batches=0", "--batches takes whole numbers above 0, got 0"),
        ("--passes=a", "--passes takes whole numbers above 0, got a"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, message: str) -> None:
    assert run(tmp_path / "device.jsonl", flag) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
