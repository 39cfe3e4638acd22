"""Style of all figures: two backgrounds, a colour-blind-safe palette, legible type.

The colours are Okabe and Ito's ("Color Universal Design", 2008), in an order in which neighbours differ in lightness
too and the first ones stand out from the background.
"""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    background: str
    ink: str  # text, axes
    muted: str  # faded nodes, reference lines
    grid: str
    series: tuple[str, ...]  # one method after the other
    accent: str  # the accepted path
    bonus: str  # the target's own token


LIGHT = Theme(
    background="#ffffff",
    ink="#1b1b1b",
    muted="#8a8a8a",
    grid="#e3e3e3",
    series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
    accent="#d55e00",
    bonus="#009e73",
)
DARK = Theme(
    background="#14171c",
    ink="#f0f0f0",
    muted="#8d939c",
    grid="#30353d",
    series=("#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#f0f0f0"),
    accent="#e69f00",
    bonus="#009e73",
)

THEMES = {"light": LIGHT, "dark": DARK}

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""Markers, so that lines can be distinguished in grey."""

PANEL = 4.6
"""Inches of a panel's width."""


def ink_on(color: Any) -> str:
    """Black or white, whichever can be read on a colour (weights of ITU-R BT.601)."""
    red, green, blue, _ = mpl.colors.to_rgba(color)
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "#111111"


class Picture(Figure):
    """A figure that notebooks show when a cell ends with it, whether or not pyplot is in use."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()


def save(figure: Figure, folder: pathlib.Path, name: str) -> None:
    """Write NAME.png and NAME.svg; the same picture is the same file, whenever it is drawn."""
    figure.savefig(folder / f"{name}.png", dpi=150)
    with mpl.rc_context({"svg.hashsalt": "eagle_jax"}):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


@contextlib.contextmanager
def drawn_in(theme: Theme, width: float, height: float) -> Iterator[Figure]:
    """A figure of so many inches; what is drawn inside the block has the theme's look."""
    look: Any = {
        "axes.edgecolor": theme.muted,
        "axes.facecolor": theme.background,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.labelcolor": theme.ink,
        "axes.labelsize": 12,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 13,
        "figure.facecolor": theme.background,
        "font.size": 12,
        "grid.color": theme.grid,
        "legend.fontsize": 11,
        "legend.frameon": False,
        "lines.linewidth": 2.2,
        "lines.markersize": 7,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "xtick.labelsize": 11,
        "ytick.color": theme.ink,
        "ytick.labelsize": 11,
    }
    with mpl.rc_context(look):
        yield Picture(figsize=(width, height), layout="constrained")


def series_look(theme: Theme, number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a series; past the last colour they repeat, dashed and with other markers."""
    again, place = divmod(number, len(theme.series))
    style = (0, (3, 1.5)) if again else "-"
    colour, marker = theme.series[place], MARKERS[(number + again) % len(MARKERS)]
    return {"color": colour, "marker": marker, "linestyle": style}


def reference_look(theme: Theme) -> dict[str, Any]:
    """Style of a reference line."""
    return {"color": theme.muted, "linewidth": 1.2, "linestyle": (0, (4, 3))}


def legend_above(figure: Figure) -> None:
    """One legend above all panels, each name once; fewer columns for longer names."""
    handles = {
        text: handle for axes in figure.axes for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        columns = max(1, int(figure.get_figwidth() * 9 / (max(map(len, handles)) + 8)))
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=min(columns, len(handles)))
