import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eagle_jax.evaluation import runner
from eagle_jax.generate import Generation
from experiments import generate, launch
from tests.experiments.conftest import CONTEXT, write_model

ROOT = Path(__file__).parents[2]
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
    """Drafting to the end of every answer, so that rounds do not depend on the clock; --give_up changes that."""
    return launch.call(generate.main, generate.FLAGS, ["--nogive_up", *arguments])


def record_of(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "out.json"
    assert run(*arguments, f"--json_output={path}") == 0
    return json.loads(path.read_text())


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a run that must fail; what stands before it says only what was under way."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    *before, line = captured.err.splitlines()
    assert line.startswith("error: ")
    assert all(re.fullmatch(r"Loading .* \.\.\.( \d+\.\d s)?", text) for text in before)
    assert captured.out == ""
    return line


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
    """By default, and not under the rule whose text would change; whatever the clock says, the tokens stay."""
    path = tmp_path / "out.json"
    arguments = [f"--target={tiny_model}", "--prompt=Hello hello", "--max_new_tokens=48", f"--json_output={path}"]
    for more, gives_up in ((["--compare"], True), (["--rule=residual", "--noshare_noise"], False)):
        assert launch.call(generate.main, generate.FLAGS, [*arguments, "--temperature=1", *more]) == 0
        record = json.loads(path.read_text())
        assert record["give_up"] is gives_up
        assert record["identical_prompts" if gives_up else "prompts"] == 1


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


def test_a_batch_does_not_give_up_by_default(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    arguments = [f"--target={tiny_model}", "--prompt=Hello", "--max_new_tokens=4", "--batch=2"]
    assert launch.call(generate.main, generate.FLAGS, [*arguments, f"--json_output={path}"]) == 0
    assert json.loads(path.read_text())["give_up"] is False


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
    whole = runner.whole

    def spoilt(*arguments: Any) -> Generation:
        result = whole(*arguments)
        row = result.tokens[0]
        return dataclasses.replace(result, tokens=[[*row[:5], (row[5] + 1) % 256, *row[6:]]])

    monkeypatch.setattr(runner, "whole", spoilt)
    record = record_of(
        tmp_path, f"--target={tiny_model}", "--prompt=Hello hello", "--depth=3", "--max_new_tokens=24", "--compare"
    )
    assert record["identical_prompts"] == 0
    assert record["first_difference_margin"] > 0
    assert "tokens identical in 0 of 1 answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --prompt or --prompts_file, got None and None"),
        (["--prompt=Hi", "--prompts_file=x"], "give either --prompt or --prompts_file, got 'Hi' and 'x'"),
        (["--prompt="], "the prompt is empty: ''"),
        (["--prompt= "], "the prompt is empty: ' '"),
        (["--prompt=Hi", "--batch=0"], "--batch must be at least 1, got 0"),
        (["--prompt=Hi", "--batch=2", "--give_up"], "--give_up judges one answer at a time, with --batch=2 rows begin"),
        (["--prompt=Hi", "--split_head"], "--split_head needs --mesh, the devices to split over"),
        (["--prompt=Hi", "--split_head", "--mesh=1x2"], "--method=prompt_lookup takes no --split_head, got True"),
        (["--prompt=Hi", "--num_prompts=2"], "--num_prompts=2 needs --prompts_file; --prompt is 1 prompt"),
        (["--prompts_file=no/such.jsonl"], "no/such.jsonl: No such file or directory"),
        (["--prompts_file=tests"], "tests: Is a directory"),
        (["--prompt=Hi", "--method=eagle9"], "method 'eagle9' is not one of vanilla, prompt_lookup, lookahead, chain"),
        (["--prompt=Hi", "--method=chain"], "--method=chain needs --draft"),
        (["--prompt=Hi", "--draft=self:1"], "--method=prompt_lookup takes no --draft, got 'self:1'"),
        (["--prompt=Hi", "--head=x"], "--method=prompt_lookup takes no --head, got 'x'"),
        (["--prompt=Hi", "--temperature=-0.5"], "temperature must be between 0 and 10000.0, got -0.5"),
        (["--prompt=Hi", "--temperature=nan"], "temperature must be between 0 and 10000.0, got nan"),
        (["--prompt=Hi", "--temperature=hot"], "flag --temperature=hot: could not convert string to float: 'hot'"),
        (["--prompt=Hi", "--top_p=0"], "got 0.0"),
        (["--prompt=Hi", "--top_p=1.5"], "got 1.5"),
        (["--prompt=Hi", "--sampling_top_k=-1"], "top_k must be between 0 and 2147483647, got -1"),
        (["--prompt=Hi", "--seed=-1"], "seed must be between 0 and 4294967295, got -1"),
        (["--prompt=Hi", "--max_new_tokens=0"], "max_new_tokens must be between 1 and 2147483647, got 0"),
        (["--prompt=Hi", "--json_output=no/such/file"], "--json_output=no/such/file must name a file in a folder"),
        (["--prompt=Hi", "--json_output=tests"], "--json_output=tests must name a file in a folder"),
        (["--prompt=Hi", "--target=no/such/folder"], "target 'no/such/folder' is neither"),
        (["--prompt=Hi", "--target=no-such.gguf"], "target 'no-such.gguf' is neither"),
        (["--prompt=Hi", "--target=tests"], "tests has no config.json"),
        (["--prompt=Hi", "--target=owner/model"], "cannot get 'owner/model' from the Hugging Face hub"),
        (["--prompt=Hi", "--dtype=int8"], "dtype 'int8' is not one of float32, bfloat16, float16"),
    ],
)
def test_bad_flags(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--max_new_tokens=200"],
            f"a prompt of 6 tokens and 200 new ones come to 206, the model's context is {CONTEXT}",
        ),
        (["--method=vanilla", "--nodes=4"], "and 1 node, got 4"),
        (["--nodes=8", "--depth=3"], "--depth=3 has 5 nodes, got --nodes=8"),
        (["--top_k=4"], "--top_k must be 1, got 4"),
        (["--nodes=1"], "a chain drafts at least 1 token (--nodes=2, --depth=0), got 0"),
        (["--method=chain", "--draft=self:x"], "--draft=self:K takes a number of layers, got 'x'"),
        (["--method=chain", "--draft=self:0"], "cannot keep 0 layers of a model with 2"),
        (["--method=chain", "--draft=self:3"], "cannot keep 3 layers of a model with 2"),
        (["--method=chain", "--draft=no/such/draft"], "target 'no/such/draft' is neither"),
    ],
)
def test_bad_settings_for_a_model(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    line = refused(capsys, f"--target={tiny_model}", "--prompt=Hello", *arguments)
    assert message in line.replace(str(tiny_model), "TINY")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "question.jsonl holds no question"),
        ('{"prompt": "One"}\n{"prompt"\n', "question.jsonl, line 2: not JSON"),
        ('{"question": "One"}\n', "line 1: expected the key 'turns' or 'prompt', got question"),
        ('{"prompt": "One"}\n{"prompt": ""}\n', "line 2: the prompt is empty: ''"),
        ('{"prompt": "One"}\n', "num_prompts is 2, "),
    ],
)
def test_bad_prompts_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / "question.jsonl"
    path.write_text(text)
    assert message in refused(capsys, f"--prompts_file={path}", "--num_prompts=2")


