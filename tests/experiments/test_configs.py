"""Every config of an evaluation or an ablation says what the scripts understand."""

from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs.eval import field, heads
from experiments import points
from experiments.cli import methods
from experiments.cli.method_entries import Entry, read_entries
from experiments.evaluate import check_config

ROOT = Path(__file__).parents[2]
ABLATIONS = sorted((ROOT / "configs" / "ablations").glob("*.py"))


def entries(config: ConfigDict) -> list[Entry]:
    check_config(config)
    return read_entries(config.methods, config.dtype, config.temperatures)


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
    found = entries(field.get_config())
    assert list(dict.fromkeys(entry.method for entry in found)) == list(methods.METHODS)  # a new one takes part
    assert (found[-1].label, found[-1].settings.nodes) == ("eagle3_default", None)
    assert [entry.settings.pool_from_prompt for entry in found if entry.method == "lookahead"] == [None, True]
    chain, eagle = entries(field.get_config("chain=runs/draft,eagle3=runs/head"))
    assert (chain.settings.draft, chain.settings.depth, eagle.settings.head) == ("runs/draft", 4, "runs/head")
    with pytest.raises(ValueError, match="got 'medusa'"):
        field.get_config("eagle,medusa")


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_ablations(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = points.read_points(str(path))
    assert len(found) >= 4
    settings: list[Any] = []
    for point in found:
        (entry,) = entries(point.evaluation())
        settings.append((entry._replace(label=""), point.train))
    assert all(settings.count(one) == 1 for one in settings)  # no two points are the same
