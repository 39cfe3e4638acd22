"""Plain ways to run a target in tests: a whole text at once, and greedy decoding that reads it anew for each token."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.types import KVCache, Params, Target, TargetOutput


@functools.partial(jax.jit, static_argnums=0)
def whole_pass(target: Target, params: Params, tokens: jax.Array) -> tuple[TargetOutput, jax.Array]:
    """A causal pass over i32[B, T] from an empty cache: its output, and the logits [B, T, V]."""
    batch, length = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
    output = target.forward(params, tokens, positions, target.init_cache(batch, 1), mask)
    return output, target.unembed(params, output.hidden)


@functools.partial(jax.jit, static_argnums=0)
def cached_pass(
    target: Target, params: Params, tokens: jax.Array, positions: jax.Array, cache: KVCache, mask: jax.Array
) -> tuple[TargetOutput, jax.Array]:
    """`forward` and the logits [B, T, V]."""
    output = target.forward(params, tokens, positions, cache, mask)
    return output, target.unembed(params, output.hidden)


def greedy(target: Target, params: Params, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The next `num_tokens` greedy tokens; later positions are padding, which a causal pass does not see."""
    tokens = np.zeros((1, len(prompt) + num_tokens), np.int32)
    tokens[0, : len(prompt)] = prompt
    for end in range(len(prompt), tokens.shape[1]):
        _, logits = whole_pass(target, params, jnp.asarray(tokens))
        tokens[0, end] = int(logits[0, end - 1].argmax())
    return tokens[0, len(prompt) :].tolist()
