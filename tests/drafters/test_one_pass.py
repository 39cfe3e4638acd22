"""Trees from one pass of a head, against slow twins; what the drafter remembers; that it drafts in one pass."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from eagle_jax.decode import Models, decode, prefill
from eagle_jax.drafters import make_eagle3, make_one_pass
from eagle_jax.drafters.base import Drafter
from eagle_jax.generator import Generator
from eagle_jax.kernels import build
from eagle_jax.kernels.packed import is_packed, pack
from eagle_jax.models.block_head import BlockHead, make_block_head
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import bigram_target, tiny_transformer
from eagle_jax.types import DraftTree, Params, Target, any_weights
from tests import golden
from tests.drafters.test_best_first import nodes_of
from tests.models.passes import whole_pass
from tests.reference import best_first, one_pass
from tests.test_program import equations
from tests.tolerance import assert_close, pass_terms

VOCAB, WIDTH, BLOCK = 24, 32, 5
CONFIG, TARGET, PARAMS = tiny_transformer(vocab_size=VOCAB)
CAPACITY = 64


@functools.cache
def random_head(draft_vocab: bool = False, **changed: Any) -> tuple[BlockHead, HeadParams]:
    """An untrained head with edges, whose draft vocabulary is all tokens in another order."""
    layer = dataclasses.replace(CONFIG, **{"num_layers": 1, "windows": changed.pop("windows", ())})
    fields = {"num_layers": 2, "block": BLOCK, "edge_rank": 4, **changed}
    head = make_block_head(HeadConfig(kind="one_pass", layer=layer, feature_width=3 * WIDTH, **fields), TARGET)
    rng = np.random.default_rng(1)
    fill = lambda leaf: jnp.asarray(leaf + 0.5 * rng.standard_normal(leaf.shape), jnp.float32)  # noqa: E731
    params = HeadParams(weights=jax.tree.map(fill, nn.unbox(head.init(jax.random.key(0)))))
    if draft_vocab:
        ids = jnp.asarray(rng.permutation(VOCAB))
        params = params.replace(lm_head=PARAMS["lm_head"][ids], target_ids=ids)
    return head, params


def after_prompts(drafter: Drafter, params: Params, batch: int = 3) -> Any:
    """The decoding state after random prompts of several lengths."""
    rng = np.random.default_rng(2)
    text = jnp.asarray(rng.integers(0, VOCAB, (batch, CAPACITY)), jnp.int32)
    lengths = jnp.asarray(rng.integers(1, 30, batch))
    sampling = make_sampling(batch, max_new_tokens=20)
    return prefill(Models(TARGET, drafter, PARAMS, params), text, lengths, sampling, chunk=16)


def proposal(drafter: Drafter, params: Params, noise: jax.Array) -> tuple[DraftTree, Any]:
    """Trees after the prompts, and the state they were drafted from."""
    state = after_prompts(drafter, params, len(noise))
    propose = jax.jit(drafter.propose, compiler_options=golden.QUICK)
    tree, _ = propose(params, PARAMS, state.drafter, state.text, state.cache.length, noise)
    return tree, state


def some_noise(depth: int, batch: int = 3, temperature: float = 1.0) -> jax.Array:
    rng = np.random.default_rng(3)
    return jnp.asarray(temperature * rng.gumbel(size=(batch, depth + 1, VOCAB)), jnp.float32)


@pytest.mark.parametrize("draft_vocab", [False, True], ids=["all tokens", "draft vocabulary"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("edges", [True, False], ids=["edges", "marginal"])
@pytest.mark.parametrize("noise_level", [0, 1, 2])
def test_trees_against_a_slow_twin(draft_vocab: bool, temperature: float, edges: bool, noise_level: int) -> None:
    """Base logits and edges from the head; all else, tables and tree, node by node."""
    head, params = random_head(draft_vocab)
    settings: dict[str, Any] = {"shortlist": 9, "predecessors": 6, "noise_level": noise_level}
    drafter = make_one_pass(head, 14, 3, 4, edges=edges, beam=13, **settings)
    noise = some_noise(4, temperature=temperature)
    tree, state = proposal(drafter, params, noise)
    roots = np.take_along_axis(np.asarray(state.text), np.asarray(state.cache.length)[:, None], axis=1)[:, 0]
    states = head.block(
        params, PARAMS, jnp.asarray(roots), state.cache.length, state.drafter.cache, state.drafter.newest
    )
    logits = np.asarray(head.logits(params, PARAMS, states), np.float64)
    ids = np.arange(VOCAB) if params.target_ids is None else np.asarray(params.target_ids)
    base = np.zeros_like(logits)
    base[:, :, ids] = logits
    scores = np.zeros((VOCAB, VOCAB))
    if edges:
        scores[:, ids] = head.edges(params, jnp.arange(VOCAB), jnp.arange(VOCAB))
    else:
        settings["predecessors"] = 9  # below all tokens there are the same children
    for row, root in enumerate(roots):
        twin = one_pass.child_tables(
            base[row, :4], scores, np.asarray(noise[row, :4], np.float64), root, top_k=4, **settings
        )
        found = best_first.grow(twin.tokens, twin.scores.astype(np.float32), twin.rows, 14, 4)
        tokens: dict[tuple[int, ...], tuple[int, ...]] = {(): ()}
        for node in sorted(found, key=lambda node: len(node.path)):
            tokens[node.path] = (*tokens[node.path[:-1]], node.token)
        actual = nodes_of(tree, row)
        assert {path for path, _ in actual} == {tokens[node.path] for node in found}
        values = dict(actual)
        assert_close(
            np.array([values[tokens[node.path]] for node in found]),
            np.array([node.value for node in found]),
            4 * (VOCAB + WIDTH),
            logits,
        )
    assert tree.max_depth == 4


def test_what_the_noise_levels_decide() -> None:
    """Without noise nothing; with noise each level drafts another tree, and level 0 leaves the confidences alone."""
    head, params = random_head()
    makers = [functools.partial(make_one_pass, head, 14, 3, 4, predecessors=4, noise_level=level) for level in range(3)]
    quiet = [proposal(make(), params, 0 * some_noise(4))[0] for make in makers]
    loud = [proposal(make(), params, some_noise(4))[0] for make in makers]
    for tree in quiet[1:]:
        jax.tree.map(np.testing.assert_array_equal, tree, quiet[0])
    shapes = [{(row, path) for row in range(3) for path, _ in nodes_of(tree, row)} for tree in [quiet[0], *loud]]
    assert all(shapes.count(shape) == 1 for shape in shapes)
    listed: list[dict[Any, float]] = [
        {(row, path): value for row in range(3) for path, value in nodes_of(tree, row)} for tree in [quiet[0], *loud]
    ]
    shared = listed[0].keys() & listed[1].keys()
    assert shared
    for node in shared:
        assert abs(listed[0][node] - listed[1][node]) < 1e-3
    moved = listed[0].keys() & listed[2].keys()
    assert any(abs(listed[0][node] - listed[2][node]) > 1e-2 for node in moved)


def test_without_edges_all_nodes_of_a_depth_have_the_same_children() -> None:
    """And with them not."""
    head, params = random_head()
    for edges in (True, False):
        tree, _ = proposal(make_one_pass(head, 13, 1, 3, edges=edges, spine=False), params, some_noise(2))
        children: dict[tuple[int, ...], set[int]] = {}
        for path, _ in nodes_of(tree, 0):
            if len(path) == 2:
                children.setdefault(path[:1], set()).add(path[1])
        assert len(children) == 3
        assert (len({frozenset(some) for some in children.values()}) == 1) == (not edges)


def test_a_head_without_edges_drafts_the_marginal_tree() -> None:
    bare, params = random_head(edge_rank=0)
    trees = [proposal(make_one_pass(bare, 13, 2, 3, edges=edges), params, some_noise(3))[0] for edges in (True, False)]
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_equal_settings_are_one_drafter() -> None:
    head, _ = random_head()
    assert make_one_pass(head, 8, 2, 3) is make_one_pass(head, 8, 2, 3)
    drafter = make_one_pass(head, 8, 2, 3)
    assert (drafter.nodes, drafter.max_depth, drafter.top_k, drafter.draws) == (8, 3, 3, False)


NO_WEIGHTS = HeadParams(weights={"unused": jnp.zeros(1)})


def echo(seed: int = 0) -> tuple[Target, Params, BlockHead]:
    """A bigram target, and a stub that knows its most probable continuation and remembers what it was given to read.

    Row p of the stub's cache is the features of position p and the position itself; slot i is the (i + 1)-th successor.
    """
    target, params = bigram_target(16, seed)
    layer = dataclasses.replace(CONFIG, vocab_size=16, width=16, num_kv_heads=1, head_dim=48)
    config = HeadConfig(kind="one_pass", layer=layer, feature_width=48, block=BLOCK)

    def context(params: Params, fused: jax.Array, positions: jax.Array) -> Any:
        return (fused[:, :, None],), (
            jnp.broadcast_to(positions[:, :, None, None].astype(float), fused[:, :, None].shape),
        )

    def block(
        params: Params, target_params: Params, anchors: jax.Array, positions: jax.Array, cache: Any, newest: Any
    ) -> jax.Array:
        states = []
        for _ in range(BLOCK):
            states.append(target.embed(target_params, anchors))
            anchors = states[-1].argmax(-1)
        return jnp.stack(states, axis=1)

    stub = make_block_head(config, target)._replace(
        fuse=lambda params, features: features,
        context=context,
        block=block,
        logits=lambda params, target_params, states: states,
        check=any_weights,
    )
    return target, params, stub


@pytest.mark.parametrize("sizes", [(1 + BLOCK, BLOCK - 1, 1), (16, BLOCK - 1, 3), (9, 3, 2)])
def test_a_drafter_that_echoes_the_target_reaches_full_depth(sizes: tuple[int, int, int]) -> None:
    """Greedy, the chain of first children is the target's own text; a slot or a round off and it would not be."""
    target, params, stub = echo()
    drafter = make_one_pass(stub, *sizes)
    full = Generator(target, params, drafter, NO_WEIGHTS, capacity=CAPACITY, prefill_chunk=8)
    answer = full.generate([[1], [2, 3], [4] * 9], max_new_tokens=1 + 4 * (drafter.max_depth + 1))
    assert answer.rounds == [4] * 3
    assert answer.tau == drafter.max_depth + 1


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_row_of_the_cache_is_the_feature_of_its_position(rounds: int) -> None:
    """After prompts of several chunks, and after rounds in which some nodes were accepted off the first places."""
    target, params, stub = echo()
    drafter = make_one_pass(stub, 16, BLOCK - 1, 3)
    text = jnp.asarray(np.random.default_rng(0).integers(0, 16, (3, CAPACITY)), jnp.int32)
    models = Models(target, drafter, params, NO_WEIGHTS)
    sampling = make_sampling(3, temperature=1.0, max_new_tokens=40)
    state = prefill(models, text, jnp.array([1, 9, 21]), sampling, chunk=8)
    if rounds:
        state = decode(models, state, sampling, rounds)
        assert state.accepted[:, 1:].sum() > 0
    for row, length in enumerate(state.cache.length.tolist()):
        features = np.tile(np.asarray(params["table"])[state.text[row, :length]], 3)
        np.testing.assert_array_equal(state.drafter.cache.keys[0][row, :length, 0], features)
        np.testing.assert_array_equal(state.drafter.cache.values[0][row, :length, 0, 0], np.arange(length))
        assert state.drafter.cache.length[row] == length