def edit_tensors(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return spoil


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def scramble(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(b"\xff" * 64 + whole[64:])


def poison(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.norm.weight"][3] = np.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "is not a complete safetensors file"),
        (scramble, "is not a complete safetensors file"),
        (edit_tensors(lambda tensors: tensors.pop("lm_head.weight")), "tensor lm_head.weight is missing"),
        (edit_tensors(lambda tensors: tensors.update(extra=np.ones(3, np.float32))), "tensor extra (3,) has no place"),
        (
            edit_tensors(lambda tensors: tensors.update({"model.norm.weight": np.ones(3, np.float32)})),
            "tensor model.norm.weight has shape (3,), expected (32,)",
        ),
        (edit_tensors(poison), "tensor model.norm.weight holds 1 values of 32 that are NaN or infinite"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot read a tokenizer"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not readable JSON"),
    ],
    ids=["cut", "scrambled", "missing", "extra", "misshapen", "nan", "tokenizer", "config"],
)
def test_damaged_directories(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], message: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "damaged")
    spoil(folder)
    line = refused(capsys, f"--target={folder}", "--prompt=Hello")
    assert message in line
    assert str(folder) in line


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40, b"no model at all" * 9])
def test_damaged_gguf_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    line = refused(capsys, f"--target={path}", "--prompt=Hello")
    assert f"{path} ({len(content)} bytes) is not a complete GGUF file" in line


def test_draft_with_another_vocabulary(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"--target={tiny_model}", "--prompt=Hello", "--method=chain"]
    larger = write_model(tmp_path / "larger", vocab_size=264)
    declared = json.loads((larger / "tokenizer.json").read_text())
    declared["added_tokens"].append({**declared["added_tokens"][0], "id": 257, "content": "<more>"})
    (larger / "tokenizer.json").write_text(json.dumps(declared))
    line = refused(capsys, *arguments, f"--draft={larger}")
    assert f"draft {larger} has a vocabulary of 258, target {tiny_model} one of 257" in line
    swapped = shutil.copytree(tiny_model, tmp_path / "swapped")
    tokenizer = json.loads((swapped / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (swapped / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refused(capsys, *arguments, f"--draft={swapped}")
    assert f"draft {swapped} has another vocabulary: token" in line
    assert f"is 'b', in target {tiny_model} 'a'" in line


def test_a_second_model_as_draft(tiny_model: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path / "draft", seed=1)
    arguments = [f"--target={tiny_model}", "--prompt=Hello", "--method=chain", "--depth=2", "--max_new_tokens=12"]
    other = record_of(tmp_path, *arguments, f"--draft={draft}", "--compare", "--temperature=0.5")
    itself = record_of(tmp_path, *arguments, f"--draft={tiny_model}", "--compare", "--temperature=0.5")
    assert other["identical_prompts"] == itself["identical_prompts"] == 1
    assert other["answers"] == itself["answers"]
    assert itself["tau"] > other["tau"]


def test_as_a_process() -> None:
    command = [sys.executable, "-m", "experiments.generate", "--prompt=Hello", "--target=no/such/folder"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert len(done.stderr.splitlines()) == 2  # the first says what was being loaded


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
