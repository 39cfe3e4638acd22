"""Forward passes and token choice of a separate, smaller draft model: what the chain and Ouroboros share.

It has its own KV cache. An entry depends only on the text up to its token, so entries computed for drafted tokens stay
valid when these are accepted.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from eagle_jax.cache import commit, count_after
from eagle_jax.drafters.base import Observation
from eagle_jax.models.config import check_target_ids, plain_shapes
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.models.layers import in_full_precision, score_rows
from eagle_jax.sampling import first_largest
from eagle_jax.types import KVCache, Params, Target, TargetOutput


@functools.cache
def with_vocabulary(draft: Target, vocab_size: int) -> Target:
    """The draft model with scores for `vocab_size` tokens: models of one tokenizer may have padded it differently."""
    if draft.vocab_size == vocab_size:
        return draft

    def unembed(params: Params, hidden: jax.Array) -> jax.Array:
        scores = draft.unembed(params, hidden)[..., :vocab_size]
        missing = vocab_size - scores.shape[-1]
        return jnp.pad(scores, [(0, 0)] * (scores.ndim - 1) + [(0, missing)], constant_values=-jnp.inf)

    return draft._replace(unembed=unembed, vocab_size=vocab_size)


@functools.cache
def on_draft_vocabulary(draft: Target) -> Target:
    """The draft model with weights that may name a draft vocabulary, as those of a head do: the others score -inf.

    Most of a small model is its LM head, and a pass over one token reads all of it. The weights are `HeadParams`:
    `weights` are the model's own; without `target_ids` it scores all tokens.
    """

    def forward(params: HeadParams, *rest: Any) -> TargetOutput:
        return draft.forward(params.weights, *rest)

    def embed(params: HeadParams, tokens: jax.Array) -> jax.Array:
        return draft.embed(params.weights, tokens)

    def unembed(params: HeadParams, hidden: jax.Array) -> jax.Array:
        if params.lm_head is None:
            return draft.unembed(params.weights, hidden)
        scores = score_rows(params.lm_head, hidden)
        nothing = jnp.full((*scores.shape[:-1], draft.vocab_size), -jnp.inf)
        return nothing.at[..., params.target_ids].set(scores, unique_indices=True)

    def check(params: HeadParams) -> None:
        if not isinstance(params, HeadParams):
            raise TypeError(f"weights on a draft vocabulary are HeadParams, got {type(params).__name__}")
        draft.check(params.weights)
        params = plain_shapes(params)
        if params.lm_head is not None and params.target_ids is None:
            raise ValueError(f"an LM head of {len(params.lm_head)} rows needs target_ids, the tokens that they score")
        check_target_ids(params.lm_head, params.target_ids)

    return draft._replace(forward=forward, embed=embed, unembed=in_full_precision(unembed), check=check)


class Step(NamedTuple):
    """One drafted token of each row."""

    token: jax.Array  # i32[B]
    log_value: jax.Array  # f32[B], the draft's log-confidence in it
    logits: jax.Array  # f32[B, V], what it was chosen from


def read_tokens(
    draft: Target, params: Params, cache: KVCache, tokens: jax.Array, count: jax.Array, noise: jax.Array
) -> tuple[Step, KVCache]:
    """Feed the first `count` i32[B] of tokens i32[B, T], choose the token after the last of them."""
    batch, size = tokens.shape
    path = jnp.broadcast_to(jnp.arange(size), (batch, size))
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool)), (batch, size, size))
    output = draft.forward(params, tokens, cache.length[:, None] + path, cache, causal)
    last = output.hidden[jnp.arange(batch), jnp.maximum(count - 1, 0)]
    logits = draft.unembed(params, last)
    scores = logits + noise
    token = first_largest(scores)
    log_value = jnp.take_along_axis(jax.nn.log_softmax(scores), token[:, None], axis=1)[:, 0]
    cache = commit(cache, output.keys, output.values, path, count_after(count, token >= 0))
    return Step(token, log_value, logits), cache


def read_prompt(draft: Target, params: Params, cache: KVCache, observation: Observation) -> KVCache:
    """The cache with the tokens that joined the text."""
    positions = observation.length[:, None] + observation.path
    tokens = jnp.take_along_axis(observation.text, positions, axis=1, mode="clip")
    cache = dataclasses.replace(cache, length=observation.length)
    return read_tokens(draft, params, cache, tokens, observation.count, jnp.zeros(()))[1]