@pytest.mark.parametrize("rounds", [0, 3])
def test_the_newest_context_is_that_of_the_last_token(rounds: int) -> None:
    """After prompts of several chunks, and after rounds: what a pass over all of the text gives there."""
    head, params = random_head(joins_context=True)
    drafter = make_one_pass(head, 14, 3, 4)
    state = after_prompts(drafter, params)
    if rounds:
        state = decode(Models(TARGET, drafter, PARAMS, params), state, make_sampling(3, max_new_tokens=20), rounds)
    output, _ = whole_pass(TARGET, PARAMS, state.text)
    fused = head.fuse(params, output.taps)[jnp.arange(3), state.cache.length - 1]
    assert_close(state.drafter.newest, fused, pass_terms(CONFIG, CAPACITY) + 4 * WIDTH)
    assert make_one_pass(random_head()[0], 14, 3, 4).init(1, 8, "float32").newest is None


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_edges_that_are_the_target_reach_full_depth(batch: int, temperature: float) -> None:
    """A bigram target has no more than edges: with its table as theirs, sampled text is drafted in full too."""
    target, params = bigram_target(16)
    layer = dataclasses.replace(CONFIG, vocab_size=16, width=16, num_layers=1)
    config = HeadConfig(kind="one_pass", layer=layer, feature_width=48, block=BLOCK, edge_rank=16)
    head = make_block_head(config, target)
    weights = jax.tree.map(jnp.zeros_like, nn.unbox(head.init(jax.random.key(0))))
    weights["edges"] = {"previous": params["table"], "following": jnp.eye(16)}
    drafter = make_one_pass(head, 12, BLOCK - 1, 3)
    full = Generator(target, params, drafter, HeadParams(weights=weights), capacity=CAPACITY, prefill_chunk=8)
    prompts = [[1], [2, 3], [4] * 9][:batch]
    answer = full.generate(prompts, temperature=temperature, max_new_tokens=1 + 4 * (BLOCK + 1))
    assert answer.rounds == [4] * batch
    assert answer.tau == BLOCK + 1


