import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from eagle_jax.checkpoint.head_config import default_taps
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.hf import load_config
from eagle_jax.evaluation import runner
from eagle_jax.generator import Generation
from experiments import generate
from experiments.cli import launch
from tests.checkpoint.heads import random_head
from tests.experiments.conftest import CONTEXT, write_model

KEYS = {
    *("target", "method", "temperature", "seed", "rule", "share_noise", "dtype", "device", "prompts", "tokens"),
    *("rounds", "tau", "tokens_per_second", "tokens_per_second_with_prefill", "prefill_seconds", "decode_seconds"),
    *("tree", "answers", "give_up", "gave_up", "mesh", "batch"),
}
COMPARED = {
    *("plain_tokens_per_second", "plain_tokens_per_second_with_prefill", "speedup", "speedup_with_prefill"),
    *("identical_prompts", "first_difference_margin"),
}


def run(*arguments: str) -> int:
    return launch.call(generate.main, generate.FLAGS, arguments)


def test_a_head_without_layers_and_without_use(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One line before the text, and one after it."""
    target = load_config(tiny_model)
    config, params = random_head("eagle3", target)
    params = params.replace(target_ids=200 + jnp.arange(len(params.lm_head)))  # which this text does without
    save_head(tmp_path / "head", config, params, target)
    options = [f"--target={tiny_model}", "--prompt=Hello", "--method=eagle3", "--nodes=4", "--depth=1", "--top_k=2"]
    with caplog.at_level(logging.WARNING):
        assert run(*options, f"--head={tmp_path / 'head'}", "--max_new_tokens=40") == 0
    named = [record.getMessage() for record in caplog.records]
    layers = list(default_taps(target))
    assert named == [
        f"head {tmp_path / 'head'} names no layers of its target: it reads the inputs of {layers}, the default"
    ]
    assert "drafted tokens a round are accepted, which is next to nothing" in capsys.readouterr().err


def record_of(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "out.json"
    assert run(*arguments, f"--json_output={path}") == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize("batch", [1, 2])
def test_logprobs_in_the_record(tiny_model: Path, tmp_path: Path, batch: int) -> None:
    """Of every token that was written; greedy tokens are the first of the most probable."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hello"}\n{"prompt": "Hello hello"}\n')
    options = [f"--target={tiny_model}", f"--prompts_file={prompts}", "--method=prompt_lookup", "--max_new_tokens=9"]
    for answer in record_of(tmp_path, *options, f"--batch={batch}", "--logprobs=3")["answers"]:
        first, second, third = ([place[rank] for place in answer["top_logprobs"]] for rank in range(3))
        assert [token for token, _ in first] == answer["token_ids"]
        assert [value for _, value in first] == answer["logprobs"]
        assert all(0 >= one[1] >= two[1] >= three[1] for one, two, three in zip(first, second, third, strict=True))


@pytest.mark.parametrize(
    ("method", "tree"),
    [
        (["--method=vanilla"], {"nodes": 1, "depth": None, "top_k": None}),
        (["--method=prompt_lookup", "--depth=3"], {"nodes": 5, "depth": 3, "top_k": 1}),
        (["--method=chain", "--draft=self:1", "--nodes=4"], {"nodes": 4, "depth": 2, "top_k": 1}),
    ],
    ids=lambda value: value[0].removeprefix("--method=") if isinstance(value, list) else "",
)
def test_every_method_writes_what_plain_decoding_writes(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: list[str], tree: dict[str, int]
) -> None:
    arguments = [
        f"--target={tiny_model}",
        "--prompt=Hello hello",
        "--max_new_tokens=24",
        "--temperature=0.8",
        "--seed=5",
    ]
    record = record_of(tmp_path, *arguments, *method, "--compare")
    assert set(record) == KEYS | COMPARED
    assert (record["temperature"], record["seed"], record["dtype"], record["prompts"]) == (0.8, 5, "float32", 1)
    assert record["tree"] == tree
    assert record["identical_prompts"] == 1
    assert record["first_difference_margin"] is None
    assert record["tau"] == (record["tokens"] - 1) / record["rounds"]
    answer = record["answers"][0]
    assert set(answer) == {"question_id", "prompt", "text", "token_ids"}
    assert answer["prompt"] == "Hello hello"
    assert len(answer["token_ids"]) == record["tokens"] <= 24
    if method == ["--method=vanilla"]:
        assert record["tau"] == 1
    captured = capsys.readouterr()
    assert captured.out.startswith(answer["text"])
    assert "tokens identical" in captured.out
    assert f"Loading {tiny_model} ..." in captured.err
    assert "Compiling ..." in captured.err


def test_drafting_may_be_given_up(tiny_model: Path, tmp_path: Path) -> None:
    """Where asked for; whatever the clock says, the tokens stay."""
    arguments = [f"--target={tiny_model}", "--prompt=Hello hello", "--max_new_tokens=48", "--compare"]
    for more, gives_up in (([], False), (["--give_up"], True)):
        record = record_of(tmp_path, *arguments, *more)
        assert record["give_up"] is gives_up
        assert record["identical_prompts"] == 1


