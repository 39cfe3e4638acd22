"""The best tree over tables of children, grown on the device with fixed shapes.

A drafter that knows all depths at once describes its tree by tables: for each depth, for each of a few predecessors,
the best children. A node's value is the sum of log-scores along its path. A child's is never above its parent's, so
the N - 1 best of all paths form a tree; published builders find it with a heap on the host (DDTree, arXiv 2604.12989;
TreeFlash, arXiv 2606.03819). Here one level after the other is expanded, and of each only the best nodes, as many as
the beam is wide, have children. With a beam of N - 1 or more the result is the heap's: none of its nodes has N - 1
better ones.

    tables       depth 0: the root     depth 1: row 0, row 1     ...       row: a predecessor
                 a -> row 0            row 0:  b -> row 1
                 c -> row 1            row 1:  b -> row 1, d -> none

A child without a row has no children. Knows no heads.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from eagle_jax.sampling import top_k_rows
from eagle_jax.types import NO_PARENT, DraftTree

NO_ROW = -1
"""In place of a row of the next table: the child has no children."""

SPINE = 1.0
"""Rank of a node that is selected in any case; values are logs of probabilities, at most 0."""


class ChildTables(NamedTuple):
    """Children of nodes at depth d (the root at 0) whose token is predecessor r of that depth; the root's row is 0."""

    tokens: jax.Array  # i32[B, D, R, k], of the target's vocabulary; those of a row differ
    scores: jax.Array  # f32[B, D, R, k], log, at most 0; -inf: no child
    rows: jax.Array  # i32[B, D, R, k], row of the child in the next table, NO_ROW: none


class Nodes(NamedTuple):
    """Expanded nodes, level by level, M of them; within a level as they rank."""

    tokens: jax.Array  # i32[B, M]
    log_values: jax.Array  # f32[B, M], -inf: no node
    ranked_by: jax.Array  # f32[B, M], the value, or `SPINE`
    parents: jax.Array  # i32[B, M], index among all nodes, NO_PARENT below the root


def grow(tables: ChildTables, root: jax.Array, nodes: int, *, beam: int, spine: int = 0) -> DraftTree:
    """The best nodes below `root` i32[B].

    Args:
      tables: one for each depth but the deepest; their number is the tree's `max_depth`.
      root: the newest token.
      nodes: N, the root included. Slots for which there are no paths stay unused.
      beam: nodes of a level that are expanded further, at most.
      spine: depths down to which the chain of first children is selected in any case, at most `nodes` - 1.

    Returns:
      Nodes by value, shallow before deep where values tie: every prefix of them is a tree.

    Raises:
      ValueError: more nodes than are expanded, or a spine longer than the tree has nodes.
    """
    _, depth, _, top_k = tables.tokens.shape
    most = sum(level_widths(depth, top_k, beam))
    if nodes - 1 > most:
        raise ValueError(f"nodes - 1 is {nodes - 1}, but depth {depth}, top_k {top_k} and beam {beam} find only {most}")
    if spine > nodes - 1:
        raise ValueError(f"a spine of {spine} nodes does not fit below the root of a tree of {nodes}")
    return _select(expand(tables, beam, spine), root, nodes, depth)


def level_widths(depth: int, top_k: int, beam: int) -> list[int]:
    """Nodes that are expanded at depth 1, 2, ..., `depth`."""
    widths = [1]
    for _ in range(depth):
        widths.append(min(beam, widths[-1] * top_k))
    return widths[1:]


def expand(tables: ChildTables, beam: int, spine: int) -> Nodes:
    """The `beam` best nodes of every level, of those below the best of the level before; arguments as `grow`."""
    batch, depth, _, top_k = tables.tokens.shape
    values, rows = jnp.zeros((batch, 1)), jnp.zeros((batch, 1), jnp.int32)
    on_spine, places = jnp.ones((batch, 1), bool), jnp.full((batch, 1), NO_PARENT)
    levels: list[Nodes] = []
    start = 0
    for level, width in enumerate(level_widths(depth, top_k, beam)):
        own = jnp.maximum(rows, 0)[:, :, None]
        tokens, scores, below = (jnp.take_along_axis(table[:, level], own, axis=1) for table in tables)
        scores = jnp.where(rows[:, :, None] == NO_ROW, -jnp.inf, values[:, :, None] + scores)
        first = on_spine[:, :, None] & (jnp.arange(top_k) == 0)[None, None, :] & (scores > -jnp.inf) & (level < spine)
        flat = (batch, -1)
        ranked_by, picked = top_k_rows(jnp.where(first, SPINE, scores).reshape(flat), width)
        tokens, values, rows, on_spine = (
            jnp.take_along_axis(x.reshape(flat), picked, axis=1) for x in (tokens, scores, below, first)
        )
        parents = jnp.take_along_axis(places, picked // top_k, axis=1)
        levels.append(Nodes(tokens, values, ranked_by, parents))
        places = jnp.broadcast_to(start + jnp.arange(width), (batch, width))
        start += width
    return Nodes(*(jnp.concatenate(parts, axis=1) for parts in zip(*levels, strict=True)))


def _select(expanded: Nodes, root: jax.Array, nodes: int, max_depth: int) -> DraftTree:
    """The tree of the `nodes` - 1 that rank highest, by value."""
    _, chosen = top_k_rows(expanded.ranked_by, nodes - 1)
    chosen = jnp.sort(chosen, axis=1)  # levels in order: where values tie, the first of them is the shallower
    values, order = top_k_rows(jnp.take_along_axis(expanded.log_values, chosen, axis=1), nodes - 1)
    chosen = jnp.take_along_axis(chosen, order, axis=1)
    parents = jnp.take_along_axis(expanded.parents, chosen, axis=1)
    # Index of the parent among the chosen, counted from node 1; the root where there is none.
    place = (parents[:, :, None] == chosen[:, None, :]).argmax(-1) + 1
    used = jnp.pad(values > -jnp.inf, ((0, 0), (1, 0)), constant_values=True)
    parents = jnp.pad(jnp.where(parents == NO_PARENT, 0, place), ((0, 0), (1, 0)), constant_values=NO_PARENT)
    return DraftTree(
        tokens=jnp.concatenate([root[:, None], jnp.take_along_axis(expanded.tokens, chosen, axis=1)], axis=1),
        parents=jnp.where(used, parents, NO_PARENT).astype(jnp.int32),
        candidate=used,
        log_values=jnp.pad(values, ((0, 0), (1, 0))),
        max_depth=max_depth,
    )
