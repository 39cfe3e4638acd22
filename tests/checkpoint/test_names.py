"""The table of tensor names: both directions, and the layouts spelt out by hand once."""

import gguf
import numpy as np
import pytest

from eagle_jax.checkpoint.names import gguf_name, lookup, target_tensors
from eagle_jax.testing import tiny_transformer

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


def test_there_and_back() -> None:
    config, _, _ = tiny_transformer(**EVERYTHING)
    rng = np.random.default_rng(0)
    for spec in target_tensors(config).values():
        stored = rng.standard_normal(spec.stored_shape)
        np.testing.assert_array_equal(spec.to_stored(spec.to_tree(stored)), stored)


@pytest.mark.parametrize("overrides", [{}, EVERYTHING, {"tie_embeddings": True}])
def test_paths_cover_the_tree(overrides: dict[str, bool]) -> None:
    config, _, params = tiny_transformer(**overrides)
    specs = target_tensors(config)
    assert len({spec.path for spec in specs.values()}) == len(specs)
    for spec in specs.values():
        assert lookup(params, spec.path).shape == spec.shape


@pytest.mark.parametrize("architecture", [gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.QWEN2, gguf.MODEL_ARCH.QWEN3])
def test_gguf_names_are_those_of_the_gguf_package(architecture: gguf.MODEL_ARCH) -> None:
    config, _, _ = tiny_transformer(qk_norm=architecture is gguf.MODEL_ARCH.QWEN3)
    known = gguf.get_tensor_name_map(architecture, config.num_layers)
    for name in target_tensors(config):
        assert gguf_name(name) == known.get_name(name, try_suffixes=(".weight", ".bias"))
