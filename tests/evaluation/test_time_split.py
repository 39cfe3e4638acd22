"""The parts of a round: what they are compiled from, and that none runs only once or not at all."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from eagle_jax.decode import Models, prefill
from eagle_jax.drafters import make_chain, make_eagle3, make_prompt_lookup, make_vanilla
from eagle_jax.drafters.base import Drafter, DrafterState
from eagle_jax.evaluation import time_split as module
from eagle_jax.evaluation.time_split import PARTS, time_split
from eagle_jax.generator import Generator
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import DraftTree, Params

_, TARGET, WEIGHTS = tiny_transformer(0, num_layers=1)
NAP = 0.05


def slow(lookup: Drafter) -> Drafter:
    """Sleeps whenever it proposes."""

    def propose(*arguments: Any) -> tuple[DraftTree, DrafterState]:
        tree, state = lookup.propose(*arguments)
        nothing = jax.pure_callback(nap, jax.ShapeDtypeStruct((), jnp.int32), tree.tokens)
        return dataclasses.replace(tree, tokens=tree.tokens + nothing), state

    def nap(tokens: Params) -> np.ndarray:
        time.sleep(NAP)
        return np.zeros((), np.int32)

    return Drafter("slow", lookup.nodes, lookup.max_depth, lookup.init, propose, lookup.observe)


@pytest.mark.parametrize("drafter", [make_vanilla(), make_chain(TARGET, 2)], ids=["vanilla", "chain"])
def test_parts_add_up(drafter: Drafter) -> None:
    generator = Generator(TARGET, WEIGHTS, drafter, WEIGHTS if drafter.name == "chain" else (), capacity=64)
    costs = time_split(generator, [1, 2, 3], new_tokens=8, repeats=1)
    assert set(costs) == {"round", *PARTS}
    assert sum(costs[part] for part in PARTS) == pytest.approx(costs["round"])
    assert all(costs[part] > 0 for part in PARTS[:3])


def test_nothing_is_left_out_of_the_loop() -> None:
    """The compiler finds no way around the work: what is multiplied in a run is what drafting multiplies."""
    config, target, params = tiny_transformer(0, num_layers=1)
    head = make_head(HeadConfig(kind="eagle3", layer=config, feature_width=3 * config.width), target)
    weights = HeadParams(weights=nn.unbox(head.init(jax.random.key(0))))
    drafter = make_eagle3(head, 5, 1, 2)
    text, one = jnp.ones((1, 64), jnp.int32), jnp.ones(1, jnp.int32)
    models = Models(target, drafter, params, weights)
    state = prefill(models, text, one, make_sampling(1))
    rest = (models, state, jnp.zeros((1, 3, target.vocab_size)))
    in_loop, alone = (run.lower(*rest).compile().cost_analysis()["flops"] for run in (module._draft, module._tree))
    assert in_loop >= alone > 1e4


def test_time_is_put_where_it_is_spent() -> None:
    """Every run of a part counts: a compiler that moved the work out of the loop would sleep once in eight."""
    generator = Generator(TARGET, WEIGHTS, slow(make_prompt_lookup(2)), capacity=64)
    costs = time_split(generator, [1, 2, 3], new_tokens=6, repeats=1)
    assert costs["draft"] > 0.8 * 1e3 * NAP
    assert costs["draft"] > 0.7 * costs["round"]
    assert module.RUNS > 1
