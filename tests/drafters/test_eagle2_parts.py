"""EAGLE-2 with and without its parts against a slow twin, for a head that looks at the newest token alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.decode import check_rule
from eagle_jax.drafters.eagle2 import make_eagle2
from eagle_jax.drafters.head import init_state
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import Head, HeadConfig, HeadParams
from eagle_jax.types import NO_PARENT
from tests import golden
from tests.reference import dynamic_tree
from tests.tolerance import assert_close

VOCAB, NODES, DEPTH, TOP_K = 24, 15, 3, 4
LAYER = ModelConfig(
    vocab_size=VOCAB,
    width=VOCAB,
    mlp_width=8,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    max_positions=64,
    norm_eps=1e-5,
    rope_theta=1e4,
)


def step(params: HeadParams, states: jax.Array, embedded: jax.Array, *_: Any) -> tuple[jax.Array, ...]:
    """The state is the embedding: logits after the token, whatever stands before it."""
    rows = jnp.zeros((*embedded.shape[:2], 1, 2))
    return embedded, rows, rows


HEAD = Head(
    config=HeadConfig(kind="eagle", layer=LAYER, feature_width=VOCAB),
    init=lambda key: {},
    fuse=lambda params, features: features,
    embed=lambda params, target_params, tokens: params.weights["table"][tokens],
    step=step,
    readout=lambda params, states: states,
    logits=lambda params, target_params, states: states,
)


@pytest.mark.parametrize("reranks", [True, False])
@pytest.mark.parametrize("use_value", [True, False])
def test_against_a_slow_twin(use_value: bool, reranks: bool) -> None:
    drafter = make_eagle2(HEAD, NODES, DEPTH, TOP_K, use_value=use_value, reranks=reranks)
    propose = jax.jit(drafter.propose, compiler_options=golden.QUICK)
    for seed in range(5):
        table = jnp.asarray(2 * np.random.default_rng(seed).standard_normal((VOCAB, VOCAB)), jnp.float32)
        state = init_state(HEAD, 1, 32, "float32").replace(newest=table[7][None])
        text, noise = jnp.full((1, 32), 7), jnp.zeros((1, DEPTH + 1, VOCAB))
        tree, _ = propose(HeadParams(weights={"table": table}), {}, state, text, jnp.zeros(1, jnp.int32), noise)
        grown = dynamic_tree.grow(np.asarray(jax.nn.log_softmax(table)), 7, DEPTH, TOP_K, use_value)
        tokens, values, parents = zip(*dynamic_tree.choose(grown, NODES, reranks), strict=True)
        assert tree.tokens[0].tolist() == [7, *tokens]
        assert tree.parents[0].tolist() == [NO_PARENT, *parents]
        assert_close(tree.log_values[0], np.array([0.0, *values]), DEPTH * VOCAB, table)
        assert tree.candidate.all()


def test_drawn_children_against_a_slow_twin() -> None:
    """Tokens, places and values; which children were drawn, and from what."""
    drafter = make_eagle2(HEAD, 10, DEPTH, TOP_K, draws=True)
    assert (drafter.own_noise, drafter.draws, drafter.top_k) == (1 + 2 + 4 + 4, True, 2)
    propose = jax.jit(drafter.propose, compiler_options=golden.QUICK)
    drawn = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        table = (2 * rng.standard_normal((VOCAB, VOCAB))).astype(np.float32)
        noise = rng.gumbel(size=(drafter.own_noise, VOCAB)).astype(np.float32)
        state = init_state(HEAD, 1, 32, "float32").replace(newest=jnp.asarray(table[7][None]))
        weights = HeadParams(weights={"table": jnp.asarray(table)})
        text = jnp.full((1, 32), 7)
        tree, _ = propose(weights, {}, state, text, jnp.zeros(1, jnp.int32), jnp.asarray(noise[None]))
        grown = dynamic_tree.grow_drawn(table.astype(np.float64), noise, 7, DEPTH, TOP_K)
        tokens, values, parents = zip(*dynamic_tree.choose(grown, 10, reranks=True), strict=True)
        assert tree.tokens[0].tolist() == [7, *tokens]
        assert tree.parents[0].tolist() == [NO_PARENT, *parents]
        assert_close(tree.log_values[0], np.array([0.0, *values]), DEPTH * VOCAB, table)
        for child, parent in enumerate(parents, start=1):
            logits = table[int(tree.tokens[0, parent])]
            assert bool(tree.fixed[0, child]) == (tree.tokens[0, child] == logits.argmax())
            others = np.where(np.arange(VOCAB) == logits.argmax(), -np.inf, logits)
            np.testing.assert_array_equal(tree.draft_logits[0, parent], others)
        drawn += int((~tree.fixed[0, 1:]).sum())
    assert drawn >= 5


@pytest.mark.parametrize(
    ("sizes", "parts", "words"),
    [
        ((4, 3, 1), {}, "top_k must be at least 2, got 1"),
        ((24, 3, 4), {}, "nodes - 1 is 23, but with draws depth 3 and top_k 4 find only 22"),
        ((10, 3, 4), {"use_value": False}, "draws needs all parts"),
        ((10, 3, 4), {"reranks": False}, "draws needs all parts"),
    ],
)
def test_drawn_children_need_the_published_tree(sizes: tuple[int, ...], parts: dict[str, bool], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_eagle2(HEAD, *sizes, draws=True, **parts)


def test_drawn_children_need_the_rule_residual() -> None:
    drafter = make_eagle2(HEAD, 10, DEPTH, TOP_K, draws=True)
    with pytest.raises(ValueError, match="the rule must be residual, got 'match'"):
        check_rule(drafter, "match", share_noise=False)
    check_rule(drafter, "residual", share_noise=False)


def test_the_parts_matter() -> None:
    """The twin itself tells the four apart."""
    log_probs = np.asarray(jax.nn.log_softmax(2 * np.random.default_rng(0).standard_normal((VOCAB, VOCAB))))
    trees = [
        dynamic_tree.choose(dynamic_tree.grow(log_probs, 7, DEPTH, TOP_K, use_value), NODES, reranks)
        for use_value in (True, False)
        for reranks in (True, False)
    ]
    shapes = [[(token, parent) for token, _, parent in tree] for tree in trees]
    assert all(shapes.count(shape) == 1 for shape in shapes)


def test_without_reranking_there_are_fewer_nodes() -> None:
    with pytest.raises(ValueError, match=r"at most top_k \* \(depth \+ 1\) = 16, got 19"):
        make_eagle2(HEAD, 20, DEPTH, TOP_K, reranks=False)
