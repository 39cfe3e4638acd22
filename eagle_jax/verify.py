"""Verification: which drafted tokens are accepted, and the token after them.

Two acceptance rules. `match` (default): given the noise, the target's choice after each node is deterministic; accept
the child that equals it (DESIGN 2). `residual`: accept with min(1, p/q), else continue with the residual distribution
(Leviathan et al., arXiv 2211.17192, section 2.3; for siblings SpecInfer, arXiv 2305.09781, section 4.3); q = 1 where
the draft is not random, as in the EAGLE-2 code. Knows trees and distributions, no drafter.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from eagle_jax import sampling as noises
from eagle_jax.tree import ancestors, path_to
from eagle_jax.types import NO_PARENT, DraftTree, Sampling, Verdict


def match(tree: DraftTree, choice: jax.Array) -> Verdict:
    """Accept the longest path along which every drafted token is the target's own choice.

    Args:
      tree: the draft.
      choice: i32[B, N], the token that the target chooses after each node.

    Computed without walking down: a node is accepted when all nodes on its path but the root matched. Candidate
    siblings differ in token, so the accepted nodes form one path, whose deepest node is the end of the accepted text.
    """
    seen = ancestors(tree.parents, tree.max_depth)
    parent = jnp.maximum(tree.parents, 0)
    is_root = jnp.arange(tree.tokens.shape[1])[None, :] == 0
    matched = (tree.tokens == jnp.take_along_axis(choice, parent, axis=1)) & (tree.parents != NO_PARENT)
    matched = (matched & tree.candidate) | is_root
    accepted = (matched[:, None, :] | ~seen).all(-1) & tree.candidate
    depth = jnp.where(accepted, seen.sum(-1) - 1, -1).at[:, 0].max(0)
    deepest = depth.argmax(-1)
    return Verdict(
        path=path_to(deepest, seen, tree.max_depth),
        num_accepted=depth.max(-1).astype(jnp.int32),
        next_token=jnp.take_along_axis(choice, deepest[:, None], axis=1)[:, 0],
    )


class Walk(NamedTuple):
    """State of the `residual` walk."""

    node: jax.Array  # i32[B], last accepted node
    target: jax.Array  # f32[B, V], the residual of p there; at the end of the walk the distribution of the next token
    draft: jax.Array  # f32[B, V], the residual of q there


def residual(
    tree: DraftTree, logits: jax.Array, sampling: Sampling, uniforms: jax.Array, bonus_noise: jax.Array
) -> Verdict:
    """Accept children one after the other with min(1, p/q); the next token is drawn from the residual of p.

    Arguments as `walk_down`; `bonus_noise` f32[B, N, V] is Gumbel noise for the token after each node, independent of
    the draft.
    """
    walk = walk_down(tree, logits, sampling, uniforms)
    rows = jnp.arange(tree.tokens.shape[0])
    seen = ancestors(tree.parents, tree.max_depth)
    bonus = (jnp.log(walk.target) + bonus_noise[rows, walk.node]).argmax(-1).astype(jnp.int32)
    depth = seen[rows, walk.node].sum(-1, dtype=jnp.int32) - 1
    return Verdict(path=path_to(walk.node, seen, tree.max_depth), num_accepted=depth, next_token=bonus)


def walk_down(tree: DraftTree, logits: jax.Array, sampling: Sampling, uniforms: jax.Array) -> Walk:
    """The walk of `residual`, to its end.

    Preserves the target's distribution where the children of a node were drawn without replacement from
    softmax(draft_logits / T) and none was dropped, unless the node drew but one, and whether that is dropped does not
    depend on its token. Children that are not random (q = 1) are those that are `fixed` and, without `draft_logits`,
    all.

    Args:
      tree: the draft; siblings are in the order in which they were drawn.
      logits: f32[B, N, V] of the target, before top-k, top-p and min-p.
      sampling: temperature and masks of each row.
      uniforms: f32[B, N], one for each node, independent of the draft.
    """
    warped = noises.warp(logits, sampling)
    rows = jnp.arange(tree.tokens.shape[0])
    fixed = jnp.full(tree.tokens.shape, tree.draft_logits is None) if tree.fixed is None else tree.fixed

    def at(node: jax.Array) -> tuple[jax.Array, jax.Array]:
        target = _distribution(warped[rows, node], sampling.temperature)
        if tree.draft_logits is None:
            return target, jnp.zeros_like(target)  # every child is fixed, so nothing reads it
        return target, _distribution(tree.draft_logits[rows, node], jnp.maximum(sampling.temperature, 1e-4))

    def visit(child: jax.Array, walk: Walk) -> Walk:
        token = tree.tokens[:, child]
        tried = tree.candidate[:, child] & (tree.parents[:, child] == walk.node)
        p, q = walk.target[rows, token], jnp.where(fixed[:, child], 1, walk.draft[rows, token])
        # A uniform is below 1, so p >= q accepts; p = 0 must not be accepted by a uniform of 0.
        taken = tried & (uniforms[:, child] * q < p)
        is_token = jnp.arange(walk.target.shape[1])[None, :] == token[:, None]
        others = jnp.where(is_token, 0, walk.target)
        left = jnp.where(fixed[:, child, None], others, jnp.maximum(walk.target - walk.draft, 0))
        rest = _normalise(jnp.where(is_token, 0, walk.draft), walk.draft)
        refused = (tried & ~taken)[:, None]
        new_target, new_draft = at(jnp.full_like(walk.node, child))
        return Walk(
            node=jnp.where(taken, child, walk.node),
            target=jnp.where(
                taken[:, None], new_target, jnp.where(refused, _normalise(left, walk.target), walk.target)
            ),
            draft=jnp.where(taken[:, None], new_draft, jnp.where(refused, rest, walk.draft)),
        )

    root = jnp.zeros_like(tree.tokens[:, 0])
    # A child has a higher index than its parent, so one pass in node order visits every child to be tried.
    return lax.fori_loop(1, tree.tokens.shape[1], visit, Walk(root, *at(root)))


def _distribution(logits: jax.Array, temperature: jax.Array) -> jax.Array:
    """softmax(logits / T) f32[B, V]; at T = 0 all mass on the first of the largest."""
    cold = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
    warm = jax.nn.softmax(logits / jnp.where(temperature > 0, temperature, 1)[:, None], axis=-1)
    return jnp.where((temperature > 0)[:, None], warm, cold)


def _normalise(weights: jax.Array, otherwise: jax.Array) -> jax.Array:
    """Weights f32[B, V] scaled to sum 1; rows that rounding made all zero become `otherwise`."""
    total = weights.sum(-1, keepdims=True)
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1), otherwise)
