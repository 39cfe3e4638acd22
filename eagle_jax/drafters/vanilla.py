"""Plain decoding: the drafter that proposes nothing, so every round is one target pass over the root."""

import functools

import jax
import jax.numpy as jnp

from eagle_jax.drafters.base import Drafter, DrafterState, forget, stateless
from eagle_jax.tree import chain_tree, root_of
from eagle_jax.types import DraftTree, Params


def _propose(
    params: Params, target_params: Params, state: DrafterState, text: jax.Array, length: jax.Array, noise: jax.Array
) -> tuple[DraftTree, DrafterState]:
    del params, target_params, noise
    nothing = jnp.zeros((text.shape[0], 0), jnp.int32)
    return chain_tree(root_of(text, length), nothing, jnp.zeros_like(length), nothing.astype(jnp.float32)), state


@functools.cache
def make_vanilla() -> Drafter:
    """One node, depth 0: tau is exactly 1."""
    return Drafter(name="vanilla", nodes=1, max_depth=0, init=stateless, propose=_propose, observe=forget)
