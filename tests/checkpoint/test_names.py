"""The table of tensor names: both directions, and the layouts spelt out by hand once."""

from typing import Any

import gguf
import jax
import numpy as np
import pytest

from eagle_jax.checkpoint.names import gguf_name, lookup, target_tensors
from eagle_jax.testing import tiny_transformer
from tests.models.families import FAMILIES

EVERYTHING = {"qkv_bias": True, "output_bias": True, "mlp_bias": True, "qk_norm": True}


def test_kernel_layouts() -> None:
    config, _, _ = tiny_transformer()
    specs = target_tensors(config)
    rng = np.random.default_rng(0)
    query = rng.standard_normal((32, 32))  # [H*D, E]
    kernel = specs["model.layers.1.self_attn.q_proj.weight"].to_tree(query)
    assert kernel.shape == (32, 4, 8)
    np.testing.assert_array_equal(kernel[:, 2, 5], query[2 * 8 + 5])
    output = rng.standard_normal((32, 32))  # [E, H*D]
    kernel = specs["model.layers.1.self_attn.o_proj.weight"].to_tree(output)
    np.testing.assert_array_equal(kernel[2, 5], output[:, 2 * 8 + 5])
    up = rng.standard_normal((64, 32))  # [F, E]
    np.testing.assert_array_equal(specs["model.layers.0.mlp.up_proj.weight"].to_tree(up), up.T)
    specs = target_tensors(tiny_transformer(**FAMILIES["qwen3_moe"])[0])
    stacked = rng.standard_normal((8, 24, 32))  # [X, F, E]
    np.testing.assert_array_equal(
        specs["model.layers.0.mlp.experts.5.down_proj.weight"].to_stored(stacked), stacked[5].T
    )


def test_there_and_back() -> None:
    config, _, _ = tiny_transformer(**EVERYTHING)
    rng = np.random.default_rng(0)
    for spec in target_tensors(config).values():
        stored = rng.standard_normal(spec.stored_shape)
        np.testing.assert_array_equal(spec.to_stored(spec.to_tree(stored)), stored)


@pytest.mark.parametrize("overrides", [{}, EVERYTHING, {"tie_embeddings": True}, *FAMILIES.values()])
def test_paths_cover_the_tree(overrides: dict[str, Any]) -> None:
    config, _, params = tiny_transformer(**overrides)
    specs = target_tensors(config)
    assert len({(spec.path, spec.place) for spec in specs.values()}) == len(specs)
    for spec in specs.values():
        leaf = lookup(params, spec.path)
        assert (leaf if spec.place is None else leaf[spec.place]).shape == spec.shape
    assert sum(np.prod(spec.shape) for spec in specs.values()) == sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("architecture", [gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.QWEN2, gguf.MODEL_ARCH.QWEN3])
def test_gguf_names_are_those_of_the_gguf_package(architecture: gguf.MODEL_ARCH) -> None:
    config, _, _ = tiny_transformer(qk_norm=architecture is gguf.MODEL_ARCH.QWEN3)
    known = gguf.get_tensor_name_map(architecture, config.num_layers)
    for name in target_tensors(config):
        assert gguf_name(name) == known.get_name(name, try_suffixes=(".weight", ".bias"))
