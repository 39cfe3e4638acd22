"""The head before its first step, and how Muon reads its weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.models.block_head import BlockHead, make_block_head
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.training import initialise, step
from eagle_jax.types import Params
from tests.models.passes import whole_pass
from tests.tolerance import assert_close, layer_terms
from tests.training import small

LAYER = 1
TOKENS = np.random.default_rng(0).integers(0, 64, (1, 9)).astype(np.int32)


def through_layer(x: jax.Array, index: int) -> jax.Array:
    """What the target's layer makes of x [1, T, E]: a target of this layer alone, its embedding replaced by x."""
    config, _, params = small.model()
    one, target, _ = small.model(num_layers=1, tap_layers=(0,))
    del config
    size = x.shape[1]
    table = jnp.zeros((one.vocab_size, one.width)).at[:size].set(x[0])
    weights = {**params, "embed_tokens": table, "layers_0": params[f"layers_{index}"]}
    weights["norm"] = {"weight": jnp.ones(one.width)}
    positions = jnp.arange(size)[None]
    causal = jnp.tril(jnp.ones((1, size, size), bool))
    return target.forward(weights, positions, positions, target.init_cache(1, 1), causal).hidden


def normed(x: jax.Array) -> jax.Array:
    """Size 1 over the last axis."""
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def attended(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Causal attention, written out."""
    group = queries.shape[2] // keys.shape[2]
    keys, values = (jnp.repeat(x, group, axis=2) for x in (keys, values))
    scores = jnp.einsum("bqhd,bshd->bhqs", queries, keys) * queries.shape[-1] ** -0.5
    size = queries.shape[1]
    weights = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((size, size), bool)), scores, -1e30))
    return jnp.einsum("bhqs,bshd->bqhd", weights, values)


@pytest.mark.parametrize("kind", small.KINDS)
def test_a_copied_layer_does_what_the_target_s_does(kind: str) -> None:
    """With nothing read from the embedding, the head's step is the target's layer."""
    head, _, _ = small.head(kind)
    config, _, params = small.model()
    weights = initialise.initial_weights(head, config, params, 0, layer=LAYER - config.num_layers)
    width = config.width
    if kind == "eagle":
        eye = jnp.concatenate([jnp.zeros((width, width)), jnp.eye(width)])
        weights = {**weights, "fc": {**weights["fc"], "kernel": eye}}
    else:
        attention = dict(weights["midlayer"]["self_attn"])
        for name in ("q_proj", "k_proj", "v_proj"):
            attention[name] = {"kernel": attention[name]["kernel"].at[:width].set(0)}
        weights = {**weights, "midlayer": {**weights["midlayer"], "self_attn": attention}}
    x = normed(jax.random.normal(jax.random.key(3), (1, 9, width)))
    embedded = jax.random.normal(jax.random.key(4), x.shape)
    found, _, _ = head.step(HeadParams(weights), x, embedded, jnp.arange(9)[None], attended)
    np.testing.assert_allclose(normed(found), through_layer(x, LAYER), atol=2e-4)
    other = initialise.initial_weights(head, config, params, 0)
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, other, weights))


def test_a_layer_of_another_shape_is_refused() -> None:
    """Both shapes are named."""
    head, _, _ = small.head("eagle3")
    config, _, params = small.model(mlp_width=48)
    with pytest.raises(ValueError, match=r"mlp of the head is .*64.*, of the target's layer -1 .*48"):
        initialise.initial_weights(head, config, params, 0, layer=-1)
    with pytest.raises(ValueError, match="the target has 3 layers, none of index 3"):
        initialise.initial_weights(head, small.model()[0], small.model()[2], 0, layer=3)


def block_head(target: ModelConfig, **sizes: Any) -> BlockHead:
    """A one-pass head for a target of `small.model`'s kind."""
    return make_block_head(initialise.head_config(target, "one_pass", block=4, edge_rank=2, **sizes), small.model()[1])


@pytest.mark.parametrize("family", [{}, {"qk_norm": True, "qkv_bias": True}], ids=["Llama", "Qwen"])
def test_a_one_pass_head_starts_as_the_end_of_its_target(
    family: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its layers are the target's last three; the first makes of the taps the keys and values that the target has."""
    monkeypatch.setattr(initialise, "OTHER_FEATURES", 0.0)
    config, _, params = small.model(num_layers=7, **family)
    head = block_head(config)
    weights = initialise.initial_weights(head, config, params, 0, layer=-1, feature_sizes=[2.0, 3.0, 0.5])
    for name, index in (("layers_0", 4), ("layers_1", 5), ("layers_2", 6)):
        assert jax.tree.structure(weights[name]) == jax.tree.structure(params[f"layers_{index}"])
        jax.tree.map(np.testing.assert_array_equal, weights[name], params[f"layers_{index}"])
    np.testing.assert_array_equal(weights["norm"]["weight"], params["norm"]["weight"])
    output, _ = whole_pass(small.model(num_layers=7, **family)[1], params, jnp.asarray(TOKENS))
    head_params = HeadParams(weights)
    keys, values = head.context(head_params, head.fuse(head_params, output.taps), jnp.arange(9)[None])
    terms = 7 * layer_terms(config, 9)
    assert_close((keys[0], values[0]), (output.keys[4], output.values[4]), terms)
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(weights)]
    assert len(set(buffers)) == len(buffers)  # training donates them


def test_sizes_and_layers_of_a_one_pass_head() -> None:
    config, _, params = small.model()
    made = initialise.head_config(config, "one_pass")
    assert (made.num_layers, made.block, made.edge_rank) == (3, 8, 64)
    with pytest.raises(ValueError, match="an eagle3 head has no block, got 4"):
        initialise.head_config(config, "eagle3", block=4)
    with pytest.raises(ValueError, match="the target has 3 layers, none of index 1 with 2 before it"):
        initialise.initial_weights(block_head(config), config, params, 0, layer=1)
    with pytest.raises(ValueError, match="the target has 3 layers, none of index -2 with 2 before it"):
        initialise.initial_weights(block_head(config), config, params, 0, layer=-2)
    two = initialise.initial_weights(block_head(config, num_layers=2), config, params, 0, layer=1)
    jax.tree.map(np.testing.assert_array_equal, two["layers_0"], params["layers_0"])
    size = np.sqrt(np.mean(np.square(params["embed_tokens"])))
    assert 0.5 * size < float(jnp.sqrt(jnp.mean(two["mask"] ** 2))) < 2 * size


@pytest.mark.parametrize("kind", small.KINDS)
def test_features_start_at_one_size(kind: str) -> None:
    """Features a hundred times as large give states as large, once their sizes are known."""
    head, _, _ = small.head(kind)
    config, _, params = small.model()
    parts = 3 if kind == "eagle3" else 1
    sizes = [0.5, 40.0, 7.0][:parts]
    width = head.config.feature_width // parts
    plain = jax.random.normal(jax.random.key(0), (2, 50, head.config.feature_width))
    features = plain * jnp.repeat(jnp.asarray(sizes), width)[None, None]
    features = features.at[0, 0].mul(1e4)  # a first token as it is found in real models
    segments = jnp.ones((2, 50), jnp.int32).at[1, 40:].set(0)
    features = features.at[1, 40:].set(1e6)
    found = initialise.typical_sizes(features, parts, segments)
    np.testing.assert_allclose(found, sizes, rtol=0.1)

    def kernel(**options: object) -> jax.Array:
        weights: Params = initialise.initial_weights(head, config, params, 0, **options)
        return weights["fc"]["kernel"][-head.config.feature_width :]

    scaled = features[0, 1:] @ kernel(feature_sizes=sizes)
    np.testing.assert_allclose(scaled, plain[0, 1:] @ kernel(), atol=1e-3)


def test_sizes_after_a_norm() -> None:
    """One norm on each part makes them equal, one on all of them leaves their proportions."""
    rng, sizes, width = np.random.default_rng(0), [0.5, 40.0, 7.0], 2000
    parts = [size * rng.standard_normal(width) for size in sizes]
    together = np.concatenate(parts) / np.sqrt(np.mean(np.concatenate(parts) ** 2))
    measured = [np.sqrt(np.mean(part**2)) for part in np.split(together, 3)]
    np.testing.assert_allclose(initialise.normed_sizes(sizes, together=True), measured, rtol=0.05)
    assert initialise.normed_sizes(sizes, together=False) == [1, 1, 1]


@pytest.mark.parametrize("kind", small.KINDS)
def test_muon_turns_matrices_and_leaves_the_rest_to_adam(kind: str) -> None:
    """The first update of a projection has singular values near one size; a norm's is Adam's."""
    _, params, _ = small.head(kind)
    optimizer, _ = step.make_optimizer(step.OptimizerConfig(steps=10, name="muon", learning_rate=1e-2))
    trained = {"weights": params.weights}
    names = iter(jax.random.split(jax.random.key(0), 100))
    grads = jax.tree.map(lambda x: jax.random.normal(next(names), x.shape) + 0.1, trained)
    state = optimizer.init(trained)
    for _ in range(2):  # the first step of the warm-up has a rate of 0
        updates, state = optimizer.update(grads, state, trained)
    layer = updates["weights"]["midlayer" if kind == "eagle3" else "layers_0"]
    out = layer["self_attn"]["o_proj"]["kernel"]
    for matrix in (out.reshape(-1, out.shape[-1]), layer["mlp"]["down_proj"]["kernel"]):
        sizes = np.linalg.svd(matrix, compute_uv=False)
        assert sizes.max() < 2 * sizes.min(), "not orthogonal"
    norm = np.abs(layer["post_attention_layernorm"]["weight"])
    np.testing.assert_allclose(norm, norm.max(), rtol=1e-2)


def test_an_unknown_optimizer_is_refused() -> None:
    """By name."""
    with pytest.raises(ValueError, match="optimizer must be adamw or muon, got 'sgd'"):
        dataclasses.replace(step.OptimizerConfig(steps=1), name="sgd")
