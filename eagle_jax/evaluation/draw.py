"""Draws the draft tree of a round: what was guessed, how sure the drafter was, and what the target kept.

    root ━━ accepted ━━ accepted ┅┅ the target's own token
        ╲─ refused           ╲─ refused

A node shows its token, spaces and line breaks made visible; its colour is the drafter's confidence in it, given its
parent. Nodes that were computed but could not be accepted are faded, unused slots left out.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager, ft2font
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from eagle_jax.evaluation.themes import LIGHT, Theme, drawn_in, ink_on
from eagle_jax.types import NO_NODE, NO_PARENT, DraftTree, Verdict

Decode = Callable[[Sequence[int]], str]
"""Token ids to text."""

Place = tuple[float, float]
"""Depth, and line counted from the top."""

FONT = "DejaVu Sans Mono"  # comes with matplotlib
MARKS = {" ": "␣", "\n": "↵", "\r": "←", "\t": "⇥"}
COLOURS = "cividis"

_COLUMN, _LINE = 1.5, 0.32  # inches between two depths, and between two leaves
_FRAME, _LEGEND = 1.5, 0.6  # inches of all that is not tree, and of the legend
_WIDTH, _HEIGHT = 0.74, 0.76  # of a node, in columns and lines


def draw_tree(tree: DraftTree, verdict: Verdict, decode: Decode, *, title: str = "", theme: Theme = LIGHT) -> Figure:
    """One row's tree as a figure, the root on the left.

    Args:
      tree: fields [N], without a batch axis, as `rounds.Round` has them.
      verdict: path [P] and numbers, likewise.
      decode: of the target's tokenizer.
      title: a line above.
      theme: colours.
    """
    path = [int(node) for node in np.asarray(verdict.path) if node != NO_NODE]
    # The target's own token stands behind the path like one more node.
    tokens = [*np.asarray(tree.tokens).tolist(), int(verdict.next_token)]
    parents = [*np.asarray(tree.parents).tolist(), path[-1]]
    candidate = [*np.asarray(tree.candidate).tolist(), True]
    own = len(tokens) - 1
    places = layout(parents)
    columns, leaves = (max(place[axis] for place in places.values()) + 1 for axis in (0, 1))
    scale = ScalarMappable(Normalize(0, 1), mpl.colormaps[COLOURS])
    faces = {node: scale.to_rgba(sure) for node, sure in enumerate(confidence(tree)) if node}
    with drawn_in(theme, max(8.0, _COLUMN * columns + 0.4), _LINE * leaves + _FRAME) as figure:
        grid = figure.add_gridspec(2, 2, height_ratios=(_LINE * leaves, _LEGEND), width_ratios=(3, 2))
        axes, below = figure.add_subplot(grid[0, :]), [figure.add_subplot(grid[1, side]) for side in (0, 1)]
        for node, place in places.items():
            alpha = 1.0 if candidate[node] else 0.3
            line = {"edgecolor": theme.muted, "linewidth": 0.9, "zorder": 1.0}
            if node in path:
                line = {"edgecolor": theme.accent, "linewidth": 3.6, "zorder": 2.0}
            elif node == own:
                line = {"edgecolor": theme.bonus, "linewidth": 2.6, "zorder": 2.0, "linestyle": (0, (2, 1.2))}
            if node:
                _edge(axes, places[parents[node]], place, gid=f"edge-{node}", alpha=alpha, **line)
            label = visible(decode([tokens[node]]))
            _node(axes, place, label, faces.get(node, theme.background), theme, f"node-{node}", alpha, line)
        _dress(figure, axes, below, columns, leaves, scale)
        below[0].legend(handles=_legend(theme), loc="center left", ncols=3, borderaxespad=0)
        axes.set_title(title or _summary(path, tokens, candidate, parents), loc="left", pad=24)
    return figure


def layout(parents: Sequence[int]) -> dict[int, Place]:
    """Where each node stands: leaves one below the other, a parent in the middle of its children; node 0 is the root.

    Nodes without a parent, but the root, have no place.
    """
    children: dict[int, list[int]] = {0: []}
    depth = {0: 0}
    for node, parent in enumerate(parents):  # a parent stands before its child
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


def confidence(tree: DraftTree) -> np.ndarray:
    """f32[N]: the drafter's confidence in each node given its parent, in [0, 1]; 1 at the root."""
    values, parents = np.asarray(tree.log_values), np.asarray(tree.parents)
    own = np.where(parents == NO_PARENT, 0.0, values - values[np.maximum(parents, 0)])
    return np.clip(np.exp(own), 0, 1)


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


