"""The two verification rules as walks down one tree."""

from typing import NamedTuple

import numpy as np

from tests.reference.trees import Tree


class Walked(NamedTuple):
    """Where a walk ended: the path with the root, and the token after it or the distribution of that token."""

    path: list[int]
    next_token: int | None = None
    next_distribution: np.ndarray | None = None  # [V]
    margin: float = np.inf  # how far from turning the other way the closest decision was


def children(tree: Tree, node: int) -> list[int]:
    """Candidate children in node order."""
    return [j for j in range(1, len(tree.parents)) if tree.parents[j] == node and tree.candidate[j]]


def match(tree: Tree, node: int = 0) -> Walked:
    """From `node` on, follow the child that carries the target's choice."""
    for child in children(tree, node):
        if tree.tokens[child] == tree.choice[node]:
            below = match(tree, child)
            return below._replace(path=[node, *below.path])
    return Walked([node], next_token=tree.choice[node])


def residual(
    tree: Tree,
    target: np.ndarray,
    draft: np.ndarray | None,
    uniforms: np.ndarray,
    fixed: np.ndarray | None = None,
    node: int = 0,
) -> Walked:
    """From `node` on, try the children one after the other.

    Args:
      tree: the draft.
      target: f64[N, V], distribution of the token after each node.
      draft: f64[N, V], distribution from which each node's children were drawn without replacement; None is q = 1.
      uniforms: f64[N], compared when that node is tried.
      fixed: bool[N], nodes that were not drawn though their siblings may be: q = 1 for them.
      node: where to start.
    """
    p = target[node].copy()
    q = None if draft is None else draft[node].copy()
    margin = np.inf
    for child in children(tree, node):
        token = tree.tokens[child]
        point_mass = q is None or (fixed is not None and fixed[child])
        ratio = p[token] if point_mass else p[token] / q[token]
        margin = min(margin, abs(uniforms[child] - ratio))
        if uniforms[child] < min(1.0, ratio):
            below = residual(tree, target, draft, uniforms, fixed, child)
            return below._replace(path=[node, *below.path], margin=min(margin, below.margin))
        if point_mass:
            p[token] = 0
        else:
            p = np.maximum(p - q, 0)
        if q is not None:
            q[token] = 0
            q /= q.sum()
        margin = min(margin, p.sum())  # the less is left, the more a rounding error weighs
        p /= p.sum()
    return Walked([node], next_distribution=p, margin=margin)
