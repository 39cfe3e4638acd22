"""Bytes of long targets from short ones, and the smallest slice that holds them."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from configs.targets.shapes import TARGETS
from eagle_jax.accelerators import GIB, TPUS
from eagle_jax.sharding import make_mesh
from experiments.cli import launch
from experiments.scaling import compile as compiling
from experiments.scaling import fit
from experiments.scaling.chips import LAYOUTS, get_topology
from experiments.scaling.cost import memory_of
from experiments.scaling.programs import Setting, make_shapes
from tests.experiments.test_compile import TINY, needs_libtpu, setting

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tiny_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TARGETS, "tiny", TARGETS["llama3-8b"]._replace(config=TINY))


def call(*more: str) -> int:
    return launch.call(fit.main, fit.FLAGS, ["--targets=tiny", "--context=128", *more])


def published() -> Setting:
    """What `fit` counts for the tiny target with 128 slots: one row, the published tree."""
    return dataclasses.replace(setting(split_head=False), batch=1, nodes=60, depth=7, top_k=10)


def test_long_from_short() -> None:
    """Three layers counted from one and two, on a mesh of no devices, are those on devices."""
    given = setting(split_head=True)
    assert fit.held(given, 4) == memory_of(make_shapes(given, make_mesh(1, 4)))


def test_smallest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One chip where it has room; of a kind with none the row says so."""
    needed = fit.held(published(), 4)
    small = TPUS["v5e"]._replace(hbm=sum(needed.values()) + 3 * GIB)
    monkeypatch.setitem(TPUS, "v5e", small)
    monkeypatch.setitem(TPUS, "v6e", small._replace(hbm=float(GIB)))
    output = tmp_path / "rows.jsonl"
    assert call("--kinds=v5e,v6e,v5p", f"--output={output}") == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["topology"], row["devices"]) for row in rows] == [("v5e:2x2", 4), (None, None), ("v5p:2x2x1", 4)]
    assert rows[0]["memory"] == needed
    assert "| tiny | 2x2: 0.00 + 0.00 + 0.00 | - | 2x2x1: " in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "split"), [([], True), (["--split_head"], True), (["--nosplit_head"], False)])
def test_head_where_the_bound_says(flags: list[str], split: bool, tmp_path: Path) -> None:
    """The head of an 8B target over four chips is split."""
    output = tmp_path / "rows.jsonl"
    given = ["--targets=llama3-8b", "--kinds=v5e", f"--output={output}", *flags]
    assert launch.call(fit.main, fit.FLAGS, given) == 0
    row = json.loads(output.read_text())
    assert (row["topology"], row["split_head"]) == ("v5e:2x2", split)
    assert (row["memory"]["head_weights"] < 0.4 * GIB) == split


def test_no_more_slots_than_positions(tmp_path: Path) -> None:
    """A target of 256 positions has a cache of 256 slots, whatever --context asks for."""
    output = tmp_path / "rows.jsonl"
    assert call("--kinds=v5p", "--context=4096", f"--output={output}") == 0
    (row,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert row["context"] == TINY.max_positions == 256
    assert row["memory"] == fit.held(dataclasses.replace(published(), context=256), 4)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--kinds=v5e,v9", "--kinds takes v4, v5e, v5p, v6e, got v9"),
        ("--targets=gpt2", "target config 'gpt2' is not one of smollm2-135m, llama2-7b, "),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], flag: str, message: str) -> None:
    assert call(flag) == launch.USER_ERROR
    assert message in capsys.readouterr().err


@needs_libtpu
@pytest.mark.parametrize("kind", TPUS)
def test_layouts(kind: str) -> None:
    """The compiler knows all of them."""
    for layout in LAYOUTS[kind].names:
        assert len(get_topology(f"{kind}:{layout}").devices) == math.prod(map(int, layout.split("x")))


def test_tables_of_the_page() -> None:
    """They are those of the rows that are kept."""
    page, kept = (ROOT / "docs" / "scaling.md").read_text(), ROOT / "results" / "scaling"
    assert compiling.summary(kept / "rows.jsonl") in page
    rows = [json.loads(line) for line in (kept / "slices.jsonl").read_text().splitlines()]
    for method in {row["method"] for row in rows}:
        assert fit.table([row for row in rows if row["method"] == method]) in page
