"""Pictures of the steps of a round: the candidates of a dynamic tree, the mask of the target's pass, the commit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eagle_jax.drafters.eagle2 import Candidates
from eagle_jax.figures.layout import FONT
from eagle_jax.figures.nodes import scale_of_confidence
from eagle_jax.figures.theme import LIGHT, Theme, drawn_in, ink_on
from eagle_jax.tree import ancestors
from eagle_jax.types import NO_PARENT, DraftTree

Name = Callable[[int], str]
"""A token's label."""

Array = np.ndarray | jax.Array

_CELL = 0.94  # inches of a candidate's width
_SMALL: dict[str, Any] = {"fontsize": 9, "family": FONT, "parse_math": False}


def draw_candidates(
    candidates: Candidates,
    top_k: int,
    name: Name,
    framed: Sequence[int],
    *,
    values: bool = False,
    title: str = "",
    theme: Theme = LIGHT,
) -> Figure:
    """The candidates of an expansion, one level per line, children of one parent side by side.

    Args:
      candidates: of one row, fields [M] without a batch axis: `top_k` nodes, then `top_k`^2 for each further level.
      top_k: children of a node.
      name: of a token.
      framed: flat indices that are framed: those that were fed to the head, or selected.
      values: colour is the value of the path; else the confidence given the parent.
      title: a line above.
      theme: colours.
    """
    logs, parents = (np.asarray(field) for field in (candidates.log_values, candidates.parents))
    if not values:
        logs = logs - np.where(parents == NO_PARENT, 0.0, logs[np.maximum(parents, 0)])
    levels, scale = (len(logs) - top_k) // top_k**2 + 1, scale_of_confidence()
    with drawn_in(theme, max(9.0, _CELL * top_k**2 + 1.4), 0.5 * levels + 1.1) as figure:
        axes = figure.add_subplot()
        for index, share in enumerate(np.exp(logs).tolist()):
            level, place = (0, index) if index < top_k else divmod(index - top_k + top_k**2, top_k**2)
            face, marked = scale.to_rgba(share), index in framed
            left = place + 0.25 * (place // top_k)  # a gap between children of different parents
            edge: dict[str, Any] = {"edgecolor": theme.accent, "linewidth": 3.0} if marked else {"edgecolor": "none"}
            axes.add_patch(
                Rectangle((left + 0.05, level + 0.12), 0.9, 0.76, facecolor=face, gid=f"cell-{index}", **edge)
            )
            token = int(candidates.tokens[index])
            axes.text(left + 0.5, level + 0.5, name(token), ha="center", va="center", color=ink_on(face), **_SMALL)
        axes.set_xlim(-0.1, top_k**2 + 0.25 * top_k)
        axes.set_ylim(levels + 0.05, -0.05)
        axes.set_yticks(np.arange(levels) + 0.5, [f"depth {level + 1}" for level in range(levels)])
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_title(title, loc="left")
        figure.colorbar(scale, ax=axes, pad=0.01).outline.set_visible(False)
    return figure


def draw_mask(tree: DraftTree, before: Sequence[int], length: int, name: Name, *, theme: Theme = LIGHT) -> Figure:
    """Which tokens each node of a tree sees in the target's pass, and its position.

    Args:
      tree: of one row, fields [N] without a batch axis.
      before: the last tokens in the cache, which all nodes see.
      length: of the cache.
      name: of a token.
      theme: colours.
    """
    seen = np.asarray(ancestors(jnp.asarray(tree.parents)[None], tree.max_depth)[0])
    nodes, shown = len(seen), len(before)
    names = [name(int(token)) for token in np.asarray(tree.tokens)]
    blank, past, own = (mpl.colors.to_rgba(color) for color in (theme.grid, theme.muted, theme.series[0]))
    image = np.where(seen[..., None], own, blank)
    image = np.concatenate([np.broadcast_to(past, (nodes, shown, 4)), image], axis=1)
    with drawn_in(theme, 2.6 + 0.3 * (nodes + shown), 1.9 + 0.28 * nodes) as figure:
        axes = figure.add_subplot()
        axes.imshow(image, aspect="auto")
        axes.set_xticks(np.arange(shown + nodes - 1) + 0.5, minor=True)
        axes.set_yticks(np.arange(nodes - 1) + 0.5, minor=True)
        axes.grid(visible=False, which="major")
        axes.grid(which="minor", color=theme.background, linewidth=1.5)
        depths = seen.sum(-1) - 1
        rows = [f"{text} at {length + depth}" for text, depth in zip(names, depths, strict=True)]
        axes.set_xticks(range(shown + nodes), [*map(name, before), *names], rotation=90, **_SMALL)
        axes.set_yticks(range(nodes), rows, **_SMALL)
        axes.tick_params(which="both", length=0)
        axes.spines[:].set_visible(False)
        axes.set_title("a row sees the coloured columns; grey: the cache", loc="left")
    return figure


def draw_rows(panels: Mapping[str, tuple[Array, Sequence[str]]], *, theme: Theme = LIGHT) -> Figure:
    """Arrays side by side, a line for each of their rows, such as keys in a cache.

    Args:
      panels: by title, numbers f32[R, D], and names of the first rows.
      theme: colours.
    """
    most = max(float(np.abs(np.asarray(rows)).max()) for rows, _ in panels.values())
    longest = max(len(rows) for rows, _ in panels.values())
    with drawn_in(theme, 4.2 * len(panels), 1.2 + 0.26 * longest) as figure:
        for axes, (title, (rows, names)) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            axes.imshow(np.asarray(rows), cmap="PuOr", vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
            axes.set_yticks(range(len(names)), names, **_SMALL)
            axes.set_title(title, loc="left")
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.set_xlabel("dimension")
    return figure
