"""From a config's mappings to methods that are ready to run."""

import re
from pathlib import Path
from typing import Any

import jax
import pytest

from eagle_jax.checkpoint.draft_vocabulary import with_draft_vocabulary
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import weights_digest
from experiments.cli.method_entries import build, read_entries
from tests.checkpoint.heads import random_head

TREE = {"nodes": 9, "depth": 2, "top_k": 3}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    return load_target(str(tiny_model))


@pytest.fixture(scope="module")
def head(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A head of EAGLE-1/2 over the target's first 40 tokens."""
    folder = tmp_path_factory.mktemp("heads") / "eagle"
    config, params = random_head("eagle", model.config)
    params = with_draft_vocabulary(params, model.config, model.params, range(257), 40)
    save_head(folder, config, params, model.config, frozen_lm_head=True, token_ranks=range(257))
    return str(folder)


def test_what_a_method_is_built_of(model: LoadedModel, head: str) -> None:
    shared = {"method": "eagle2", "head": head, **TREE}
    listed = [
        {"label": "whole", **shared},
        {"label": "own noise", **shared, "share_noise": False, "temperatures": [0.3]},
        {"label": "no value", **shared, "use_value": False},
        {"label": "as found", **shared, "reranks": False, "draft_vocab": 20},
        {"label": "static", "method": "eagle", "head": head, "rule": "residual", "share_noise": False},
        {"label": "drawn", **shared, "rule": "residual", "share_noise": False, "draws": True},
    ]
    entries = read_entries(listed, "float32", (0.0, 0.3))
    assert [entry.label for entry in entries if entry.runs_at(0.0)] == [
        "whole",
        "no value",
        "as found",
        "static",
        "drawn",
    ]
    assert all(entry.runs_at(0.3) for entry in entries)
    built = build(entries, model, make_target(model.config))
    assert list(built) == [entry.label for entry in entries]
    assert built["whole"].drafter is built["own noise"].drafter  # compiled once
    leaves = [jax.tree.leaves(built[label].drafter_params) for label in ("whole", "own noise")]
    assert all(one is other for one, other in zip(*leaves, strict=True))  # loaded once
    assert (built["own noise"].share_noise, built["static"].rule) == (False, "residual")
    sizes = {label: (one.drafter.nodes, one.drafter.max_depth) for label, one in built.items()}
    assert sizes == {
        **dict.fromkeys(["whole", "own noise", "no value", "as found", "drawn"], (9, 3)),
        "static": (26, 5),
    }
    assert [label for label, one in built.items() if one.drafter.own_noise] == ["drawn"]
    drafters = {built[label].drafter for label in ("whole", "no value", "as found")}
    assert len(drafters) == 3
    assert {one.name for one in drafters} == {"eagle2"}
    assert len(built["as found"].drafter_params.target_ids) == 20


@pytest.mark.parametrize("part", ["use_value", "reranks"])
@pytest.mark.parametrize("sizes", [{}, {"depth": 2}])
def test_a_tree_without_its_parts_has_the_sizes_of_the_whole(
    part: str, sizes: dict[str, int], model: LoadedModel, head: str
) -> None:
    """Those that nobody gave too; and they are what its row will say."""
    if part == "reranks" and sizes:
        sizes = {**sizes, "nodes": 9}  # no more than expansion picks
    shared = {"method": "eagle2", "head": head, **sizes}
    entries = read_entries([{"label": "whole", **shared}, {"label": "part", **shared, part: False}], "float32", (0.0,))
    built = build(entries, model, make_target(model.config))
    nodes = {(one.drafter.nodes, one.drafter.max_depth) for one in built.values()}
    top_k = {one.drafter.top_k for one in built.values()}
    assert (nodes, top_k) == (({(4, 2)}, {2}) if not sizes else ({(sizes.get("nodes", 60), 3)}, {10}))


@pytest.mark.parametrize("part", [{}, {"use_value": False}])
def test_a_head_of_another_kind(part: dict[str, bool], model: LoadedModel, head: str) -> None:
    entries = read_entries([{"label": "a", "method": "eagle3", "head": head, **part}], "float32", (0.0,))
    with pytest.raises(ValueError, match=r"^eagle3 needs an EAGLE-3 head, got one of kind 'eagle'$"):
        build(entries, model, make_target(model.config))


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("nodes", "16", "int or None"),
        ("nodes", 16.5, "int or None"),
        ("depth", 2.0, "int or None"),
        ("top_k", True, "int or None"),
        ("draft_vocab", "8k", "int or None"),
        ("head", 5, "str"),
        ("head", None, "str"),
        ("share_noise", "no", "bool"),
        ("give_up", 0, "bool"),
        ("reranks", None, "bool"),
        ("draws", 1, "bool"),
        ("rule", "exact", "one of match, residual"),
        ("temperatures", 1.0, "a tuple of float or None"),
        ("temperatures", ("hot",), "a tuple of float or None"),
    ],
)
def test_values_of_other_types(field: str, value: object, wanted: str) -> None:
    entry = {"label": "a", "method": "eagle3", field: value}
    with pytest.raises(ValueError, match=rf"^{re.escape(f'methods[0]: {field} must be {wanted}, got {value!r}')}$"):
        read_entries([entry], "float32", (0.0, 1.0))


def test_temperatures_that_the_config_has(caplog: pytest.LogCaptureFixture) -> None:
    """An entry runs at those of its own that the config has; one without any is left out, and it is said."""
    listed: list[dict[str, Any]] = [
        {"label": "all", "method": "eagle3"},
        {"label": "noisy", "method": "eagle3", "temperatures": (0.3, 1.0)},
    ]
    at_both = read_entries(listed, "float32", (0.0, 1.0))
    assert [entry.temperatures for entry in at_both] == [None, (1.0,)]
    assert not caplog.records
    assert [entry.label for entry in read_entries(listed, "float32", (0.0,))] == ["all"]
    assert "noisy, of T = (0.3, 1.0), runs at none of (0.0,)" in caplog.text
    with pytest.raises(ValueError, match=r"no method runs at the config's temperatures \(0.0,\)"):
        read_entries(listed[1:], "float32", (0.0,))


def test_weights_are_told_apart(model: LoadedModel) -> None:
    changed = jax.tree.map(lambda x: x, model.params) | {"norm": model.params["norm"]}
    assert weights_digest(model.params) == weights_digest(changed)
    one = {"a": model.params["lm_head"]}
    assert weights_digest(one) != weights_digest({"a": one["a"].at[0, 0].add(1)})
    assert weights_digest(one) != weights_digest({"a": one["a"][:-1]})
    assert weights_digest(()) == weights_digest({})
