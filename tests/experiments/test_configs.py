"""Every config of an evaluation or an ablation says what the scripts understand."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs.eval import exactness, field, heads, trees
from experiments import sweep
from experiments.cli import methods
from experiments.cli.evaluation_config import read_config
from experiments.cli.method_entries import MethodEntry, read_entries

ROOT = Path(__file__).parents[2]
ABLATIONS = sorted((ROOT / "configs" / "ablations").glob("*.py"))


def entries(config: ConfigDict) -> list[MethodEntry]:
    checked = read_config(config)
    return read_entries(checked.methods, checked.dtype, checked.temperatures)


def test_heads() -> None:
    found = entries(heads.get_config())
    assert len(found) == 2 * 5
    assert {entry.method for entry in found} == {"eagle", "eagle2", "eagle3"}
    assert sum(entry.runs_at(0.0) for entry in found) == 5  # without noise there is none to share
    some = entries(heads.get_config("eagle3=runs/a,eagle"))
    assert [entry.settings.head for entry in some] == ["runs/a"] * 4 + [""] * 2
    with pytest.raises(ValueError, match="kinds of heads are eagle3, eagle2, eagle, got 'medusa'"):
        heads.get_config("medusa")


def test_field() -> None:
    known = entries(field.get_config(",".join(field.METHODS)))
    assert list(dict.fromkeys(entry.method for entry in known)) == list(methods.METHODS)  # a new one takes part
    found = entries(field.get_config())
    assert (found[-1].label, found[-1].settings.nodes) == ("eagle3_default", None)
    assert [entry.settings.sizes for entry in found if entry.method == "lookahead"] == [
        (),
        (("pool_from_prompt", True),),
    ]
    chain, eagle, block = entries(field.get_config("chain=runs/draft,eagle3=runs/head,one_pass=runs/block"))
    assert (chain.settings.draft, chain.settings.depth, eagle.settings.head) == ("runs/draft", 4, "runs/head")
    assert (block.settings.head, block.settings.triple) == ("runs/block", (None, None, None))
    with pytest.raises(ValueError, match="got 'medusa'"):
        field.get_config("eagle,medusa")


@pytest.mark.parametrize("config", [exactness, field, heads], ids=lambda config: config.__name__)
def test_what_is_measured_by_default_ships(config: ModuleType) -> None:
    measured = config.get_config()
    for entry in entries(measured):
        entry.files(measured.target)


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_ablations(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    base, points = sweep.read_points(str(path))
    assert len(points) >= 4
    settings: list[Any] = []
    for point in points:
        (entry,) = entries(ConfigDict({**base, "methods": [point.entry(Path("heads"))]}))
        settings.append((entry._replace(label="", settings=entry.settings._replace(head="")), point.train))
    assert all(settings.count(one) == 1 for one in settings)  # no two points are the same


def test_exactness() -> None:
    config = exactness.get_config()
    assert (config.batch, config.mode, config.num_prompts, config.temperatures) == (8, "timed", 24, (0.0, 1.0))
    found = entries(config)
    assert {entry.method for entry in found} == {entry.method for entry in entries(field.get_config())} - {"vanilla"}
    assert {entry.settings.triple for entry in found if entry.method in ("eagle2", "eagle3")} == {(16, 5, 4)}


def test_trees() -> None:
    config = trees.get_config("eagle3=runs/head:60/7/10,prompt_lookup")
    assert config.mode == "teacher_forced"
    eagle3, unshared, lookup, _ = entries(config)
    assert (eagle3.settings.head, eagle3.settings.triple, eagle3.share_noise) == ("runs/head", (60, 7, 10), True)
    assert (unshared.share_noise, unshared.runs_at(0.0), unshared.runs_at(1.0)) == (False, False, True)
    assert (lookup.method, lookup.settings.triple) == ("prompt_lookup", (None, None, None))
    for text in ("eagle3:60", "eagle3:60/7/x"):
        with pytest.raises(ValueError, match=f"^a tree is METHOD or METHOD:NODES/DEPTH/TOP_K, .* got {text!r}$"):
            trees.get_config(text)
