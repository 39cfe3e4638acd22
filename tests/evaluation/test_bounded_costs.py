"""Bounds on the costs of rounds: by hand on a small target, and the tree that follows from them on a mesh."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from eagle_jax.accelerators import Chip
from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.drafters import make_eagle2
from eagle_jax.drafters.default_tree import TreeSize
from eagle_jax.drafters.placement import draft_work
from eagle_jax.evaluation import round_costs
from eagle_jax.evaluation.bounded_costs import bounded_costs, target_work
from eagle_jax.models.config import Experts, ModelConfig
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.models.transformer import init_params, make_target
from eagle_jax.sharding import make_mesh, place, target_shardings

CONFIG = ModelConfig(
    vocab_size=128,
    width=32,
    mlp_width=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=64,
    norm_eps=1e-5,
    rope_theta=1e4,
)
CHIP = Chip(flops=1e12, hbm=1e9, bandwidth=1e9, link=1e9, latency=1e-6)
NO_TOKENIZER: Any = None


def setup(model: int) -> tuple[Any, ...]:
    """Arguments of `bounded_costs` before the chip: a target in float32 over so many devices, and an EAGLE-3 head."""
    mesh = make_mesh(1, model)
    params = nn.unbox(init_params(CONFIG, jax.random.key(0)))
    params = place(params, target_shardings(mesh, CONFIG))
    head = make_head(HeadConfig(kind="eagle3", layer=CONFIG, feature_width=96), make_target(CONFIG))
    weights = nn.unbox(head.init(jax.random.key(1)))
    return CONFIG, params, head, HeadParams(weights, jnp.zeros((128, 32))), mesh


LAYER = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
NORMS = 4 * (3 * 2 + 1) * 32
LM_HEAD = 4 * 128 * 32


@pytest.mark.parametrize(("devices", "sums"), [(1, 0), (2, 2 * 3 + 1)])
def test_a_pass_by_hand(devices: int, sums: int) -> None:
    """All weights but the embedding, and the caches; two sums a layer and one of the embedding."""
    config, params, _, _, mesh = setup(devices)
    work = target_work(config, params, mesh, batch=3, slots=10)
    cache = 3 * 2 * 3 * 10 * 2 * 8 * 4
    assert work.read == (3 * LAYER + LM_HEAD + cache) // devices + NORMS
    assert work.sent == pytest.approx(sums * 2 * (devices - 1) / devices * 3 * 32 * 4)
    assert work.collectives == sums


def test_a_round_by_hand() -> None:
    """Passes by reading until products take longer; drafting as `draft_work` counts it, level by level."""
    given = setup(2)
    one = target_work(given[0], given[1], given[4], batch=1, slots=10)
    slow = CHIP._replace(flops=8 * 2 * one.read / 4 / (one.read / 1e9))  # eight tokens take as long as reading
    costs = bounded_costs(*given, slow, 2, split=True, slots=10)
    fixed = one.read / 1e9 + 7e-6
    assert costs.plain == costs.passes[1] == pytest.approx(1e3 * (fixed + one.sent / 2e9))
    assert costs.passes[8] == pytest.approx(1e3 * (fixed + 8 * one.sent / 2e9))
    assert costs.passes[32] == pytest.approx(1e3 * (fixed + 3 * one.read / 1e9 + 32 * one.sent / 2e9))
    for depth in range(4):
        drafter = make_eagle2(given[2], 8, depth)
        work = draft_work(given[2], given[3], drafter, given[4], split=True, slots=10)
        assert costs.round(TreeSize(8, depth, 10)) == pytest.approx(costs.passes[8] + 1e3 * work.seconds(slow, 2))


def test_the_head_is_where_it_costs_less() -> None:
    given = setup(2)
    whole, parts, either = (bounded_costs(*given, CHIP, 1, split=split) for split in (False, True, None))
    assert either.draft == min(whole.draft, parts.draft)
    assert either.passes == whole.passes == parts.passes


def test_experts() -> None:
    config, *rest = setup(1)
    config = dataclasses.replace(config, experts=Experts(count=4, per_token=2, width=48, renormalize=True))
    with pytest.raises(ValueError, match="the bound on a pass is one of dense targets, this one has experts"):
        bounded_costs(config, *rest, CHIP, 1)


def test_the_tree_of_a_mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By bounds where the chips are known, else by platform and batch."""
    config, params, head, head_params, mesh = setup(2)
    model = LoadedModel("tiny", config, params, NO_TOKENIZER, mesh)
    taus = {"8/1/4": {"0": 6.0}, "8/6/4": {"0": 6.05}}
    (tmp_path / "tau.json").write_text(json.dumps({"tau": taus}))
    assert "not measured on a mesh" in round_costs.choose_tree(model, str(tmp_path), head, head_params).reason
    monkeypatch.setattr(round_costs, "chip_of", lambda device: CHIP)
    choice = round_costs.choose_tree(model, str(tmp_path), head, head_params)
    assert choice.size == TreeSize(8, 1, 4)  # five levels more cost more than they bring
    assert choice.reason.endswith("by bounds")