def test_edges_and_noise_each_bring_tokens() -> None:
    """tau at T = 1 on a bigram target whose table the edges know with errors; base logits are all alike.

    So the predecessors are those of the shortlist in either case, and the noise levels 1 and 2 are one.
    """
    target, params = bigram_target(32)
    layer = dataclasses.replace(CONFIG, vocab_size=32, width=32, num_layers=1)
    head = make_block_head(
        HeadConfig(kind="one_pass", layer=layer, feature_width=96, block=BLOCK, edge_rank=32), target
    )
    weights = jax.tree.map(jnp.zeros_like, nn.unbox(head.init(jax.random.key(0))))
    errors = 0.7 * jax.random.normal(jax.random.key(1), (32, 32))
    weights["edges"] = {"previous": params["table"] + errors, "following": jnp.eye(32)}
    prompts = [[token] for token in range(32)]

    def tau(share_noise: bool = True, **parts: Any) -> float:
        drafter = make_one_pass(head, 16, BLOCK - 1, 4, shortlist=16, predecessors=8, **parts)
        weighted = HeadParams(weights=weights)
        generator = Generator(target, params, drafter, weighted, capacity=CAPACITY, share_noise=share_noise)
        return generator.generate(prompts, temperature=1.0, max_new_tokens=48).tau

    no_edges, edges, children, confidence = tau(False, edges=False), tau(False), tau(noise_level=0), tau(noise_level=1)
    assert edges > 1.1 * no_edges
    assert children > 1.5 * edges
    assert confidence > 1.05 * children


