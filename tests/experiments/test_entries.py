"""From a config's mappings to methods that are ready to run."""

from pathlib import Path

import jax
import pytest

from eagle_jax.checkpoint.draft_vocabulary import with_draft_vocabulary
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from experiments.entries import build, read_entries, weights_digest
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
    ]
    entries = read_entries(listed, "float32", (0.0, 0.3))
    assert [entry.label for entry in entries if entry.runs_at(0.0)] == ["whole", "no value", "as found", "static"]
    assert all(entry.runs_at(0.3) for entry in entries)
    built = build(entries, model)
    assert list(built) == [entry.label for entry in entries]
    assert built["whole"].drafter is built["own noise"].drafter  # compiled once
    assert built["whole"].params is built["own noise"].params  # loaded once
    assert (built["own noise"].share_noise, built["static"].rule) == (False, "residual")
    sizes = {label: (one.drafter.nodes, one.drafter.max_depth) for label, one in built.items()}
    assert sizes == {**dict.fromkeys(["whole", "own noise", "no value", "as found"], (9, 3)), "static": (26, 5)}
    drafters = {built[label].drafter for label in ("whole", "no value", "as found")}
    assert len(drafters) == 3
    assert {one.name for one in drafters} == {"eagle2"}
    assert len(built["as found"].params.target_ids) == 20


def test_weights_are_told_apart(model: LoadedModel) -> None:
    changed = jax.tree.map(lambda x: x, model.params) | {"norm": model.params["norm"]}
    assert weights_digest(model.params) == weights_digest(changed)
    one = {"a": model.params["lm_head"]}
    assert weights_digest(one) != weights_digest({"a": one["a"].at[0, 0].add(1)})
    assert weights_digest(one) != weights_digest({"a": one["a"][:-1]})
    assert weights_digest(()) == weights_digest({})
