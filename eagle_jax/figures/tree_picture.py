"""Draws the draft tree of a round: drafted tokens, the drafter's confidence, and what the target accepted.

    root ━━ accepted ━━ accepted ┅┅ the target's own token
        ╲─ refused           ╲─ refused

A node shows its token, spaces and line breaks made visible; its colour is the drafter's confidence in it, given its
parent. Nodes that could not be accepted, dropped by the drafter or only computed, are faded, unused slots left out.
Above the tree of a one-pass drafter its slots' lists may stand (`slot_columns`).
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from eagle_jax.evaluation.calibration import confidence, log_confidence
from eagle_jax.figures.layout import Decode, layout, visible
from eagle_jax.figures.nodes import FADED, Pen, draw_legend, head_columns, looks, make_axes, scale_of_confidence
from eagle_jax.figures.slot_columns import column_names, draw_columns, lists_height
from eagle_jax.figures.theme import LIGHT, Theme, drawn_in
from eagle_jax.types import NO_NODE, NO_PARENT, DraftTree, Verdict

_COLUMN = 1.5  # inches between two depths
_LINE, _TALL_LINE = 0.32, 0.46  # inches between two leaves, without and with a note
_FRAME = 1.5  # inches of all that is not tree


def draw_tree(
    tree: DraftTree,
    verdict: Verdict,
    decode: Decode,
    *,
    title: str = "",
    log_probabilities: bool = False,
    lists: DraftTree | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """One row's tree as a figure, the root on the left.

    Args:
      tree: fields [N], without a batch axis, as `rounds.Round` has them; `layout.with_dropped` adds the nodes that
        the drafter considered and dropped.
      verdict: path [P] and numbers, likewise.
      decode: of the target's tokenizer.
      title: a line above.
      log_probabilities: write below each token the log of the drafter's confidence in it, given its parent.
      lists: of a one-pass drafter, what its slots list, as `slot_lists.make_slot_lists` drafts it.
      theme: colours.
    """
    path = [int(node) for node in np.asarray(verdict.path) if node != NO_NODE]
    # The target's own token is drawn after the path like one more node.
    tokens = [*np.asarray(tree.tokens).tolist(), int(verdict.next_token)]
    parents = [*np.asarray(tree.parents).tolist(), path[-1]]
    candidate = [*np.asarray(tree.candidate).tolist(), True]
    top = 0.0 if lists is None else lists_height(lists)
    places = {node: (depth, top + leaf) for node, (depth, leaf) in layout(parents).items()}
    columns, leaves = (max(place[axis] for place in places.values()) + 1 for axis in (0, 1))
    columns = columns if lists is None else max(columns, lists.max_depth + 1)  # the tree may be less deep
    line = _TALL_LINE if log_probabilities else _LINE
    drafted = [node for node in places if 0 < node < len(tokens) - 1]
    colours, logs = scale_of_confidence().to_rgba(confidence(tree)), log_confidence(tree)
    faces = {node: tuple(colours[node]) for node in drafted}
    notes = {node: f"{logs[node]:.2f}" for node in drafted} if log_probabilities else {}
    with drawn_in(theme, max(8.0, _COLUMN * columns + 0.4), line * leaves + _FRAME) as figure:
        axes, legend, scale = make_axes(figure, line * leaves)
        pen, fates = Pen(axes, theme, _COLUMN, line), looks(theme)
        for node, place in places.items():
            fate = "accepted" if node in path else "own" if node == len(tokens) - 1 else "refused"
            look, alpha = fates[fate], 1.0 if candidate[node] else FADED
            if node:
                pen.edge(places[parents[node]], place, look, gid=f"edge-{node}", alpha=alpha)
            label, face = visible(decode([tokens[node]])), faces.get(node, theme.background)
            pen.node(place, label, face, look, gid=f"node-{node}", alpha=alpha, note=notes.get(node, ""))
        if lists is None:
            names = ["root", *(f"depth {depth}" for depth in range(1, int(columns)))]
            faded = "cannot be accepted" if any(not candidate[node] for node in places) else ""
        else:
            draw_columns(pen, lists, tree, verdict, decode)
            names, faded = column_names(lists, int(columns)), "listed, not in the tree"
        head_columns(axes, names, leaves)
        draw_legend(figure, theme, legend, scale, faded)
        axes.set_title(title or _summary(path, tokens, candidate, parents), loc="left", pad=24 if lists is None else 40)
    return figure


def _summary(path: Sequence[int], tokens: Sequence[int], candidate: Sequence[bool], parents: Sequence[int]) -> str:
    drafted = sum(ok and parent != NO_PARENT for ok, parent in zip(candidate, parents, strict=True)) - 1
    return f"{drafted} tokens drafted, {len(path) - 1} accepted, {len(path)} written"
