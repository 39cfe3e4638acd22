"""`--mesh`: the same answers from several devices, and one line for a mesh that cannot be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from eagle_jax.accelerators import Chip
from eagle_jax.checkpoint.draft_vocabulary import Ranking
from eagle_jax.generator import Generator
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.types import Params, Target
from experiments import generate
from experiments.cli import draft_weights, launch
from tests.experiments.conftest import write_model
from tests.experiments.test_methods import heads  # noqa: F401


def run(tiny_model: Path, output: Path, *arguments: str) -> dict[str, Any]:
    flags = [f"--target={tiny_model}", "--max_new_tokens=12", f"--json_output={output}", *arguments]
    assert launch.call(generate.main, generate.FLAGS, flags) == 0
    return json.loads(output.read_text())


def answers(tiny_model: Path, output: Path, *arguments: str) -> dict[str, Any]:
    return run(tiny_model, output, "--method=prompt_lookup", "--depth=2", *arguments)


def test_same_answers(tiny_model: Path, tmp_path: Path) -> None:
    """Compared with plain decoding on the same mesh, and with one device."""
    one = answers(tiny_model, tmp_path / "one.json", "--prompt=abab")
    two = answers(tiny_model, tmp_path / "two.json", "--prompt=abab", "--mesh=1x2", "--compare")
    assert (one["mesh"], two["mesh"]) == (None, "1x2")
    assert two["identical_prompts"] == 1
    assert (one["answers"], one["rounds"]) == (two["answers"], two["rounds"])


def test_rows_are_dealt_out(tiny_model: Path, tmp_path: Path) -> None:
    """Three prompts in two rows, each on a device of its own."""
    path = tmp_path / "question.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in ("abab", "cc", "one two one")))
    ask = [f"--prompts_file={path}", "--temperature=1"]
    one = answers(tiny_model, tmp_path / "one.json", *ask)
    two = answers(tiny_model, tmp_path / "two.json", *ask, "--mesh=2x2", "--batch=2", "--compare")
    assert (two["mesh"], two["batch"], two["identical_prompts"]) == ("2x2", 2, 3)
    assert (one["answers"], one["rounds"]) == (two["answers"], two["rounds"])


def test_default_tree_is_that_of_the_rows_of_one_device(tiny_model: Path, heads: Path, tmp_path: Path) -> None:  # noqa: F811
    """Four rows on one device, or on four."""
    flags = ["--method=eagle3", f"--head={heads / 'eagle3'}", "--prompt=abab", "--batch=4"]
    one, four = (run(tiny_model, tmp_path / f"{n}.json", *flags, *mesh) for n, mesh in ((1, []), (4, ["--mesh=4x1"])))
    assert (one["tree"]["nodes"], four["tree"]["nodes"]) == (2, 4)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("by", ["flag", "bound"])
def test_places_of_the_head(
    by: str,
    split: bool,
    tiny_model: Path,
    heads: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As --split_head says; without it where a bound does, here one of made-up devices whose links are fast or slow."""
    seen: list[HeadParams] = []

    def generator(*arguments: Any, **options: Any) -> Generator:
        seen.extend(one for one in arguments if isinstance(one, HeadParams))
        return Generator(*arguments, **options)

    monkeypatch.setattr(generate, "Generator", generator)
    slow_memory = Chip(flops=1e12, hbm=1e9, bandwidth=1e6 if split else 1e12, link=1e12, latency=1e-6)
    monkeypatch.setattr("eagle_jax.drafters.placement.chip_of", lambda device: slow_memory)
    flags = ["--prompt=abab", "--method=eagle3", "--nodes=4", "--depth=1", "--top_k=2", f"--head={heads / 'eagle3'}"]
    flags += ["--mesh=1x2", "--compare", *(["--split_head" if split else "--nosplit_head"] if by == "flag" else [])]
    record = run(tiny_model, tmp_path / "record.json", *flags)
    assert record["identical_prompts"] == 1
    kernel = seen[0].weights["midlayer"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.spec == (PartitionSpec(None, "model") if split else PartitionSpec())
    said = f"head {'split' if split else 'replicated'}: drafting takes at least"
    assert (said in capsys.readouterr().err) == (by == "bound")


@pytest.mark.parametrize("split", [False, True])
def test_one_pass(split: bool, tiny_model: Path, heads: Path, tmp_path: Path) -> None:  # noqa: F811
    flags = ["--prompt=abab", "--method=one_pass", f"--head={heads / 'one_pass'}", "--temperature=1"]
    one = run(tiny_model, tmp_path / "one.json", *flags)
    two = run(tiny_model, tmp_path / "two.json", *flags, "--mesh=1x2", *(["--split_head"] if split else []))
    assert (one["answers"], one["rounds"]) == (two["answers"], two["rounds"])


@pytest.mark.parametrize("method", ["chain", "ouroboros"])
def test_places_of_a_draft_model(
    method: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Split like the target; it drafts what it drafts on one device."""
    seen: list[Params] = []
    load_draft = draft_weights.load_draft

    def load(*arguments: Any) -> tuple[Target, Params]:
        found = load_draft(*arguments)
        seen.append(found[1])
        return found

    monkeypatch.setattr(draft_weights, "load_draft", load)
    flags = [f"--method={method}", f"--draft={write_model(tmp_path / 'draft', seed=1)}", "--prompt=abab"]
    one, two = (run(tiny_model, tmp_path / "record.json", *flags, *mesh) for mesh in ([], ["--mesh=1x2", "--compare"]))
    assert two["identical_prompts"] == 1
    assert (one["answers"], one["rounds"]) == (two["answers"], two["rounds"])
    kernel = seen[1]["layers_0"]["mlp"]["up_proj"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "model")
    Ranking(np.arange(257)[::-1], 40).save(tmp_path / "draft", 257)
    one, two = (run(tiny_model, tmp_path / "record.json", *flags, *mesh) for mesh in ([], ["--mesh=1x2", "--compare"]))
    assert two["identical_prompts"] == 1
    assert (one["answers"], one["rounds"]) == (two["answers"], two["rounds"])
    assert seen[3].lm_head.sharding.spec == PartitionSpec("model")


@pytest.mark.parametrize(
    ("text", "batch", "message"),
    [
        ("4", 1, "--mesh is DATAxMODEL, two numbers of devices such as 1x4, got '4'"),
        ("1x4x2", 1, "two numbers of devices"),
        ("1x16", 1, "a mesh of 1x16 takes 16 devices, there are 8"),
        ("0x2", 1, "got 0x2"),
        ("2x4", 1, "a batch of 1 rows does not divide over the 2 devices of mesh axis data"),
        ("4x2", 6, "a batch of 6 rows does not divide over the 4 devices"),
    ],
)
def test_mesh_that_cannot_be(text: str, batch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch.parse_mesh(text, batch=batch)


def test_mesh_that_can() -> None:
    mesh = launch.parse_mesh("4x2", batch=8)
    assert mesh is not None
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    assert launch.parse_mesh(None, batch=3) is None
