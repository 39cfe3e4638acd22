"""The conversion script: files of PyTorch, exports for the engines, and the validator."""

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from eagle_jax.checkpoint.draft_vocabulary import with_draft_vocabulary
from eagle_jax.checkpoint.heads import load_head, save_head
from eagle_jax.checkpoint.hf import load_config
from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.checkpoint.validate_head import validate
from experiments import convert
from experiments.cli import launch
from tests import golden
from tests.checkpoint.heads import random_head


def torch_module() -> Any:
    """PyTorch, or the test is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever importing torch has to say is not ours
        return pytest.importorskip("torch")


def run(*arguments: str) -> int:
    return launch.call(convert.main, convert.FLAGS, arguments)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a run that must fail."""
    assert run(*arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def published(folder: Path, name: str, change: Callable[[Any], Any] = lambda tensors: tensors) -> Path:
    """A golden head as the EAGLE repository would have saved it, in half precision."""
    torch = torch_module()
    folder.mkdir()
    (folder / "config.json").write_text((golden.GOLDEN / name / "config.json").read_text())
    tensors = {
        key: torch.from_numpy(value) for key, value in load_file(golden.GOLDEN / name / "model.safetensors").items()
    }
    half = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    torch.save(change(half), folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize("name", ["seed0/eagle3_reduced", "seed1/eagle3_other_width", "seed2/eagle1_qkvbias"])
def test_files_of_pytorch(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = published(tmp_path / "old", name), tmp_path / "new"
    assert run(f"--head={old}", f"--output={new}") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"wrote {new}"
    assert printed[:-1] == [f"note: {problem}" for problem in validate(new)]
    assert (new / "config.json").read_text() == (old / "config.json").read_text()
    target, _, _ = golden.target(golden.seed_of(name))
    config, params = load_head(new, target)
    wanted = golden.head(name)
    assert config == wanted[0].config

    def check(found: Any, full: Any) -> None:
        full = np.asarray(full)
        np.testing.assert_array_equal(found, full.astype(np.float16).astype(np.float32) if full.dtype == "f" else full)

    jax.tree.map(check, params, wanted[1])


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    torch = torch_module()
    table = torch.ones(64, 32)
    change = lambda tensors: {**tensors, "embed_tokens.weight": table, "again": table, "turned": table.T}  # noqa: E731
    old = published(tmp_path / "old", "seed0/eagle3_reduced", change)
    assert run(f"--head={old}", f"--output={tmp_path / 'new'}") == 0
    assert load_file(tmp_path / "new/model.safetensors")["turned"].shape == (32, 64)


class Evil:
    """Runs code when it is unpickled the trusting way."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("evil"), "was here"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: [*tensors.values()], "holds a list, expected a mapping from names to tensors"),
        (lambda tensors: {"state_dict": tensors}, "holds a dict, expected a mapping from names to tensors"),
        (lambda tensors: {0: next(iter(tensors.values()))}, "holds a dict, expected a mapping from names to tensors"),
        (lambda tensors: {**tensors, "evil": Evil()}, "cannot be read as weights alone"),
    ],
)
def test_files_that_hold_no_weights(
    change: Callable[[Any], Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    old = published(tmp_path / "old", "seed0/eagle3_reduced", change)
    assert message in refused(capsys, f"--head={old}", f"--output={tmp_path / 'new'}")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04cut", b"no pickle at all"])
def test_damaged_files(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch_module()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    line = refused(capsys, f"--head={tmp_path}", f"--output={tmp_path / 'new'}")
    assert "pytorch_model.bin cannot be read as weights alone" in line


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = published(tmp_path / "old", "seed0/eagle3_reduced")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes").write_text("mine")
    assert "is there already and not empty" in refused(capsys, f"--head={old}", f"--output={tmp_path / 'new'}")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["notes"]


def test_without_pytorch(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    line = refused(capsys, f"--head={tmp_path}", f"--output={tmp_path / 'new'}")
    wanted = f"{sys.executable} -m pip install torch==2.13.0"
    assert line == f"error: pytorch_model.bin needs PyTorch, which is not installed: {wanted}"


def frozen(folder: Path, tiny_model: Path, kind: str) -> Path:
    """A head for the tiny model whose LM head is the target's rows of tokens 0 to 39."""
    model = load_target(str(tiny_model))
    config, params = random_head(kind, model.config)
    params = with_draft_vocabulary(params, model.config, model.params, range(257), 40)
    save_head(folder, config, params, model.config, frozen_lm_head=True, token_ranks=range(257), dtype="float32")
    return folder


@pytest.mark.parametrize(("vocab", "size"), [([], 40), (["--draft_vocab=0"], 257), (["--draft_vocab=30"], 30)])
@pytest.mark.parametrize("engine", ["sglang", "vllm", "speculators"])
def test_export_writes_rows_of_the_target(
    engine: str, vocab: list[str], size: int, tiny_model: Path, tmp_path: Path
) -> None:
    head, new = frozen(tmp_path / "head", tiny_model, "eagle3"), tmp_path / "new"
    options = [f"--head={head}", f"--target={tiny_model}", f"--export={engine}", f"--output={new}", "--dtype=float32"]
    assert run(*options, *vocab) == 0
    target = load_config(tiny_model)
    assert validate(new, target=target) == []
    _, params = load_head(new, target)
    assert params.lm_head.shape == (size, 32)
    assert json.loads((new / "config.json").read_text())["draft_vocab_size"] == size
    np.testing.assert_array_equal(params.lm_head, load_target(str(tiny_model)).params["lm_head"][:size])
    jax.tree.map(np.testing.assert_array_equal, params.weights, load_head(head, target)[1].weights)


def test_export_for_speculators_names_the_target(tiny_model: Path, tmp_path: Path) -> None:
    head = frozen(tmp_path / "head", tiny_model, "eagle3")
    options = [f"--head={head}", f"--target={tiny_model}", "--export=speculators"]
    for name, extra in ((str(tiny_model), []), ("owner/model", ["--verifier=owner/model"])):
        assert run(*options, f"--output={tmp_path / str(len(extra))}", *extra) == 0
        config = json.loads((tmp_path / str(len(extra)) / "config.json").read_text())
        assert config["speculators_config"]["verifier"]["name_or_path"] == name


def test_export_of_an_eagle_head(tiny_model: Path, tmp_path: Path) -> None:
    head = frozen(tmp_path / "head", tiny_model, "eagle")
    for engine in ("sglang", "vllm"):
        new = tmp_path / engine
        assert run(f"--head={head}", f"--target={tiny_model}", f"--export={engine}", f"--output={new}") == 0
        assert validate(new, engines=[engine], target=load_config(tiny_model)) == []
        assert {path.name for path in new.iterdir()} == {"config.json", "model.safetensors"}


def test_validate(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, params = random_head("eagle", load_config(tiny_model))
    save_head(tmp_path / "head", config, params, load_config(tiny_model), engine="vllm")
    assert run(f"--head={tmp_path / 'head'}", "--validate", "--engine=vllm") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'head'}: nothing is wrong\n"
    with pytest.raises(SystemExit) as ended:
        run(f"--head={tmp_path / 'head'}", "--validate")
    assert ended.value.code == 1
    assert "SGLang: tensor fc.bias is missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--head is needed"),
        (["--head=x"], "--output is needed"),
        (["--head=no/such", "--output=x"], "no/such has no config.json"),
        (["--head=x", "--output=y", "--export=tgi"], "value should be one of <sglang|vllm|speculators>"),
    ],
)
def test_bad_flags(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch_module()
    assert message in refused(capsys, *arguments)


def test_export_of_a_head_for_another_target(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--head={golden.GOLDEN / 'seed0/eagle3_full'}", f"--target={tiny_model}", "--export=vllm"]
    line = refused(capsys, *options, f"--output={tmp_path / 'new'}")
    assert "the head is for a vocabulary of 128, the target has 257 tokens" in line


def torch_target(tiny_model: Path, folder: Path, parts: int) -> Path:
    """The tiny model as PyTorch would have saved it, in so many files."""
    torch = torch_module()
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {name: torch.from_numpy(value) for name, value in load_file(tiny_model / "model.safetensors").items()}
    names = [f"pytorch_model-{part + 1:05}-of-{parts:05}.bin" for part in range(parts)]
    for part, name in enumerate(names if parts > 1 else ["pytorch_model.bin"]):
        torch.save(dict([*tensors.items()][part::parts]), folder / name)
    if parts > 1:
        holders = {key: names[place % parts] for place, key in enumerate(tensors)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": holders}))
    return folder


@pytest.mark.parametrize("parts", [1, 2])
def test_target_of_pytorch(parts: int, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights, config and tokenizer come through; the directory itself says how."""
    old, new = torch_target(tiny_model, tmp_path / "old", parts), tmp_path / "new"
    with pytest.raises(ValueError, match=rf"pytorch_model\.bin alone; .* --target={old} --output=DIRECTORY"):
        load_target(str(old))
    assert run(f"--target={old}", f"--output={new}") == 0
    assert capsys.readouterr().out == f"wrote {new}\n"
    converted, wanted = load_target(str(new)), load_target(str(tiny_model))
    assert converted.config == wanted.config
    jax.tree.map(np.testing.assert_array_equal, converted.params, wanted.params)
    assert converted.tokenizer.encode("x y") == wanted.tokenizer.encode("x y")
    assert len(list(new.glob("*.safetensors"))) == parts


def test_target_of_pytorch_without_a_part(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = torch_target(tiny_model, tmp_path / "old", 2)
    path = old / "pytorch_model-00002-of-00002.bin"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    assert f"{path} is a Git LFS pointer" in refused(capsys, f"--target={old}", f"--output={tmp_path / 'new'}")
    path.unlink()
    line = refused(capsys, f"--target={old}", f"--output={tmp_path / 'new'}")
    assert line.endswith(f"pytorch_model.bin.index.json names {path.name}, which is not there")
    assert not (tmp_path / "new").exists()


def test_outputs_are_checked_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    line = refused(capsys, "--head=no/such", f"--output={tmp_path}/file/new")
    assert line == f"error: {tmp_path}/file/new cannot be written: {tmp_path}/file is not a directory"
