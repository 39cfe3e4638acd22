"""Speculative sampling with a small draft model: a chain of its own next tokens.

Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318. The draft model is any `Target` with the target's
vocabulary (`draft_model.py`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.drafters.draft_model import Step, read_prompt, read_tokens
from eagle_jax.tree import chain_tree, root_of
from eagle_jax.types import DraftTree, KVCache, Params, Target


@functools.cache
def make_chain(draft: Target, num_drafted: int = 5) -> Drafter:
    """Chain of `num_drafted` tokens from the draft model; its weights are the drafter's params.

    The default is between the published lengths, 4 (Chen et al.) and up to 7 (Leviathan et al.).

    Raises:
      ValueError: `num_drafted` below 1.
    """
    if num_drafted < 1:
        raise ValueError(f"a chain needs at least 1 drafted token, got {num_drafted}")

    def propose(
        params: Params, target_params: Params, state: KVCache, text: jax.Array, length: jax.Array, noise: jax.Array
    ) -> tuple[DraftTree, KVCache]:
        del target_params

        def extend(carry: tuple[KVCache, jax.Array], noise: jax.Array) -> tuple[tuple[KVCache, jax.Array], Step]:
            cache, token = carry
            drafted, cache = read_tokens(draft, params, cache, token[:, None], jnp.ones_like(length), noise)
            return (cache, drafted.token), drafted

        root = root_of(text, length)
        # The cache may lack the last accepted token (the chain ended with it), so it is always fed once more.
        fed = jnp.stack([root_of(text, length - 1), root], axis=1)
        by_depth = jnp.moveaxis(noise, 1, 0)
        cache = dataclasses.replace(state, length=length - 1)
        first, cache = read_tokens(draft, params, cache, fed, jnp.full_like(length, 2), by_depth[0])
        (cache, _), later = lax.scan(extend, (cache, first.token), by_depth[1:num_drafted])
        drafted = jax.tree.map(
            lambda one, rest: jnp.concatenate([one[:, None], jnp.moveaxis(rest, 0, 1)], axis=1), first, later
        )
        log_values = jnp.cumsum(drafted.log_value, axis=1)
        tree = chain_tree(root, drafted.token, jnp.full_like(length, num_drafted), log_values)
        draft_logits = jnp.pad(drafted.logits, ((0, 0), (0, 1), (0, 0)))
        return dataclasses.replace(tree, draft_logits=draft_logits), cache

    def observe(params: Params, target_params: Params, state: KVCache, observation: Observation) -> DrafterState:
        del target_params
        if observation.tree is not None:
            return state  # `propose` has the rows already, and takes the length from the text
        return read_prompt(draft, params, state, observation)

    return Drafter(
        name="chain",
        nodes=num_drafted + 1,
        max_depth=num_drafted,
        init=draft.init_cache,
        propose=propose,
        observe=observe,
        needs="the weights of its draft model",
        check=draft.check,
        draws=True,
    )
