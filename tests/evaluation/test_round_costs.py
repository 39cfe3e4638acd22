"""Costs of rounds: every part is measured, remembered, and measured anew where something else is decided by it."""

import json
import pathlib
from typing import Any

import jax
import pytest
from flax import linen as nn

from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.drafters.default_tree import RoundCosts, TreeSize
from eagle_jax.evaluation import round_costs
from eagle_jax.files import CACHE
from eagle_jax.models.draft_head import Head, HeadConfig, HeadParams, make_head
from eagle_jax.testing import tiny_transformer

NO_TOKENIZER: Any = None


@pytest.fixture
def model(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(round_costs, "REPEATS", 1)
    monkeypatch.setattr(round_costs, "PASS_SIZES", (1, 4, 12))
    config, _, params = tiny_transformer(num_layers=4)
    return LoadedModel("tiny", config, params, NO_TOKENIZER)


def head_of(model: LoadedModel) -> tuple[Head, HeadParams]:
    config = HeadConfig(kind="eagle3", layer=model.config, feature_width=3 * model.config.width)
    head = make_head(config, tiny_transformer(num_layers=4)[1])
    return head, HeadParams(weights=nn.unbox(head.init(jax.random.key(1))))


def test_measured_once(model: LoadedModel, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, params = head_of(model)
    costs = round_costs.round_costs(model, head, params, batch=2)
    assert sorted(costs.passes) == [1, 4]  # 12 nodes of 2 rows are more than the largest pass
    assert min(costs.passes.values()) > 0 <= min(costs.rest, costs.draft, costs.step)
    assert costs.round(TreeSize(4, 2, 2)) >= costs.passes[4]
    monkeypatch.setattr(round_costs, "measure", lambda *_: pytest.fail("measured again"))
    assert round_costs.round_costs(model, head, params, batch=2) == costs
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        round_costs.round_costs(model, head, params, batch=1)
    (stored,) = (tmp_path / "cache/round_costs").iterdir()
    stored.write_text("")  # damaged
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        round_costs.round_costs(model, head, params, batch=2)


def test_the_tree_of_a_head(model: LoadedModel, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its table and the costs; by platform and batch without a table."""
    head, params = head_of(model)
    costs = RoundCosts(passes={1: 10.0, 12: 11.0}, rest=0.0, draft=2.0, step=1.0)
    monkeypatch.setattr(round_costs, "round_costs", lambda *_: costs)
    choice = round_costs.choose_tree(model, str(tmp_path), head, params)
    assert choice.size is not None
    assert "has no tau.json" in choice.reason
    for tau, wanted in ((1000.0, TreeSize(4, 1, 2)), (1.0, None)):
        (tmp_path / "tau.json").write_text(json.dumps({"tau": {"4/1/2": {"0": tau, "1": tau}}}))
        assert round_costs.choose_tree(model, str(tmp_path), head, params, temperatures=(0.0, 1.0)).size == wanted
