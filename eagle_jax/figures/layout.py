"""Positions and labels of the nodes of a drawn tree; knows no figure."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import font_manager, ft2font

from eagle_jax.types import NO_PARENT, DraftTree

Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""

Point = tuple[float, float]
"""Column, and line counted from the top."""

FONT = "DejaVu Sans Mono"  # comes with matplotlib
MARKS = {" ": "␣", "\n": "↵", "\r": "←", "\t": "⇥"}


def layout(parents: Sequence[int]) -> dict[int, Point]:
    """Position of each node: leaves one below the other, a parent in the middle of its children; node 0 is the root.

    Nodes without a parent, except for the root, are left out.
    """
    children: dict[int, list[int]] = {0: []}
    depth = {0: 0}
    for node, parent in enumerate(parents):  # a parent comes before its child
        if parent != NO_PARENT and parent in depth:
            children[parent].append(node)
            children[node], depth[node] = [], depth[parent] + 1
    lines: dict[int, float] = {}
    leaves = 0

    def walk(node: int) -> None:
        nonlocal leaves
        for child in children[node]:
            walk(child)
        if children[node]:
            lines[node] = (lines[children[node][0]] + lines[children[node][-1]]) / 2
        else:
            lines[node] = leaves
            leaves += 1

    walk(0)
    return {node: (float(depth[node]), float(lines[node])) for node in sorted(depth)}


def with_dropped(tree: DraftTree, wider: DraftTree) -> DraftTree:
    """The tree with the nodes appended that only a wider one of the same round has: those that were dropped.

    They are no candidates. Nodes are identified by the tokens on their path. Fields are [N], without a batch axis.
    """
    path_of: dict[tuple[int, ...], int] = {path: node for node, path in _paths(tree).items()}
    fields = {name: np.asarray(getattr(tree, name)).tolist() for name in ("tokens", "parents", "candidate")}
    values = np.asarray(tree.log_values).tolist()
    for node, path in _paths(wider).items():
        if path not in path_of:
            path_of[path] = len(values)
            fields["tokens"].append(path[-1])
            fields["parents"].append(path_of[path[:-1]])
            fields["candidate"].append(False)
            values.append(float(wider.log_values[node]))
    arrays: dict[str, Any] = {name: np.array(field) for name, field in fields.items()}
    arrays["log_values"] = np.array(values, np.float32)
    return dataclasses.replace(tree, **arrays)


def _paths(tree: DraftTree) -> dict[int, tuple[int, ...]]:
    """Each node's tokens below the root; unused slots are left out."""
    tokens, parents = (np.asarray(field).tolist() for field in (tree.tokens, tree.parents))
    paths: dict[int, tuple[int, ...]] = {0: ()}
    for node, parent in enumerate(parents):
        if parent in paths and node:
            paths[node] = (*paths[parent], tokens[node])
    return paths


def visible(text: str, limit: int = 12) -> str:
    """Text as a label: white space shown, characters that the font lacks written out, long texts cut."""
    known = _known_characters()
    shown = "".join(MARKS.get(char) or (char if ord(char) in known else rf"\u{ord(char):04x}") for char in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


@functools.cache
def _known_characters() -> frozenset[int]:
    """Code points that the font can draw, control characters left out."""
    font = ft2font.FT2Font(font_manager.findfont(FONT))
    return frozenset(code for code in font.get_charmap() if chr(code).isprintable())
