"""Drafters made for tests: one that knows the answer, and any drafter with a switch for its proposals."""

import functools

import jax
import jax.numpy as jnp

from eagle_jax.drafters.base import Drafter, DrafterState, forget, stateless
from eagle_jax.tree import root_of
from eagle_jax.types import NO_PARENT, DraftTree, Params


def with_noise(params: Params, share: float = 0.1) -> Params:
    """Weights with noise of a `share` of their spread: of a draft model that is often right."""
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(params))))
    return jax.tree.map(lambda w: w + share * w.std() * jax.random.normal(next(keys), w.shape), params)


@functools.cache
def make_oracle(vocab_size: int, max_depth: int, width: int = 1, unused: int = 0) -> Drafter:
    r"""A drafter that knows the text and how far to be right: its params are (text i32[B, S], reach i32[B]).

    Each level has `width` siblings, the last of them with the true token (or, from depth `reach` + 1 on, with a wrong
    one like its siblings) and the next level below it; `unused` slots come last. So a round accepts exactly
    `reach` tokens, along a path that is not contiguous where `width` is above 1.

        width 2, max_depth 2       0
                                  / \
                             wrong   x1
                                    /  \
                               wrong    x2
    """
    nodes = 1 + max_depth * width + unused

    def propose(
        params: Params, target_params: Params, state: DrafterState, text: jax.Array, length: jax.Array, noise: jax.Array
    ) -> tuple[DraftTree, DrafterState]:
        del target_params, noise
        answer, reach = params
        parents, tokens = [jnp.full_like(length, NO_PARENT)], [root_of(text, length)]
        for level in range(1, max_depth + 1):
            right = root_of(answer, jnp.minimum(length + level, answer.shape[1] - 1))
            for sibling in range(width):
                is_right = (sibling == width - 1) & (level <= reach)
                tokens.append(jnp.where(is_right, right, (right + 1 + sibling) % vocab_size))
                parents.append(jnp.full_like(length, (level - 1) * width))
        candidate = [jnp.ones_like(length, bool)] * len(tokens) + [jnp.zeros_like(length, bool)] * unused
        tree = DraftTree(
            tokens=jnp.stack(tokens + tokens[:1] * unused, axis=1),
            parents=jnp.stack(parents + parents[:1] * unused, axis=1),
            candidate=jnp.stack(candidate, axis=1),
            log_values=jnp.zeros((length.shape[0], nodes)),
            max_depth=max_depth,
        )
        return tree, state

    return Drafter("oracle", nodes, max_depth, init=stateless, propose=propose, observe=forget)


@functools.cache
def gated(drafter: Drafter) -> Drafter:
    """The same drafter behind a switch: its params become (open bool[], params); shut, no node may be accepted."""

    def propose(params: Params, *rest: object) -> tuple[DraftTree, DrafterState]:
        is_open, inner = params
        tree, state = drafter.propose(inner, *rest)
        return tree.replace(candidate=tree.candidate.at[:, 1:].set(tree.candidate[:, 1:] & is_open)), state

    def observe(params: Params, *rest: object) -> DrafterState:
        return drafter.observe(params[1], *rest)

    return drafter._replace(propose=propose, observe=observe, check=lambda params: drafter.check(params[1]))