def products(drafter: Drafter, params: Params, *, names: tuple[int, ...]) -> int:
    """Matrix products in `propose` with a weight of this shape."""
    state = jax.eval_shape(lambda: drafter.init(1, CAPACITY, "float32"))
    text, length = jnp.zeros((1, CAPACITY), jnp.int32), jnp.zeros(1, jnp.int32)
    noise = jnp.zeros((1, drafter.max_depth + 1, VOCAB))
    jaxpr = jax.make_jaxpr(drafter.propose)(params, PARAMS, state, text, length, noise)
    found = [one for one in equations(jaxpr.jaxpr) if one.primitive.name == "dot_general"]
    return sum(names in [value.aval.shape for value in one.invars] for one in found)


def test_a_round_holds_one_drafting_pass() -> None:
    """Two layers and one LM head whatever the depth, where EAGLE-3 has a layer and an LM head for every level."""
    head, params = random_head()
    mlp, lm_head = (WIDTH, CONFIG.mlp_width), (VOCAB, WIDTH)
    for depth in (0, 2, BLOCK - 1):
        drafter = make_one_pass(head, 3, depth, 2)
        assert products(drafter, params, names=mlp) == 2 * 2  # gate and up
        assert products(drafter, params, names=lm_head) == 1
    layer = dataclasses.replace(CONFIG, num_layers=1)
    stepwise = make_head(HeadConfig(kind="eagle3", layer=layer, feature_width=3 * WIDTH), TARGET)
    weights = HeadParams(weights=nn.unbox(stepwise.init(jax.random.key(0))))
    drafter = make_eagle3(stepwise, 3, 4, 2)
    assert products(drafter, weights, names=mlp) == 2 * 4
    assert products(drafter, weights, names=lm_head) == 5


