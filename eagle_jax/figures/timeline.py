"""Draws consecutive rounds as a staircase below the text that they write.

    text      root   a      b      c      d
    round 1   root ━ a ┅┅ b
                   ╲ x
    round 2               b ━━ c ┅┅ d
                             ╲ y

Each round is drawn below the one before, and its root is the token that the round before ended with. Shown are the
accepted tokens, the target's own, and the rejected children of accepted nodes. Descendants of rejected nodes, whose
acceptance is undefined, are left out.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from eagle_jax.evaluation.calibration import confidence
from eagle_jax.evaluation.rounds import Round
from eagle_jax.figures.layout import Decode, visible
from eagle_jax.figures.nodes import Pen, draw_legend, head_columns, looks, make_axes, scale_of_confidence
from eagle_jax.figures.theme import LIGHT, Theme, drawn_in
from eagle_jax.types import NO_NODE

_COLUMN, _LINE = 1.16, 0.32  # inches between two positions of the text, and between two alternatives
_FRAME = 1.5  # inches of all that is not rounds
_GAP = 0.7  # lines between two rounds
_LETTERS = 9  # of a token


def draw_strip(rounds: Sequence[Round], decode: Decode, *, theme: Theme = LIGHT) -> Figure:
    """Rounds that follow each other as a figure.

    Args:
      rounds: as `rounds.rounds` yields them, from any round on.
      decode: of the target's tokenizer.
      theme: colours.

    Raises:
      ValueError: no rounds, or rounds that do not follow each other.
    """
    for one, following in itertools.pairwise(rounds):
        if one.text + one.written != following.text:
            raise ValueError(f"a round ends at token {len(one.text + one.written)}, the next begins at another text")
    if not rounds:
        raise ValueError("there are no rounds to draw")
    text = [rounds[0].text[-1], *(token for one in rounds for token in one.written)]
    heights = [_height(one) for one in rounds]
    lines = sum(heights) + _GAP * (len(rounds) - 1)
    # The last round may have accepted more than `max_new_tokens` left room for.
    columns = len(rounds[-1].text) - len(rounds[0].text) + len(_path(rounds[-1])) + 1
    with drawn_in(theme, max(8.0, _COLUMN * columns + 0.6), _LINE * lines + _FRAME) as figure:
        axes, legend, scale = make_axes(figure, _LINE * lines)
        pen = Pen(axes, theme, _COLUMN, _LINE)
        top = 0.0
        for number, (one, height) in enumerate(zip(rounds, heights, strict=True)):
            _draw_round(pen, one, decode, (len(one.text) - len(rounds[0].text), top), number)
            top += height + _GAP
        names = [visible(decode([token]), _LETTERS) for token in text]
        head_columns(axes, names + [""] * (columns - len(names)), lines)
        draw_legend(figure, theme, legend, scale)
        axes.set_title(f"{len(text) - 1} tokens in {len(rounds)} rounds", loc="left", pad=24)
    return figure


def _path(one: Round) -> list[int]:
    return [int(node) for node in one.verdict.path if node != NO_NODE]


def _beside(one: Round, node: int, path: Sequence[int]) -> list[int]:
    """Refused children of a node."""
    tree = one.tree
    children = np.flatnonzero((tree.parents == node) & tree.candidate).tolist()
    return [child for child in children if child and child not in path]


def _height(one: Round) -> int:
    """Lines of a round: the path, and below it the most alternatives of any position."""
    path = _path(one)
    return 1 + max(len(_beside(one, node, path)) for node in path)


def _draw_round(pen: Pen, one: Round, decode: Decode, corner: tuple[float, float], number: int) -> None:
    """The path in one line; below each of its tokens the rejected alternatives."""
    left, top = corner
    path, style, scale, sure = _path(one), looks(pen.theme), scale_of_confidence(), confidence(one.tree)

    def label(token: Any) -> str:
        return visible(decode([int(token)]), _LETTERS)

    for depth, node in enumerate(path):
        here, gid = (left + depth, top), f"{number}-{node}"
        face = scale.to_rgba(sure[node]) if depth else pen.theme.background
        if depth:
            pen.edge((left + depth - 1, top), here, style["accepted"], gid=f"edge-{gid}")
        pen.node(here, label(one.tree.tokens[node]), face, style["accepted"], gid=f"node-{gid}")
        for line, other in enumerate(_beside(one, node, path), start=1):
            place, gid = (left + depth + 1, top + line), f"{number}-{other}"
            pen.edge(here, place, style["refused"], gid=f"edge-{gid}")
            face = scale.to_rgba(sure[other])
            pen.node(place, label(one.tree.tokens[other]), face, style["refused"], gid=f"node-{gid}")
    end = (left + len(path), top)
    pen.edge((end[0] - 1, top), end, style["own"], gid=f"edge-{number}-own")
    pen.node(end, label(one.verdict.next_token), pen.theme.background, style["own"], gid=f"node-{number}-own")
