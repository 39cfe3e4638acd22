"""The one-pass head against a slow twin, and what its block may depend on."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.cache import commit, init_cache
from eagle_jax.checkpoint.heads import load_head, save_head
from eagle_jax.kernels.packed import is_packed, pack
from eagle_jax.models.block_head import BlockHead, make_any_head, make_block_head
from eagle_jax.models.draft_head import HeadParams, make_head
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import KVCache
from tests.checkpoint.heads import random_block_head
from tests.reference.block_head import BlockReader
from tests.tolerance import assert_close, block_terms, rounding

LENGTH, ANCHOR = 11, 7
CONFIG, TARGET, PARAMS = tiny_transformer(num_layers=7)
VARIANTS: dict[str, dict[str, Any]] = {
    "one layer": {"num_layers": 1},
    "three layers": {"num_layers": 3},
    "norms on taps": {"fc_norm": True},
    "no edges": {"edge_rank": 0},
    "two taps": {"parts": (2, 0)},
    "query and key norms": {"qk_norm": True},
    "context joined": {"joins_context": True, "fc_norm": True},
    "DSpark": {"bidirectional": True, "mask_token": 5},
    "DFlash": {"bidirectional": True, "shifted": False, "mask_token": 5, "edge_rank": 0},
}


def prefill(head: BlockHead, params: HeadParams, features: jax.Array, capacity: int = 32) -> KVCache:
    """A cache that holds the context of features [B, n, F]."""
    size, length = features.shape[:2]
    layer = head.config.layer
    cache = init_cache(head.config.num_layers, size, capacity, layer.num_kv_heads, layer.head_dim, jnp.dtype("float32"))
    places = jnp.broadcast_to(jnp.arange(length), (size, length))
    keys, values = head.context(params, head.fuse(params, features), places)
    return commit(cache, keys, values, places, jnp.full(size, length))


def made(seed: int = 0, **flags: Any) -> tuple[BlockHead, HeadParams, jax.Array]:
    """A random head and features of two texts."""
    config, params = random_block_head(CONFIG, **flags)
    features = np.random.default_rng(seed).standard_normal((2, LENGTH, config.feature_width))
    return make_block_head(config, TARGET), params, jnp.asarray(features, jnp.float32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_twin(variant: str, tmp_path: Path) -> None:
    """Logits and edges of a head that was written and read, for two texts of unequal length in one batch."""
    config, params = random_block_head(CONFIG, **VARIANTS[variant])
    save_head(tmp_path / "head", config, params, CONFIG, dtype="float32", engine=None)
    again, params = load_head(tmp_path / "head", CONFIG)
    assert again == config
    head = make_block_head(config, TARGET)
    features = np.random.default_rng(1).standard_normal((2, LENGTH, config.feature_width)).astype(np.float32)
    lengths = np.array([LENGTH, LENGTH - 3])
    cache = dataclasses.replace(prefill(head, params, jnp.asarray(features)), length=jnp.asarray(lengths))
    anchors = jnp.array([ANCHOR, ANCHOR + 1])
    newest = head.fuse(params, jnp.asarray(features))[jnp.arange(2), lengths - 1] if config.joins_context else None
    states = jax.jit(head.block)(params, PARAMS, anchors, cache.length, cache, newest)
    assert states.shape == (2, config.num_drafted, config.layer.width)
    logits = head.logits(params, PARAMS, states)
    terms = block_terms(config, LENGTH + config.block)
    for row, length in enumerate(lengths):
        twin = BlockReader(tmp_path / "head", np.asarray(PARAMS["embed_tokens"]))
        twin.read(features[row, :length])
        wanted = twin.block(int(anchors[row]), config.block)[config.block - config.num_drafted :]
        assert_close(head.readout(params, states)[row], wanted, terms)
        assert_close(logits[row], wanted @ np.asarray(params.lm_head, float).T, terms)
    previous, rows = jnp.array([[3, 60], [7, 7]]), jnp.array([[0, 4, 9], [23, 1, 2]])
    tokens = np.asarray(params.target_ids)[rows]
    found = [
        [
            [twin.edge(int(one), int(other)) if config.edge_rank else 0.0 for other in tokens[row]]
            for one in previous[row]
        ]
        for row in range(2)
    ]
    assert_close(head.edges(params, previous, rows), np.array(found), max(config.edge_rank, 1))
    if config.edge_rank:
        before, after = head.edge_vectors(params, previous)
        products = jnp.einsum("bmr,ur->bmu", before, after)
        assert_close(jnp.take_along_axis(products, rows[:, None], axis=2), np.array(found), config.edge_rank)


def test_a_shorter_block_gives_the_same_states() -> None:
    """Prefix-stable: slots are not conditioned on how many follow."""
    head, params, features = made(num_layers=2)
    cache = prefill(head, params, features)
    anchors = jnp.array([ANCHOR, 9])
    states = head.block(params, PARAMS, anchors, cache.length, cache, None)
    for block in range(1, head.config.block):
        shorter = make_block_head(dataclasses.replace(head.config, block=block), TARGET)
        some = shorter.block(params, PARAMS, anchors, cache.length, cache, None)
        assert_close(some, states[:, :block], block_terms(head.config, LENGTH + block))
    both_ways = make_block_head(dataclasses.replace(head.config, bidirectional=True), TARGET)
    other = both_ways.block(params, PARAMS, anchors, cache.length, cache, None)
    assert float(jnp.abs(other - states)[:, 0].max()) > 1e-2


def test_what_states_depend_on() -> None:
    """The anchor through slot 0, the context below the anchor, nothing at or beyond it, and no other row."""
    head, params, features = made(num_layers=2)
    cache = prefill(head, params, features)

    def block(anchors: list[int], length: int, features: jax.Array = features) -> jax.Array:
        cache = prefill(head, params, features)
        cache = dataclasses.replace(cache, length=jnp.full(2, length))
        return head.block(params, PARAMS, jnp.array(anchors), cache.length, cache, None)

    assert float(jnp.abs(block([3, 5], 6) - block([3, 6], 6))[1].min(-1).max()) > 0
    np.testing.assert_array_equal(block([3, 5], 6)[0], block([3, 6], 6)[0])
    later = features.at[:, 6:].add(1.0)
    np.testing.assert_array_equal(block([3, 5], 6), block([3, 5], 6, later))
    assert float(jnp.abs(block([3, 5], 7) - block([3, 5], 7, later)).max()) > 1e-3
    inputs = head.inputs(params, PARAMS, jnp.array([3, 5]), None)
    np.testing.assert_array_equal(inputs[:, 0], PARAMS["embed_tokens"][jnp.array([3, 5])])
    np.testing.assert_array_equal(inputs[:, 1:], jnp.broadcast_to(params.weights["mask"], inputs[:, 1:].shape))
    assert cache.keys[0].shape[0] == 2


def test_context_grows_as_a_fresh_prefill() -> None:
    """Rows that are appended after a round, three and then two, are those of a prefill of the longer text."""
    head, params, features = made(num_layers=2, fc_norm=True)
    fresh = prefill(head, params, features)
    grown = prefill(head, params, features[:, :6])
    for start, stop in ((6, 9), (9, LENGTH)):
        places = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
        keys, values = head.context(params, head.fuse(params, features[:, start:stop]), places)
        path = jnp.broadcast_to(jnp.arange(stop - start), places.shape)
        grown = commit(grown, keys, values, path, jnp.full(2, stop - start))
    assert_close(grown, fresh, head.config.feature_width + 3 * head.config.layer.width)


def test_a_window_bounds_the_context() -> None:
    """A feature out of a slot's window does not reach it, one inside does."""
    head, params, features = made(num_layers=1)
    layer = dataclasses.replace(head.config.layer, windows=(4,))
    head = make_block_head(dataclasses.replace(head.config, layer=layer), TARGET)

    def block(features: jax.Array) -> jax.Array:
        cache = prefill(head, params, features)
        return head.block(params, PARAMS, jnp.array([3, 5]), cache.length, cache, None)

    change = jnp.abs(block(features) - block(features.at[:, LENGTH - 2].add(1.0))).max((0, 2))
    assert (change[:2] > 1e-3).all()  # positions 11 and 12 see down to 8 and 9
    assert (change[2:] == 0).all()