@pytest.mark.skipif(not build.available(), reason="no compiler for the CPU kernel")
def test_packed_weights_draft_the_same_trees() -> None:
    head, params = random_head()
    packed = pack(params)
    assert is_packed(packed)
    drafter = make_one_pass(head, 14, 3, 4)
    one, other = (proposal(drafter, weights, some_noise(4))[0] for weights in (params, packed))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.parents, other.parents)
    np.testing.assert_allclose(one.log_values, other.log_values, atol=1e-4)


@pytest.mark.parametrize(("forgotten", "same"), [(0, True), (5, False)])
def test_a_head_with_a_window_sees_what_stands_in_it(forgotten: int, same: bool) -> None:
    """Slot 0 stands at the root and sees 7 rows before it; rows before those may hold anything."""
    head, params = random_head(windows=(8,))
    drafter = make_one_pass(head, 14, 3, 4)
    state = after_prompts(drafter, params)
    first = jnp.maximum(state.cache.length - 7 + forgotten, 0)
    gone = (jnp.arange(CAPACITY)[None, :] < first[:, None])[:, :, None, None]
    changed = jax.tree.map(lambda x: jnp.where(gone, 3.0, x) if x.ndim == 4 else x, state.drafter)
    assert gone.any()
    one, other = (
        drafter.propose(params, PARAMS, cache, state.text, state.cache.length, some_noise(4))[0].log_values
        for cache in (state.drafter, changed)
    )
    assert np.array_equal(one, other) == same


@pytest.mark.parametrize(
    ("sizes", "parts", "message"),
    [
        ((8, BLOCK, 2), {}, "depth is at most 4 for a head that drafts 5 positions, got 5"),
        ((1, 2, 2), {}, "nodes must be at least 2, got 1"),
        ((8, 2, 0), {}, "top_k must be at least 1, got 0"),
        ((8, -1, 2), {}, "depth must be at least 0, got -1"),
        ((8, 2, 2), {"beam": 0}, "beam must be at least 1, got 0"),
        ((8, 2, 2), {"noise_level": 3}, r"noise_level is one of \(0, 1, 2\), got 3"),
        ((8, 2, 2), {"shortlist": 31}, "a shortlist of 31 tokens is too short for top_k 2 and 32 predecessors"),
        ((8, 2, 1), {}, "nodes - 1 is 7, but depth 2, top_k 1 and beam 16 find only 3 nodes"),
    ],
)
def test_sizes_that_cannot_be(sizes: tuple[int, int, int], parts: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_one_pass(random_head()[0], *sizes, **parts)


def test_more_children_than_tokens() -> None:
    head, params = random_head()
    with pytest.raises(ValueError, match="top_k is 25, the draft vocabulary has 24 tokens"):
        proposal(make_one_pass(head, 14, 3, VOCAB + 1), params, some_noise(4))
