"""EAGLE: a static tree drawn by rank (arXiv 2401.15077, section 3.1 and appendix A).

A node is named by ranks: (0, 2) is the third best child of the root's best child. No node is dropped for its
confidence, so this is also the tree on which the p/q rule may be used.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.drafters import head as heads
from eagle_jax.drafters.base import Drafter, Observation
from eagle_jax.drafters.head import HeadState
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.tree import root_of
from eagle_jax.types import NO_PARENT, DraftTree, Params

Ranks = tuple[int, ...]

_PUBLISHED = "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001"

PUBLISHED_TREE: tuple[Ranks, ...] = tuple(tuple(map(int, ranks)) for ranks in _PUBLISHED.split())
"""The tree of the published code: 25 drafted nodes, at most 5 deep."""


class Level(NamedTuple):
    """The nodes of one depth that have children, and those children."""

    inner: np.ndarray  # tree index of the nodes to feed, in node order
    parent_rows: np.ndarray  # index of their parents among the nodes fed one level before
    children: np.ndarray  # tree index of their children
    child_rows: np.ndarray  # index of each child's parent in `inner`
    child_ranks: np.ndarray  # rank of each child


class StaticTree(NamedTuple):
    """A static tree taken apart: node j of the tree is `paths[j - 1]`."""

    parents: np.ndarray  # i32[N]
    levels: tuple[Level, ...]  # by depth of the inner nodes, the root's level first
    contiguous: bool  # the ranks below each node are 0, 1, 2, ...


def take_apart(paths: Sequence[Ranks]) -> StaticTree:
    """Number the nodes by depth, then by rank, and list the levels.

    Raises:
      ValueError: no node, a node given twice, or a node whose parent is not in the tree.
    """
    ordered: list[Ranks] = [(), *sorted(paths, key=lambda ranks: (len(ranks), ranks))]
    index: dict[Ranks, int] = {ranks: node for node, ranks in enumerate(ordered)}
    if len(ordered) < 2 or len(index) != len(ordered):
        raise ValueError(f"a static tree needs distinct nodes, got {len(paths)} of which {len(set(paths))} differ")
    for ranks in ordered[1:]:
        if ranks[:-1] not in index:
            raise ValueError(f"node {ranks} of the static tree stands below {ranks[:-1]}, which is not in it")
    parents = np.array([NO_PARENT] + [index[ranks[:-1]] for ranks in ordered[1:]], np.int32)
    levels: list[Level] = []
    above: dict[Ranks, int] = {(): 0}
    for depth in range(max(map(len, ordered))):
        inner = [ranks for ranks in ordered if len(ranks) == depth and index[ranks] in parents]
        rows = {ranks: row for row, ranks in enumerate(inner)}
        children = [ranks for ranks in ordered if ranks and ranks[:-1] in rows]
        levels.append(
            Level(
                inner=np.array([index[ranks] for ranks in inner]),
                parent_rows=np.array([above[ranks[:-1]] for ranks in inner]),
                children=np.array([index[ranks] for ranks in children]),
                child_rows=np.array([rows[ranks[:-1]] for ranks in children]),
                child_ranks=np.array([ranks[-1] for ranks in children]),
            )
        )
        above = rows
    contiguous = all(not ranks or ranks[-1] == 0 or (*ranks[:-1], ranks[-1] - 1) in index for ranks in ordered)
    return StaticTree(parents, tuple(levels), contiguous)


def grow(
    head: Head,
    params: HeadParams,
    target_params: Params,
    state: HeadState,
    shape: StaticTree,
    root: jax.Array,
    noise: jax.Array,
) -> DraftTree:
    """Fill a static tree below `root` i32[B], level by level; other arguments as in `Drafter.propose`."""
    batch, num_nodes = root.shape[0], len(shape.parents)
    tokens = jnp.zeros((batch, num_nodes), jnp.int32).at[:, 0].set(root)
    values = jnp.zeros((batch, num_nodes))
    vocab_size = noise.shape[-1]
    draft_logits = jnp.full((batch, num_nodes, vocab_size), -jnp.inf)
    ids = jnp.arange(vocab_size) if params.target_ids is None else params.target_ids
    outputs, fed, offset = state.newest[:, None], heads.no_drafted_nodes(head, state), 0
    for depth, level in enumerate(shape.levels):
        if depth:
            states = outputs[:, level.parent_rows]
            rows = None
            if depth > 1:
                rows = jnp.broadcast_to(jnp.asarray(offset + level.parent_rows), (batch, len(level.inner)))
                offset += outputs.shape[1]
            outputs, fed = heads.extend(
                head, params, target_params, state, fed, tokens[:, level.inner], states, rows, depth
            )
        width = int(level.child_ranks.max()) + 1
        best = heads.top_children(head, params, target_params, outputs, noise[:, depth], width)
        tokens = tokens.at[:, level.children].set(best.tokens[:, level.child_rows, level.child_ranks])
        confidence = best.values[:, level.child_rows, level.child_ranks]
        values = values.at[:, level.children].set(values[:, level.inner[level.child_rows]] + confidence)
        draft_logits = draft_logits.at[:, level.inner[:, None], ids[None, :]].set(best.logits)
    return DraftTree(
        tokens=tokens,
        parents=jnp.broadcast_to(jnp.asarray(shape.parents), tokens.shape),
        candidate=jnp.ones(tokens.shape, bool),
        log_values=values,
        draft_logits=draft_logits,
        max_depth=len(shape.levels),
    )


@functools.cache
def make_eagle1(head: Head, paths: tuple[Ranks, ...] = PUBLISHED_TREE) -> Drafter:
    """Static tree; the head's `HeadParams` are the drafter's params.

    Args:
      head: an EAGLE head of either kind.
      paths: the drafted nodes by rank.

    Raises:
      ValueError: paths that are no tree.
    """
    shape = take_apart(paths)

    def propose(
        params: HeadParams,
        target_params: Params,
        state: HeadState,
        text: jax.Array,
        length: jax.Array,
        noise: jax.Array,
    ) -> tuple[DraftTree, HeadState]:
        return grow(head, params, target_params, state, shape, root_of(text, length), noise), state

    def observe(params: HeadParams, target_params: Params, state: HeadState, observation: Observation) -> HeadState:
        return heads.observe(head, params, target_params, state, observation)

    return Drafter(
        name="eagle",
        nodes=len(shape.parents),
        max_depth=len(shape.levels),
        init=lambda batch, capacity, dtype: heads.init_state(head, batch, capacity, dtype),
        propose=propose,
        observe=observe,
        top_k=max(ranks[-1] for ranks in paths) + 1,
        needs="the weights of its head",
        check=head.check,
        draws=shape.contiguous,
    )
