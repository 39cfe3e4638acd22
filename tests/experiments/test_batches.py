"""The script that measures batches: its rows agree with decoding one by one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagle_jax.drafters import default_tree
from eagle_jax.generator import Generation, Generator
from eagle_jax.provenance import git_commit
from experiments import generate
from experiments.bench import batches
from experiments.cli import launch
from tests.experiments.test_methods import heads  # noqa: F401

SHORT = ["--max_new_tokens=10", "--repeats=1", "--temperature=1"]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "question.jsonl"
    path.write_text(
        "\n".join(json.dumps({"prompt": f"{word} {word} {word}"}) for word in ["one", "two", "three", "four", "five"])
    )
    return path


def call(model: Path, questions: Path, *more: str) -> int:
    return launch.call(batches.main, batches.FLAGS, [f"--target={model}", f"--prompts_file={questions}", *SHORT, *more])


def test_rows(tiny_model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two sizes of batch: the same text and the same rounds as answers written one at a time."""
    output, record = tmp_path / "rows.jsonl", tmp_path / "record.json"
    assert call(tiny_model, questions, "--drafts=prompt_lookup:4/2/1", "--batches=1,2", f"--output={output}") == 0
    shown = capsys.readouterr().out.strip().split("\n")
    assert shown[2].startswith(
        "| batch | draft | tree | tau | tokens/s | plain tokens/s | speed-up | tokens/s, with prefill |"
    )
    assert shown[4].startswith("| 1 | prompt_lookup | 4/2/1 |")
    assert len(shown) == 2 + 2 + 2
    alone = ["--method=prompt_lookup", "--nodes=4", f"--prompts_file={questions}", *SHORT[::2]]
    assert (
        launch.call(generate.main, generate.FLAGS, [f"--target={tiny_model}", *alone, f"--json_output={record}"]) == 0
    )
    one = json.loads(record.read_text())
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["batch"] for row in rows] == [1, 2]
    for row in rows:
        assert (row["prompts"], row["identical_prompts"]) == (5, 5)
        assert row["tree"] == {"nodes": 4, "depth": 2, "top_k": 1}
        assert (row["device"], row["repeats"], row["commit"]) == ("cpu", 1, git_commit())
        assert (row["tokens"], row["tau"]) == (one["tokens"], pytest.approx(one["tau"]))
        for ending in ("", "_with_prefill"):
            own, plain = (row[f"{side}tokens_per_second{ending}"] for side in ("", "plain_"))
            assert row[f"speedup{ending}"] == own / plain


def test_all_take_turns_at_being_first(
    tiny_model: Path, questions: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a turn is one part and a size of batch one turn; a batch that is never refilled is named."""
    seen: list[tuple[str, int]] = []

    def write(one: Generator, prompts: list[list[int]], **options: Any) -> Generation:
        if "sequence" in options:  # else it is the first call, which compiles
            seen.append((one.drafter.name, options["batch"]))
        counts = {"rounds": [1] * len(prompts), "accepted": np.zeros((len(prompts), 2), np.int32), "complete": True}
        return Generation(tokens=[[1, 2]] * len(prompts), prefill_seconds=1.0, decode_seconds=1.0, **counts)

    monkeypatch.setattr(batches, "write_all", write)
    assert call(tiny_model, questions, "--drafts=prompt_lookup", "--batches=4,5", "--repeats=3") == 0
    lookup, plain = "prompt_lookup", "vanilla"
    four = [(name, 4) for name in (plain, lookup, lookup, plain, plain, lookup)]
    five = [(name, 5) for name in (lookup, plain, plain, lookup, lookup, plain)]
    assert seen == four + five
    assert [record.getMessage() for record in caplog.records if record.name == batches.__name__] == [
        "batch 5: 5 prompts, no row is refilled and all wait for the longest"
    ]


def test_every_batch_answers_the_same_prompts(
    tiny_model: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as are given, else two of the largest batches, eight at least."""
    questions.write_text("\n".join(json.dumps({"prompt": f"count to {n}"}) for n in range(12)))
    seen: list[tuple[int, int]] = []

    def measure(model: object, contestants: object, prompts: list[list[int]], batch: int, _: int) -> dict[str, object]:
        seen.append((batch, len(prompts)))
        return {}

    monkeypatch.setattr(batches, "measure", measure)
    for more in (["--batches=1,5"], ["--batches=2,1"], ["--batches=1,2", "--num_prompts=3"]):
        assert call(tiny_model, questions, "--drafts=prompt_lookup", *more) == 0
    assert seen == [(1, 10), (5, 10), (2, 8), (1, 8), (1, 3), (2, 3)]


def test_tree_shrinks_as_the_batch_grows(
    tiny_model: Path,
    questions: Path,
    heads: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no sizes are given; the same text from every tree."""
    monkeypatch.setattr(default_tree, "CPU_ROOM", (4, 4))
    output = tmp_path / "rows.jsonl"
    flags = ["--drafts=eagle3", f"--head={heads / 'eagle3'}", "--batches=1,2", f"--output={output}"]
    assert call(tiny_model, questions, *flags) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["batch"], tuple(row["tree"].values())) for row in rows] == [(1, (4, 1, 2)), (2, (2, 0, 1))]
    assert [row["identical_prompts"] for row in rows] == [5, 5]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batches=0"], "--batches takes numbers of at least 1, got '0'"),
        (["--drafts=medusa"], "method 'medusa' is not one of"),
        (["--repeats=0"], "--repeats must be at least 1, got 0"),
        (["--output=FOLDER"], "must name a new file in a folder that exists"),
        (["--num_prompts=9"], "num_prompts is 9, "),
        (["--batches=2,8"], "a batch of 8 rows needs as many prompts, there are 5"),
    ],
)
def test_bad_input(
    tiny_model: Path, questions: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert call(tiny_model, questions, *(one.replace("FOLDER", str(questions)) for one in more)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "batch", "sizes"), [(5, 2, [5]), (16, 1, [8, 8]), (20, 1, [10, 10]), (33, 4, [17, 16]), (64, 32, [64])]
)
def test_parts(count: int, batch: int, sizes: list[int]) -> None:
    """Every prompt once, in its order; no part is smaller than four batches where there are as many."""
    found = batches.parts(count, batch)
    assert [len(part) for part in found] == sizes
    assert [place for part in found for place in part] == list(range(count))


def test_parts_are_the_whole(tiny_model: Path, questions: Path, tmp_path: Path) -> None:
    """Prompts answered in parts get the texts and rounds that they get at once, at a temperature too."""
    questions.write_text("\n".join(json.dumps({"prompt": f"count {n} count {n}"}) for n in range(16)))
    rows = {}
    for size in (1, 4):
        output = tmp_path / f"{size}.jsonl"
        flags = ["--drafts=prompt_lookup", f"--batches={size}", "--num_prompts=16", f"--output={output}"]
        assert call(tiny_model, questions, *flags) == 0
        rows[size] = json.loads(output.read_text())
    assert rows[1]["identical_prompts"] == 16
    for name in ("tokens", "tau", "identical_prompts"):
        assert rows[1][name] == rows[4][name], name