def test_the_text_depends_on_the_seed_and_not_on_the_method(tiny_model: Path, tmp_path: Path) -> None:
    arguments = [f"--target={tiny_model}", "--prompt=Hello hello", "--max_new_tokens=24", "--temperature=0.8"]

    def ids(*more: str) -> list[int]:
        return record_of(tmp_path, *arguments, *more)["answers"][0]["token_ids"]

    assert ids("--method=vanilla") == ids("--depth=3") != ids("--method=vanilla", "--seed=1")


def test_prompts_file(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "question.jsonl"
    path.write_text(
        '{"question_id": 81, "category": "a", "turns": ["First turn", "2nd"]}\n{"prompt": "Two"}\n{"prompt": "Three"}'
    )
    arguments = [f"--target={tiny_model}", f"--prompts_file={path}", "--num_prompts=2", "--max_new_tokens=4"]
    record = record_of(tmp_path, *arguments, "--depth=3", "--temperature=1", "--compare")
    assert record["prompts"] == record["identical_prompts"] == 2
    assert [(one["question_id"], one["prompt"]) for one in record["answers"]] == [(81, "First turn"), (1, "Two")]
    assert record["tokens"] == sum(len(one["token_ids"]) for one in record["answers"])
    out = capsys.readouterr().out
    assert "[1/2] First turn\n" in out
    assert "[2/2] Two\n" in out
    again = record_of(tmp_path, *arguments, "--depth=3", "--temperature=1")
    assert set(again) == KEYS
    assert again["answers"] == record["answers"]


def test_a_batch_writes_what_its_prompts_get_alone(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five prompts in two rows; they are shown in their order, when all are there."""
    path = tmp_path / "question.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"{word} {word}"}) for word in ("one", "two", "three", "x", "y")))
    arguments = [f"--target={tiny_model}", f"--prompts_file={path}", "--max_new_tokens=10", "--temperature=0.8"]
    arguments += ["--depth=3", "--compare"]
    alone = record_of(tmp_path, *arguments)
    capsys.readouterr()
    found = record_of(tmp_path, *arguments, "--batch=2")
    assert (alone["batch"], found["batch"]) == (1, 2)
    for field in ("answers", "tokens", "rounds", "tau", "tree"):
        assert found[field] == alone[field], field
    assert found["identical_prompts"] == 5
    assert set(found) == KEYS | COMPARED
    captured = capsys.readouterr()
    shown = [f"[{n}/5] {one['prompt']}\n\n{one['text']}\n\n" for n, one in enumerate(found["answers"], start=1)]
    assert captured.out.startswith("".join(shown))
    assert "prompts included: " in captured.out.splitlines()[-1]
    assert "Writing 5 answers, 2 at a time ..." in captured.err


def test_one_token_needs_no_round(tiny_model: Path, tmp_path: Path) -> None:
    record = record_of(tmp_path, f"--target={tiny_model}", "--prompt=Hello", "--depth=3", "--max_new_tokens=1")
    assert (record["tokens"], record["rounds"], record["tau"]) == (1, 0, None)


def test_the_context_can_be_filled_to_its_end(tiny_model: Path, tmp_path: Path) -> None:
    room = CONTEXT - len("Hello\n")
    record = record_of(
        tmp_path, f"--target={tiny_model}", "--prompt=Hello", "--depth=3", f"--max_new_tokens={room}", "--compare"
    )
    assert record["tokens"] == room
    assert record["identical_prompts"] == 1


def test_a_difference_is_reported_with_its_margin(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = runner.complete_answer

    def spoilt(*arguments: Any) -> Generation:
        result = complete(*arguments)
        row = result.tokens[0]
        return dataclasses.replace(result, tokens=[[*row[:5], (row[5] + 1) % 256, *row[6:]]])

    monkeypatch.setattr(runner, "complete_answer", spoilt)
    record = record_of(
        tmp_path, f"--target={tiny_model}", "--prompt=Hello hello", "--depth=3", "--max_new_tokens=24", "--compare"
    )
    assert record["identical_prompts"] == 0
    assert record["first_difference_margin"] > 0
    assert "tokens identical in 0 of 1 answers" in capsys.readouterr().out


def test_a_second_model_as_draft(tiny_model: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft", seed=1)
    arguments = [f"--target={tiny_model}", "--prompt=Hello", "--method=chain", "--depth=2", "--max_new_tokens=12"]
    other = record_of(tmp_path, *arguments, f"--draft={draft}", "--compare", "--temperature=0.5")
    itself = record_of(tmp_path, *arguments, f"--draft={tiny_model}", "--compare", "--temperature=0.5")
    assert other["identical_prompts"] == itself["identical_prompts"] == 1
    assert other["answers"] == itself["answers"]
    assert itself["tau"] > other["tau"]


@pytest.mark.parametrize("rows", [260, 264])
def test_draft_with_padded_vocabulary(
    rows: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """One tokenizer, embeddings of other sizes, as Qwen2.5 has them: drafts all the same. A short context is named."""
    target, draft = write_model(tmp_path / "target", vocab_size=262), write_model(tmp_path / "draft", vocab_size=rows)
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 100}))
    flags = [f"--target={target}", "--prompt=Hello", "--method=chain", f"--draft={draft}", "--max_new_tokens=9"]
    assert launch.call(generate.main, generate.FLAGS, [*flags, "--compare", "--temperature=1"]) == 0
    assert "tokens identical" in capsys.readouterr().out
    assert "knows 100 positions only" in caplog.text