def test_packed_weights() -> None:
    """The CPU kernel computes the same."""
    head, params, features = made(num_layers=2)
    packed, target_params = pack(params), pack(PARAMS)
    if not is_packed(packed.weights):
        pytest.skip("no compiler")
    plain_cache, cache = prefill(head, params, features), prefill(head, packed, features)
    terms = block_terms(head.config, LENGTH + head.config.block)
    anchors = jnp.array([ANCHOR, 9])
    wanted = head.block(params, PARAMS, anchors, plain_cache.length, plain_cache)
    states = head.block(packed, target_params, anchors, cache.length, cache, None)
    assert_close(states, wanted, terms)
    assert_close(head.logits(packed, target_params, states), head.logits(params, PARAMS, wanted), terms)
    previous, rows = jnp.array([[3], [7]]), jnp.array([[0, 4], [2, 1]])
    np.testing.assert_array_equal(head.edges(packed, previous, rows), head.edges(params, previous, rows))
    head.check(packed)


def test_fresh_edges_change_nothing() -> None:
    """Their second table starts at zero."""
    head, params, _ = made()
    weights = head.init(jax.random.key(0))
    fresh = params.replace(weights=jax.tree.map(lambda x: x.value, weights, is_leaf=lambda x: hasattr(x, "value")))
    rows = jnp.arange(8)[None]
    assert float(jnp.abs(head.edges(params, rows, rows)).min()) > 0
    assert float(jnp.abs(head.edges(fresh, rows, rows)).max()) == 0


