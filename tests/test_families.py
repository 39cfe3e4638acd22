"""Targets that are not Llama's: drafting writes what the target alone writes, on one device and on meshes.

Their windows are far smaller than the texts, and trees stand over a cached prefix.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from eagle_jax import sharding
from eagle_jax.checkpoint.pick_layers import truncate_layers
from eagle_jax.drafters import Drafter, make_chain, make_eagle3, make_vanilla
from eagle_jax.generator import Generator
from eagle_jax.kernels import build
from eagle_jax.kernels.packed import is_packed, pack, unpack
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadParams, make_head
from eagle_jax.models.transformer import make_target
from eagle_jax.testing import tiny_transformer
from eagle_jax.training.initialise import head_config, initial_weights
from eagle_jax.types import Params, Target
from tests.drafts import with_noise
from tests.models.families import FAMILIES
from tests.reference.decode import decode as plain
from tests.test_sharding import PROMPTS, SAMPLING, mesh_of, sent_by

NEW = 20
OPTIONS: dict[str, Any] = {"capacity": 80, "prefill_chunk": 16}


@functools.cache
def model(family: str) -> tuple[ModelConfig, Target, Params]:
    """Norms are not what they are initialised to, and random embeddings are not tied, else one token is repeated."""
    sizes = {"vocab_size": 40, "num_heads": 8, "num_kv_heads": 4}  # divide over eight devices
    config, target, params = tiny_transformer(**sizes, **{**FAMILIES[family], "tie_embeddings": False})
    rng = np.random.default_rng(0)

    def spread(weight: jax.Array) -> jax.Array:
        return weight + jnp.asarray(rng.uniform(-0.5, 0.5, weight.shape), jnp.float32) if weight.ndim == 1 else weight

    return config, target, jax.tree.map(spread, params)


def head_of(family: str, kind: str) -> tuple[Any, HeadParams]:
    """An untrained head in the sizes of the target."""
    config, target, _ = model(family)
    head = make_head(head_config(config, kind), target)
    return head, HeadParams(weights=nn.unbox(head.init(jax.random.key(2))))


def drafting(family: str, name: str) -> tuple[Drafter, Params]:
    """A drafter with its weights: a chain of the target itself, a little off, or trees of a head."""
    _, target, params = model(family)
    if name == "chain":
        return make_chain(target, 3), with_noise(params)
    head, weights = head_of(family, name)
    return make_eagle3(head, 10, 2, 3), weights


@functools.cache
def wanted(family: str, temperature: float) -> list[list[int]]:
    """What the target alone writes, read anew for every token."""
    _, target, params = model(family)
    options = {"temperature": temperature, "max_new_tokens": NEW}
    return [plain(target, params, prompt, sequence=row, **options) for row, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("name", ["chain", "eagle3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_same_tokens_as_plain_decoding(family: str, name: str) -> None:
    """Through the cache, at T = 0 and T = 1, whether the kernel is there or not."""
    _, target, params = model(family)
    writer = Generator(target, params, *drafting(family, name), **OPTIONS)
    for temperature in (0.0, 1.0):
        actual = writer.generate(PROMPTS, temperature=temperature, max_new_tokens=NEW)
        assert actual.tokens == wanted(family, temperature)
        assert len({token for row in actual.tokens for token in row}) > 12, "too easy"
        assert actual.accepted[:, 1:].sum() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_draft_that_is_the_target_is_accepted_in_full(family: str) -> None:
    _, target, params = model(family)
    writer = Generator(target, params, make_chain(target, 3), params, **OPTIONS)
    actual = writer.generate(PROMPTS, temperature=1.0, max_new_tokens=1 + 5 * 4)
    assert actual.tau == 4.0


@pytest.mark.parametrize("family", FAMILIES)
def test_its_own_first_layers_draft(family: str) -> None:
    """Windows and layers without experts go along."""
    config, target, params = model(family)
    draft, weights = truncate_layers(config, params, 2)
    writer = Generator(target, params, make_chain(make_target(draft), 3), weights, **OPTIONS)
    actual = writer.generate(PROMPTS, max_new_tokens=NEW)
    assert actual.tokens == wanted(family, 0.0)


@pytest.mark.parametrize(("family", "text"), [("gemma3", "4x2"), ("qwen3_moe", "4x2"), ("qwen3_moe", "1x8")])
def test_on_a_mesh(family: str, text: str) -> None:
    """Rows over `data`, heads and the width of each expert over `model`; greedy and sampled rows in one batch."""
    config, target, params = model(family)
    mesh = mesh_of(text)
    placed = sharding.place(params, sharding.target_shardings(mesh, config))
    chain, weights = drafting(family, "chain")
    one = Generator(target, params, chain, weights, **OPTIONS).generate(PROMPTS, **SAMPLING)
    actual = Generator(target, placed, chain, weights, mesh=mesh, **OPTIONS).generate(PROMPTS, **SAMPLING)
    assert actual.tokens == one.tokens
    np.testing.assert_array_equal(actual.accepted, one.accepted)


def test_experts_are_split_by_width() -> None:
    """All of them on each device, a part of each."""
    config, _, _ = model("qwen3_moe")
    layer = sharding.target_shardings(mesh_of("1x8"), config)["layers_0"]["mlp"]
    assert {name: place.spec for name, place in layer["experts"].items()} == {
        "gate_proj": PartitionSpec(None, None, "model"),
        "up_proj": PartitionSpec(None, None, "model"),
        "down_proj": PartitionSpec(None, "model"),
    }
    assert layer["gate"]["kernel"].is_fully_replicated


def test_experts_send_a_sum_a_layer() -> None:
    """Split over devices, two sums a layer as with MLPs, and never rows or weights; rows of a batch send nothing."""
    config, target, params = model("qwen3_moe")

    def sent(text: str) -> list[tuple[str, int, str]]:
        placed = sharding.place(params, sharding.target_shardings(mesh_of(text), config))
        return list(sent_by(Generator(target, placed, make_vanilla(), mesh=mesh_of(text), **OPTIONS)))

    split, width = sent("1x8"), len(PROMPTS) * config.width
    sums = [place for kind, size, place in split if kind == "all-reduce" and size == width]
    assert len([place for place in sums if re.search("(o_proj|down_proj|mlp)", place)]) == 2 * config.num_layers
    assert len(sums) == 2 * config.num_layers + 1
    assert max(size for _, size, _ in split) <= width
    assert [one for one in sent("8x1") if one[1] > 3] == []


@pytest.mark.skipif(not build.available(), reason="the CPU kernel is switched off or has no compiler")
@pytest.mark.parametrize("family", FAMILIES)
def test_packing(family: str) -> None:
    """Matrices of two axes are packed, experts stay as they are; back are the same weights."""
    _, target, params = model(family)
    packed = pack(params)
    assert is_packed(packed)
    target.check(packed)
    again = unpack(packed)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    if family == "qwen3_moe":
        assert packed["layers_0"]["mlp"]["experts"] == params["layers_0"]["mlp"]["experts"]
        assert is_packed(packed["layers_0"]["mlp"]["gate"])


def test_a_head_reads_embeddings_as_they_are_stored() -> None:
    """Not scaled as Gemma's own first layer reads them: engines share the table, and the factor is the target's."""
    config, target, params = model("gemma3")
    assert config.embed_scale != 1.0
    tokens = jnp.arange(7)
    np.testing.assert_array_equal(target.embed(params, tokens), params["embed_tokens"][:7])
    head, weights = head_of("gemma3", "eagle")
    own = weights.replace(embedding=params["embed_tokens"])
    np.testing.assert_array_equal(head.embed(own, params, tokens), head.embed(weights, params, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layer_of_a_head_is_llama_s(family: str) -> None:
    """Of a new one and of one with a copied layer, which is refused by name."""
    config, target, params = model(family)
    new = head_config(config, "eagle3")
    rope = {"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling, "num_layers": 1}
    assert new.layer == tiny_transformer(vocab_size=40, num_heads=8, num_kv_heads=4, **rope)[0]
    head = make_head(new, target)
    part = "norms after attention and MLP" if config.sandwich_norms else "experts"
    with pytest.raises(ValueError, match=f"layer -1 of the target has {part}, the head's layer has none"):
        initial_weights(head, config, params, 0, layer=-1)
    first = initial_weights(head, config, params, 0)
    norm = params["norm"]["weight"]
    np.testing.assert_allclose(first["norm"]["weight"], norm + 1.0 if config.zero_centered_norms else norm)
