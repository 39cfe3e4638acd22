"""The transformer against the golden results of the official EAGLE code and of transformers."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from eagle_jax.cache import commit
from eagle_jax.checkpoint.hf import load_config, load_params
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.transformer import init_params, make_target
from eagle_jax.types import Params
from tests.models.passes import cached_pass, greedy, whole_pass
from tests.tolerance import assert_close, pass_terms

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
SEEDS = (0, 1, 2)
LENGTH = 22
"""Of the longest text: a prompt of 12 tokens and a tree of 10."""


def load(seed: int, family: str) -> tuple[ModelConfig, Params, dict[str, np.ndarray]]:
    folder = GOLDEN / f"seed{seed}" / f"target_{family}"
    config = load_config(folder)
    with np.load(folder / "io.npz") as stored:
        return config, load_params(folder, config), dict(stored)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("seed", SEEDS)
def test_whole_pass(seed: int, family: str) -> None:
    config, params, golden = load(seed, family)
    config = dataclasses.replace(config, tap_layers=tuple(range(config.num_layers)))
    output, logits = whole_pass(make_target(config), params, jnp.asarray(golden["input_ids"], jnp.int32))
    assert_close(logits, golden["logits"], pass_terms(config, LENGTH))
    assert_close(output.hidden, golden["last_hidden"], pass_terms(config, LENGTH))
    wanted = golden["layer_inputs"].reshape(config.num_layers, -1, *output.hidden.shape[1:])
    inputs = jnp.stack(jnp.split(output.taps, config.num_layers, axis=-1))[:, : wanted.shape[1]]
    assert_close(inputs, wanted, pass_terms(config, LENGTH))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("seed", SEEDS)
def test_greedy(seed: int, family: str) -> None:
    config, params, golden = load(seed, family)
    prompt, answer = golden["greedy_ids"][0, :18].tolist(), golden["greedy_ids"][0, 18:].tolist()
    assert prompt == golden["input_ids"][0].tolist()
    assert greedy(make_target(config), params, prompt, len(answer)) == answer


@pytest.mark.parametrize("seed", SEEDS)
def test_default_taps(seed: int) -> None:
    config, params, golden = load(seed, "llama")
    assert config.taps == tuple(golden["tap_indices"])
    output, _ = whole_pass(make_target(config), params, jnp.asarray(golden["input_ids"], jnp.int32))
    assert_close(output.taps, golden["taps"], pass_terms(config, LENGTH))


@pytest.mark.parametrize("capacity", [12, 40])
@pytest.mark.parametrize("prefix_block", [5, 256])
@pytest.mark.parametrize("seed", SEEDS)
def test_tree_on_cached_prompt(seed: int, prefix_block: int, capacity: int) -> None:
    config, params, golden = load(seed, "llama")
    target = make_target(config, prefix_block=prefix_block)
    prompt = jnp.asarray(golden["tree_prompt_ids"], jnp.int32)
    first, _ = whole_pass(target, params, prompt)
    path = jnp.arange(12)[None]
    cache = commit(target.init_cache(1, capacity), first.keys, first.values, path, jnp.array([12]))
    # What lies beyond the length must not matter.
    dirty = jax.tree.map(lambda a: a.at[:, 12:].set(1e3) if a.ndim == 4 else a, cache)
    depths = jnp.asarray(golden["tree_position_ids"], jnp.int32)
    tokens = jnp.asarray(golden["tree_tokens"], jnp.int32)
    mask = jnp.asarray(golden["tree_mask"])[None]
    output, logits = cached_pass(target, params, tokens, 12 + depths[None], dirty, mask)
    assert_close(logits, golden["tree_logits"], pass_terms(config, LENGTH))
    assert_close(output.hidden, golden["tree_last_hidden"], pass_terms(config, LENGTH))
    assert_close(output.taps, golden["tree_taps"], pass_terms(config, LENGTH))


@pytest.mark.parametrize("family", ["qwen3", "mistral"])  # seed 1: head size of its own, and a window of 8
def test_cached_pass_equals_whole_pass(family: str) -> None:
    config, params, golden = load(1, family)
    target = make_target(config, prefix_block=5)
    tokens = jnp.asarray(golden["input_ids"], jnp.int32)
    cache = target.init_cache(2, 24)
    logits = []
    for start, stop in ((0, 7), (7, 8), (8, 18)):
        length = stop - start
        mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (2, length, length))
        positions = jnp.broadcast_to(jnp.arange(start, stop), (2, length))
        output, actual = cached_pass(target, params, tokens[:, start:stop], positions, cache, mask)
        logits.append(actual)
        path = jnp.broadcast_to(jnp.arange(length), (2, length))
        cache = commit(cache, output.keys, output.values, path, jnp.full((2,), length))
    assert_close(jnp.concatenate(logits, axis=1), golden["logits"], pass_terms(config, LENGTH))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("seed", SEEDS)
def test_loaded_tree_is_the_module_tree(seed: int, family: str) -> None:
    config, params, _ = load(seed, family)
    wanted = nn.unbox(jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0)))
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, wanted)
