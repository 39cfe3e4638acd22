"""The best tree over tables of children with a heap, one node at a time (DDTree, arXiv 2604.12989)."""

import heapq
from typing import Any, NamedTuple

import numpy as np


class Node(NamedTuple):
    """A node of the tree; equal values rank by depth, then by the parent's rank, then by place below the parent."""

    token: int
    value: np.float32
    path: tuple[int, ...]  # places below the parents, from the root down
    key: tuple[Any, ...]


def grow(tokens: np.ndarray, scores: np.ndarray, rows: np.ndarray, nodes: int, spine: int) -> list[Node]:
    """Up to `nodes` - 1 best nodes of tables [D, R, k], best first; `spine` depths of first children in any case."""
    heap: list[tuple[Any, ...]] = []

    def push(parent: Node | None, row: int, depth: int) -> None:
        if row < 0 or depth == len(tokens):
            return
        for place in range(tokens.shape[-1]):
            if scores[depth, row, place] == -np.inf:
                continue
            above = parent.path if parent else ()
            path = (*above, place)
            value = np.float32((parent.value if parent else np.float32(0)) + scores[depth, row, place])
            rank = -1.0 if not any(path) and depth < spine else -float(value)
            key = (rank, depth, parent.key if parent else (), place)
            node = Node(int(tokens[depth, row, place]), value, path, key)
            heapq.heappush(heap, (key, node, int(rows[depth, row, place])))

    push(None, 0, 0)
    found: list[Node] = []
    while heap and len(found) < nodes - 1:
        _, node, row = heapq.heappop(heap)
        found.append(node)
        push(node, row, len(node.path))
    # By value; nodes of the spine stand where their value puts them.
    return sorted(found, key=lambda node: (-float(node.value), len(node.path), node.key))
