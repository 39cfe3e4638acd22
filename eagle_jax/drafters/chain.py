"""Speculative sampling with a small draft model: a chain of its own next tokens.

Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318. The draft model is any `Target` with the target's
vocabulary. It keeps a cache of its own, in which a token's row depends on the text alone, so rows computed for guesses
stay right when the guesses are accepted.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from eagle_jax.cache import commit
from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.tree import chain_tree, root_of
from eagle_jax.types import DraftTree, KVCache, Params, Target


def _causal(batch: int, size: int) -> jax.Array:
    return jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool)), (batch, size, size))


@functools.cache
def make_chain(draft: Target, num_drafted: int = 5) -> Drafter:
    """Chain of `num_drafted` tokens from the draft model; its weights are the drafter's params.

    Raises:
      ValueError: `num_drafted` below 1.
    """
    if num_drafted < 1:
        raise ValueError(f"a chain needs at least 1 drafted token, got {num_drafted}")

    def step(
        params: Params, cache: KVCache, tokens: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        """Feed tokens i32[B, T], keep the first `count` i32[B] rows; logits f32[B, V] behind the last token."""
        batch, size = tokens.shape
        positions = cache.length[:, None] + jnp.arange(size)[None, :]
        output = draft.forward(params, tokens, positions, cache, _causal(batch, size))
        path = jnp.broadcast_to(jnp.arange(size), (batch, size))
        return draft.unembed(params, output.hidden[:, -1]), commit(cache, output.keys, output.values, path, count)

    def propose(
        params: Params, target_params: Params, state: KVCache, text: jax.Array, length: jax.Array, noise: jax.Array
    ) -> tuple[DraftTree, KVCache]:
        del target_params
        root = root_of(text, length)
        # The row of the last accepted token may be missing (the chain ended with it), so it is always fed once more.
        before = root_of(text, length - 1)
        cache = state.replace(length=length - 1)

        def pick(logits: jax.Array, depth: jax.Array) -> tuple[jax.Array, jax.Array]:
            scores = logits + noise[:, depth]
            token = scores.argmax(-1).astype(jnp.int32)
            log_value = jnp.take_along_axis(jax.nn.log_softmax(scores), token[:, None], axis=1)[:, 0]
            return token, log_value

        def extend(
            carry: tuple[KVCache, jax.Array], depth: jax.Array
        ) -> tuple[tuple[KVCache, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
            cache, token = carry
            logits, cache = step(params, cache, token[:, None], jnp.ones_like(length))
            token, log_value = pick(logits, depth)
            return (cache, token), (token, log_value, logits)

        logits, cache = step(params, cache, jnp.stack([before, root], axis=1), jnp.full_like(length, 2))
        token, log_value = pick(logits, jnp.int32(0))
        (cache, _), later = lax.scan(extend, (cache, token), jnp.arange(1, num_drafted))
        first = (token, log_value, logits)
        tokens, steps, all_logits = (
            jnp.concatenate([one[:, None], jnp.moveaxis(rest, 0, 1)], axis=1)
            for one, rest in zip(first, later, strict=True)
        )
        tree = chain_tree(root, tokens, jnp.full_like(length, num_drafted), jnp.cumsum(steps, axis=1))
        return tree.replace(draft_logits=jnp.pad(all_logits, ((0, 0), (0, 1), (0, 0)))), cache

    def observe(params: Params, target_params: Params, state: KVCache, observation: Observation) -> DrafterState:
        del target_params
        if observation.tree is not None:
            return state  # `propose` sets the length itself, from the text
        batch, size = observation.path.shape
        positions = observation.length[:, None] + jnp.arange(size)[None, :]
        tokens = jnp.take_along_axis(observation.text, positions, axis=1, mode="clip")
        cache = state.replace(length=observation.length)
        _, cache = step(params, cache, tokens, observation.count)
        return cache

    return Drafter(
        name="chain",
        nodes=num_drafted + 1,
        max_depth=num_drafted,
        init=draft.init_cache,
        propose=propose,
        observe=observe,
        draws=True,
    )