def _edge(axes: Axes, start: Place, end: Place, **look: Any) -> None:
    """A curve from the right side of one node to the left side of another."""
    left, right = start[0] + _WIDTH / 2, end[0] - _WIDTH / 2
    middle = (left + right) / 2
    points = [(left, start[1]), (middle, start[1]), (middle, end[1]), (right, end[1])]
    axes.add_patch(PathPatch(Path(points, [Path.MOVETO, *[Path.CURVE4] * 3]), facecolor="none", **look))


def _node(
    axes: Axes, place: Place, label: str, face: Any, theme: Theme, gid: str, alpha: float, line: dict[str, Any]
) -> None:
    """A rounded box with the token in it, framed like the edge that leads to it."""
    x, y = place
    box = FancyBboxPatch(
        (x - _WIDTH / 2, y - _HEIGHT / 2),
        _WIDTH,
        _HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.06",
        mutation_aspect=_COLUMN / _LINE,
        facecolor=face,
        edgecolor=line["edgecolor"],
        linewidth=min(2.6, line["linewidth"]),
        linestyle=line.get("linestyle", "solid"),
        alpha=alpha,
        zorder=3,
        gid=gid,
    )
    axes.add_patch(box)
    style: dict[str, Any] = {
        "family": FONT,
        "fontsize": 9.5,
        "color": ink_on(face),
        "alpha": max(alpha, 0.6),
        "zorder": 4,
    }
    axes.text(x, y, label, ha="center", va="center", parse_math=False, gid=f"label-{gid}", **style)


def _dress(
    figure: Figure, axes: Axes, below: Sequence[Axes], columns: float, leaves: float, scale: ScalarMappable
) -> None:
    """Depths above the tree; legend and colour scale in the two axes below it."""
    axes.set_xlim(-_WIDTH / 2 - 0.05, columns - 1 + _WIDTH / 2 + 0.05)
    axes.set_ylim(leaves - 0.45, -0.55)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.set_xticks(range(int(columns)), ["root", *(f"depth {depth}" for depth in range(1, int(columns)))])
    for empty in (axes, *below):
        empty.grid(visible=False)
        empty.tick_params(length=0)
        empty.spines[:].set_visible(False)
    for empty in below:
        empty.set_xticks([])
        empty.set_yticks([])
    bar = figure.colorbar(scale, cax=below[1].inset_axes((0.1, 0.6, 0.9, 0.25)), orientation="horizontal")
    bar.set_label("the drafter's confidence", fontsize=11)
    bar.outline.set_visible(False)


def _legend(theme: Theme) -> list[Line2D]:
    return [
        Line2D([], [], color=theme.accent, linewidth=3.6, label="accepted"),
        Line2D([], [], color=theme.bonus, linewidth=2.6, linestyle=(0, (2, 1.2)), label="the target's own"),
        Line2D([], [], color=theme.muted, linewidth=0.9, label="refused"),
    ]


def _summary(path: Sequence[int], tokens: Sequence[int], candidate: Sequence[bool], parents: Sequence[int]) -> str:
    drafted = sum(ok and parent != NO_PARENT for ok, parent in zip(candidate, parents, strict=True)) - 1
    return f"{drafted} tokens drafted, {len(path) - 1} accepted, {len(path)} written"
