"""What experiments.generate refuses, in one line."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments import generate
from experiments.cli import launch
from tests.experiments.conftest import CONTEXT, write_model

ROOT = Path(__file__).parents[2]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a run that must fail; what stands before it says only what was under way."""
    assert launch.call(generate.main, generate.FLAGS, list(arguments)) == 2
    captured = capsys.readouterr()
    *before, line = captured.err.splitlines()
    assert line.startswith("error: ")
    assert all(re.fullmatch(r"Loading .* \.\.\.( \d+\.\d s)?", text) for text in before)
    assert captured.out == ""
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --prompt or --prompts_file, got neither"),
        (["--prompt=Hi", "--prompts_file=x"], "give either --prompt or --prompts_file, got both"),
        (["--prompt="], "the prompt is empty: ''"),
        (["--prompt= "], "the prompt is empty: ' '"),
        (["--prompt=Hi", "--batch=0"], "--batch must be at least 1, got 0"),
        (["--prompt=Hi", "--batch=2", "--give_up"], "--give_up judges one answer at a time, with --batch=2 rows begin"),
        (["--prompt=Hi", "--split_head"], "--split_head needs --mesh, the devices to split over"),
        (["--prompt=Hi", "--split_head", "--mesh=1x2"], "--method=prompt_lookup takes no --split_head, got True"),
        (["--prompt=Hi", "--nosplit_head", "--mesh=1x2"], "--method=prompt_lookup takes no --split_head, got False"),
        (["--prompt=Hi", "--num_prompts=2"], "--num_prompts=2 needs --prompts_file; --prompt is 1 prompt"),
        (["--prompt=Hi", "--logprobs=2"], "--logprobs=2 needs --json_output, the file that they are written to"),
        (["--prompts_file=no/such.jsonl"], "no/such.jsonl: No such file or directory"),
        (["--prompts_file=tests"], "tests: Is a directory"),
        (["--prompt=Hi", "--method=eagle9"], "method 'eagle9' is not one of vanilla, prompt_lookup, lookahead, chain"),
        (["--prompt=Hi", "--draft=self:1"], "--method=prompt_lookup takes no --draft, got 'self:1'"),
        (["--prompt=Hi", "--head=x"], "--method=prompt_lookup takes no --head, got 'x'"),
        (["--prompt=Hi", "--temperature=-0.5"], "temperature must be between 0 and 10000.0, got -0.5"),
        (["--prompt=Hi", "--temperature=nan"], "temperature must be between 0 and 10000.0, got nan"),
        (["--prompt=Hi", "--temperature=hot"], "flag --temperature=hot: could not convert string to float: 'hot'"),
        (["--prompt=Hi", "--top_p=0"], "got 0.0"),
        (["--prompt=Hi", "--top_p=1.5"], "got 1.5"),
        (["--prompt=Hi", "--min_p=-0.1"], "min_p must be between 0 and 1, got -0.1"),
        (["--prompt=Hi", "--min_p=1.5"], "min_p must be between 0 and 1, got 1.5"),
        (["--prompt=Hi", "--sampling_top_k=-1"], "top_k must be between 0 and 2147483647, got -1"),
        (["--prompt=Hi", "--seed=-1"], "seed must be between 0 and 4294967295, got -1"),
        (["--prompt=Hi", "--max_new_tokens=0"], "max_new_tokens must be between 1 and 2147483647, got 0"),
        (["--prompt=Hi", "--json_output=no/such/file"], "--json_output=no/such/file must name a file in a folder"),
        (["--prompt=Hi", "--json_output=tests"], "--json_output=tests must name a file in a folder"),
        (["--prompt=Hi", "--target=no/such/folder"], "target 'no/such/folder' is neither"),
        (["--prompt=Hi", "--target=no-such.gguf"], "target 'no-such.gguf' is neither"),
        (["--prompt=Hi", "--target=tests"], "tests has no config.json"),
        (
            ["--prompt=Hi", "--target=owner/model"],
            "there is no owner/model here, and the Hugging Face hub does",
        ),
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
        ('{"question": "One"}\n', "line 1: expected the key 'turns', 'prompt' or 'messages', got question"),
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
        (
            lambda folder: (folder / "tokenizer.json").write_text("{"),
            "tokenizer.json is no tokenizer that the",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json: not JSON"),
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


def test_as_a_process() -> None:
    command = [sys.executable, "-m", "experiments.generate", "--prompt=Hello", "--target=no/such/folder"]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert len(done.stderr.splitlines()) == 2  # the first says what was being loaded
