"""Draft heads against the official code: one pass over known features, then a chain of their own guesses."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.models.attention import Prefix, attend
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.types import Params
from tests import golden
from tests.tolerance import assert_close, head_terms


class Reading(NamedTuple):
    """What a pass returns."""

    output: jax.Array  # [1, T, E]
    logits: jax.Array  # [1, T, U]
    keys: jax.Array  # [1, T, K, D]
    values: jax.Array  # [1, T, K, D]


@functools.partial(jax.jit, static_argnums=0, compiler_options=golden.QUICK)
def read(
    head: Head, params: HeadParams, target_params: Params, prefix: Prefix, states: jax.Array, tokens: jax.Array
) -> Reading:
    """A causal pass over states [1, T, E] and tokens i32[1, T] after the prefix."""
    size = tokens.shape[1]
    slots = prefix.length[:, None] + jnp.arange(size)[None, :]
    mask = jnp.tril(jnp.ones((1, size, size), bool))

    def attend_fn(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        return attend(queries, keys, values, mask, prefix, slots)

    output, keys, values = head.step(params, states, head.embed(params, target_params, tokens), slots, attend_fn)
    return Reading(output, head.logits(params, target_params, output), keys, values)


@pytest.mark.parametrize("name", golden.HEADS)
def test_pass_and_chain(name: str) -> None:
    """The chain's passes are as wide as the first one, so that one program does; only their first row counts."""
    head, params = golden.head(name)
    _, _, target_params = golden.target(golden.seed_of(name))
    results = golden.results(f"{name}/forward.npz")
    tokens = results["input_ids"][:, 1:].astype(np.int32)
    size, steps = tokens.shape[1], len(results["chain_tokens"])

    def check(actual: jax.Array | np.ndarray, wanted: np.ndarray, passes: int) -> None:
        assert_close(actual, wanted, head_terms(head.config, size + steps, passes))

    states = head.fuse(params, jnp.asarray(results["features"]))
    if head.config.kind == "eagle3":
        check(states, results["fc_out"], 0)
    keys, values = np.zeros((2, 1, size + steps, head.config.layer.num_kv_heads, head.config.layer.head_dim), "f")

    def go_on(length: int, count: int, states: jax.Array, tokens: np.ndarray) -> Reading:
        result = read(head, params, target_params, Prefix(keys, values, np.array([length])), states, tokens)
        keys[:, length : length + count] = result.keys[:, :count]
        values[:, length : length + count] = result.values[:, :count]
        return result

    first = go_on(0, size, states, tokens)
    check(first.output, results["out_hidden"], 1)
    check(first.logits, results["logits"], 1)
    check(keys[:, :size].swapaxes(1, 2), results["cache_k"], 1)
    check(values[:, :size].swapaxes(1, 2), results["cache_v"], 1)
    state, logits = first.output[:, -1:], first.logits[0, -1]
    for step, token in enumerate(results["chain_tokens"]):
        best = int(logits.argmax())
        assert token == (best if params.target_ids is None else params.target_ids[best])
        result = go_on(size + step, 1, jnp.tile(state, (1, size, 1)), np.full_like(tokens, token))
        state, logits = result.output[:, :1], result.logits[0, 0]
        check(state[0, 0], results["chain_hidden"][step], step + 2)
        check(logits, results["chain_logits"][step], step + 2)
    check(keys.swapaxes(1, 2), results["chain_cache_k"], steps + 1)
    check(values.swapaxes(1, 2), results["chain_cache_v"], steps + 1)


def test_every_kind_of_head_is_there() -> None:
    """Both kinds, all biases, a draft vocabulary, another width, three RoPE bases."""
    configs = [golden.head(name)[0].config for name in golden.HEADS]
    assert len(configs) == 14
    assert {(config.kind, config.fc_bias) for config in configs} == {
        ("eagle", True),
        ("eagle", False),
        ("eagle3", False),
    }
    assert {config.layer.qkv_bias for config in configs} == {True, False}
    assert {golden.head(name)[1].target_ids is None for name in golden.HEADS} == {True, False}
    assert sum(golden.head(name)[1].embedding is not None for name in golden.HEADS) == 1
    assert {config.layer.rope_theta for config in configs} == {1e4, 5e5, 1e6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda params: params.replace(weights={}), r"weights of another model: fc\S* is missing there"),
        (lambda params: params.replace(lm_head=params.lm_head[:, 1:]), "reads 31 features, its states have 32"),
        (lambda params: params.replace(target_ids=params.target_ids[1:]), r"names \d+ tokens, the head's LM head has"),
        (lambda params: params.replace(lm_head=None), "the head's LM head has no rows"),
    ],
)
def test_weights_of_another_head(change: Callable[[HeadParams], HeadParams], message: str) -> None:
    head, params = golden.head("seed0/eagle3_reduced")
    head.check(params)
    with pytest.raises(ValueError, match=message):
        head.check(change(params))


def test_weights_of_another_kind() -> None:
    (head, params), (_, other) = golden.head("seed0/eagle3_reduced"), golden.head("seed0/eagle1_bias")
    with pytest.raises(ValueError, match="weights of another model: fc"):
        head.check(other)
    with pytest.raises(TypeError, match="weights of a draft head are HeadParams, got dict"):
        head.check(params.weights)
