"""`--mesh`: the same answers from several devices, and one line for a mesh that cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import generate, launch


def answers(tiny_model: Path, output: Path, *arguments: str) -> dict[str, Any]:
    flags = [f"--target={tiny_model}", "--method=prompt_lookup", "--depth=2", "--nogive_up", "--max_new_tokens=12"]
    flags += ["--prompt=abab", f"--json_output={output}", *arguments]
    assert launch.call(generate.main, generate.FLAGS, flags) == 0
    return json.loads(output.read_text())


def test_same_answers(tiny_model: Path, tmp_path: Path) -> None:
    """Compared with plain decoding on the same mesh, and with one device."""
    one = answers(tiny_model, tmp_path / "one.json")
    two = answers(tiny_model, tmp_path / "two.json", "--mesh=1x2", "--compare")
    assert (one["mesh"], two["mesh"]) == (None, "1x2")
    assert two["identical_prompts"] == 1
    assert (one["answers"], one["rounds"]) == (two["answers"], two["rounds"])


@pytest.mark.parametrize(
    ("text", "batch", "message"),
    [
        ("4", 1, "--mesh is DATAxMODEL, two numbers of devices such as 1x4, got '4'"),
        ("1x4x2", 1, "two numbers of devices"),
        ("1x16", 1, "a mesh of 1x16 takes 16 devices, there are 8"),
        ("0x2", 1, "got 0x2"),
        ("2x4", 1, "--mesh=2x4 deals out rows to 2 devices, but 1 decode together"),
        ("4x2", 6, "rows to 4 devices, but 6 decode"),
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
