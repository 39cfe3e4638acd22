"""Draws nodes and edges of trees: boxes with a token in them, coloured by confidence, framed by outcome."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from eagle_jax.figures.layout import FONT, Point
from eagle_jax.figures.theme import Theme, ink_on

COLOURS = "cividis"
"""The scale of confidence, which the colour-blind see as others do."""

WIDTH, HEIGHT = 0.74, 0.76
"""Size of a node, in columns and lines."""

LEGEND = 0.6
"""Inches of the legend's height."""

FADED = 0.3
"""Opacity of what could not be accepted."""


@dataclasses.dataclass(frozen=True)
class Pen:
    """Axes to draw on, whose unit is a column across and a line down."""

    axes: Axes
    theme: Theme
    column: float = 1.5  # inches
    line: float = 0.32

    def edge(self, start: Point, end: Point, look: dict[str, Any], *, gid: str, alpha: float = 1.0) -> None:
        """A curve from the right side of one node to the left side of another."""
        left, right = start[0] + WIDTH / 2, end[0] - WIDTH / 2
        middle = (left + right) / 2
        points = [(left, start[1]), (middle, start[1]), (middle, end[1]), (right, end[1])]
        curve = Path(points, [Path.MOVETO, *[Path.CURVE4] * 3])
        self.axes.add_patch(PathPatch(curve, facecolor="none", alpha=alpha, gid=gid, **look))

    def node(
        self, place: Point, label: str, face: Any, look: dict[str, Any], *, gid: str, alpha: float = 1.0, note: str = ""
    ) -> None:
        """A rounded box with the token in it, framed like the edge that leads to it, and a small note below."""
        x, y = place
        box = FancyBboxPatch(
            (x - WIDTH / 2, y - HEIGHT / 2),
            WIDTH,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.06",
            mutation_aspect=self.column / self.line,
            facecolor=face,
            edgecolor=look["edgecolor"],
            linewidth=min(2.6, look["linewidth"]),
            linestyle=look.get("linestyle", "solid"),
            alpha=alpha,
            zorder=3,
            gid=gid,
        )
        self.axes.add_patch(box)
        seen = _over(face, self.theme.background, alpha)
        style: dict[str, Any] = {"family": FONT, "color": ink_on(seen), "alpha": max(alpha, 0.7), "zorder": 4}
        style |= {"ha": "center", "va": "center", "parse_math": False}
        shift = 0.16 if note else 0.0
        self.axes.text(x, y - shift, label, fontsize=9.5, gid=f"label-{gid}", **style)
        if note:
            self.axes.text(x, y + 0.2, note, fontsize=7.5, gid=f"note-{gid}", **style)


def _over(face: Any, background: str, alpha: float) -> tuple[float, ...]:
    """The colour of `face` drawn with opacity `alpha` over a background."""
    pairs = zip(mpl.colors.to_rgb(face), mpl.colors.to_rgb(background), strict=True)
    return tuple(alpha * own + (1 - alpha) * under for own, under in pairs)


def make_axes(figure: Figure, height: float) -> tuple[Axes, Axes, Axes]:
    """Bare axes for a tree of so many inches, and below it for the legend and for the scale of confidence."""
    grid = figure.add_gridspec(2, 2, height_ratios=(height, LEGEND), width_ratios=(3, 2))
    tree, legend, scale = (figure.add_subplot(part) for part in (grid[0, :], grid[1, 0], grid[1, 1]))
    for axes in (tree, legend, scale):
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_yticks([])
        axes.set_xticks([])
    return tree, legend, scale


def head_columns(axes: Axes, names: Sequence[str], lines: float) -> None:
    """A name above each column, and room for so many lines."""
    axes.set_xlim(-WIDTH / 2 - 0.05, len(names) - 1 + WIDTH / 2 + 0.05)
    axes.set_ylim(lines - 0.45, -0.55)
    axes.xaxis.tick_top()
    axes.set_xticks(range(len(names)), names, parse_math=False)


def looks(theme: Theme) -> dict[str, dict[str, Any]]:
    """Line styles by the outcome of a node."""
    return {
        "accepted": {"edgecolor": theme.accent, "linewidth": 3.6, "zorder": 2.0},
        "own": {"edgecolor": theme.bonus, "linewidth": 2.6, "zorder": 2.0, "linestyle": (0, (2, 1.2))},
        "refused": {"edgecolor": theme.muted, "linewidth": 0.9, "zorder": 1.0},
    }


def legend_lines(theme: Theme, faded: str = "") -> list[Line2D]:
    """Handles of the legend; `faded` names what is drawn pale."""
    texts = {"accepted": "accepted", "own": "the target's own", "refused": "refused"}
    lines = []
    for fate, look in looks(theme).items():
        style = {"linestyle": look.get("linestyle", "solid"), "linewidth": look["linewidth"]}
        lines.append(Line2D([], [], color=look["edgecolor"], label=texts[fate], **style))
    if faded:
        lines.append(Line2D([], [], color=theme.muted, linewidth=0.9, alpha=FADED, label=faded))
    return lines


def scale_of_confidence() -> ScalarMappable:
    """From a confidence in [0, 1] to a colour."""
    return ScalarMappable(Normalize(0, 1), mpl.colormaps[COLOURS])


def draw_legend(figure: Figure, theme: Theme, legend: Axes, scale: Axes, faded: str = "") -> None:
    """What lines and colours mean; `faded` names what is drawn pale."""
    lines = legend_lines(theme, faded)
    legend.legend(handles=lines, loc="center left", ncols=3 if len(lines) < 4 else 2, borderaxespad=0)
    bar = figure.colorbar(scale_of_confidence(), cax=scale.inset_axes((0.1, 0.6, 0.9, 0.25)), orientation="horizontal")
    bar.set_label("the drafter's confidence", fontsize=11)
    bar.outline.set_visible(False)