def test_each_maker_takes_its_kinds() -> None:
    head, params, _ = made()
    assert make_any_head(head.config, TARGET) is head
    with pytest.raises(ValueError, match="one-pass heads draft blocks, not token by token"):
        make_head(head.config, TARGET)
    eagle = dataclasses.replace(head.config, kind="eagle3", block=0, num_layers=1, edge_rank=0)
    assert make_any_head(eagle, TARGET) is make_head(eagle, TARGET)
    with pytest.raises(ValueError, match="EAGLE-3 heads draft token by token, not blocks"):
        make_block_head(eagle, TARGET)
    anchors, newest = jnp.zeros(2, int), jnp.zeros((2, CONFIG.width))
    with pytest.raises(ValueError, match="joins_context is False, and the head got a newest context"):
        head.inputs(params, PARAMS, anchors, newest)
    with pytest.raises(ValueError, match="joins_context is True, and the head got no newest context"):
        made(joins_context=True)[0].inputs(params, PARAMS, anchors, None)
    with pytest.raises(ValueError, match="weights of another model: edges"):
        make_block_head(dataclasses.replace(head.config, edge_rank=0), TARGET).check(params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "eagle3", "num_layers": 1, "edge_rank": 0}, "block is 4, but EAGLE-3 heads have none"),
        ({"kind": "eagle3", "block": 0, "edge_rank": 0}, "num_layers is 2, but EAGLE-3 heads have none"),
        ({"block": 0}, "got num_layers 2, block 0"),
        ({"block": 1, "shifted": False}, r"block 1 \(0 drafted\)"),
        ({"num_layers": 0}, "got num_layers 0"),
        ({"norm_output": True}, "norm_output is set, but one-pass heads have no such norm"),
    ],
)
def test_shapes_that_cannot_be(change: dict[str, Any], message: str) -> None:
    config, _ = random_block_head(CONFIG)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


def test_tolerances_are_tight() -> None:
    """What the comparisons allow is far below what any of the variants changes."""
    config, _ = random_block_head(CONFIG)
    assert rounding(np.ones(1), terms=block_terms(config, LENGTH)) < 2e-5
