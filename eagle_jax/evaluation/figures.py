"""Charts of rows (`eagle_jax.evaluation.rows`): pure functions from rows to a figure, one look for all.

What a chart does not tell apart it sums or averages: tasks and seeds. Rows of one target, dtype and device at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eagle_jax.evaluation.acceptance import n_alpha
from eagle_jax.evaluation.tables import Row, accepted, distinct, groups, mean
from eagle_jax.evaluation.themes import LIGHT, MARKERS, Theme, drawn_in, ink_on

LEAST_ROUNDS = 20
"""A chance that was seen in fewer rounds is not drawn."""

PANEL = 4.6
"""Inches of a panel's width."""


def speedup_by_method(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Bars: mean speed-up of each method over the tasks, a bar a temperature; the tasks are dots."""
    labels, temperatures = distinct(rows, "label"), distinct(rows, "temperature")
    thick = 0.8 / len(temperatures)
    with drawn_in(theme, 9.0, 1.6 + 0.34 * len(labels) * (len(temperatures) + 0.6)) as figure:
        axes = figure.add_subplot()
        for (label, temperature), own in groups(rows, "label", "temperature"):
            value, tasks = mean(own, "speedup"), [mean(some, "speedup") for _, some in groups(own, "task")]
            if value is None:
                continue
            number = temperatures.index(temperature)
            y = labels.index(label) - 0.4 + thick * (number + 0.5)
            color = theme.series[number % len(theme.series)]
            axes.barh(y, value, 0.88 * thick, color=color, label=f"T = {temperature:g}")
            axes.text(0.02, y, f"{value:.2f}", color=ink_on(color), va="center", fontsize=10, fontweight="bold")
            dots = [speedup for speedup in tasks if speedup is not None]
            look: dict[str, Any] = {"markersize": 5, "markerfacecolor": theme.background, "markeredgecolor": theme.ink}
            axes.plot(dots, [y] * len(dots), "o", **look)
        axes.axvline(1, color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.45, -0.55)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("speed-up over plain decoding; dots are tasks")
        _legend(figure)
    return figure


def tau_by_depth(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Lines: tau if no round accepted more than so many tokens, up to the tree's own depth."""

    def curve(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
        counts = accepted(rows)
        reached = np.cumsum(counts[::-1])[::-1] / max(1, counts.sum())
        return list(range(len(counts))), np.cumsum(reached).tolist()

    return _lines(rows, theme, curve, "accepted tokens at most", "tokens a round (tau)")


def n_alpha_curves(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Lines: the chance that the next token is accepted when n drafted ones were (`acceptance`)."""

    def curve(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
        counts = accepted(rows)
        reached = np.cumsum(counts[::-1])[::-1]
        found = [(n, alpha) for n, alpha in enumerate(n_alpha(counts)) if reached[n] >= LEAST_ROUNDS]
        return [n for n, _ in found], [alpha for _, alpha in found]

    figure = _lines(rows, theme, curve, "accepted before (n)", "chance of one more (n-alpha)")
    figure.axes[0].set_ylim(0, 1)
    return figure


def tau_against_nodes(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Two panels, tau and speed-up against the tree's nodes: a mark a tree, a line through the best of each size."""
    with drawn_in(theme, 2 * PANEL + 1, 4.9) as figure:
        panels = figure.subplots(1, 2)
        for axes, name, text in zip(panels, ("tau", "speedup"), ("tokens a round (tau)", "speed-up"), strict=True):
            for number, ((method, temperature), own) in enumerate(groups(rows, "method", "temperature")):
                points = _points(own, name)
                best = {nodes: max(y for x, y in points if x == nodes) for nodes, _ in points}
                look = _look(theme, number)
                axes.plot(*zip(*points, strict=True), **{**look, "linestyle": "none", "alpha": 0.35})
                axes.plot(list(best), list(best.values()), label=f"{method}, T = {temperature:g}", **look)
            axes.set_xscale("log", base=2)
            sizes = sorted({row["tree"]["nodes"] for row in rows})
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel("nodes of the tree, the root included")
            axes.set_ylabel(text)
        panels[1].axhline(1, color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)))
        _legend(figure)
    return figure


def time_split(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Stacked bars: where the time of a written token goes, a panel a temperature.

    A round costs at least what plain decoding pays for a token, a pass over one token, spread over the tokens that the
    round writes. What it costs more is drafting, and checking a tree instead of one token.
    """
    parts = ("reading the prompt", "a pass over one token", "drafting, and checking more")
    labels, temperatures = distinct(rows, "label"), distinct(rows, "temperature")
    with drawn_in(theme, 3.2 + PANEL * len(temperatures), 1.9 + 0.42 * (len(labels) + 1)) as figure:
        panels = figure.subplots(1, len(temperatures), sharex=True, sharey=True, squeeze=False)[0]
        for axes, temperature in zip(panels, temperatures, strict=True):
            own = [row for row in rows if row["temperature"] == temperature]
            bars = {0: _plain_split(own)}
            bars |= {labels.index(label) + 1: _split(found) for (label,), found in groups(own, "label")}
            left = np.zeros(len(bars))
            for number, part in enumerate(parts):
                widths = np.array([split[number] for split in bars.values()])
                axes.barh(list(bars), widths, 0.72, left=left, color=theme.series[number], label=part)
                left += widths
            axes.grid(visible=False, axis="y")
            axes.set_title(f"T = {temperature:g}", loc="left")
            axes.set_xlabel("milliseconds a token")
        panels[0].set_yticks(range(len(labels) + 1), ["plain decoding", *labels])
        panels[0].set_ylim(len(labels) + 0.5, -0.5)
        _legend(figure)
    return figure


def _split(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Milliseconds a token of the three parts."""
    tokens, rounds = (sum(row[name] for row in rows) for name in ("tokens", "rounds"))
    prefill, whole = (1e3 * sum(row[f"{name}_seconds"] for row in rows) / tokens for name in ("prefill", "decode"))
    passes = sum(row["plain_tokens"] - row["turns"] for row in rows)
    one_pass = 1e3 * sum(row["plain_decode_seconds"] for row in rows) / max(1, passes)
    floor = min(whole, one_pass * rounds / tokens)
    return prefill, floor, whole - floor


def _plain_split(rows: Sequence[Row]) -> tuple[float, float, float]:
    """The same of plain decoding."""
    tokens = sum(row["plain_tokens"] for row in rows)
    prefill, decode = (1e3 * sum(row[f"plain_{name}_seconds"] for row in rows) for name in ("prefill", "decode"))
    return prefill / tokens, decode / tokens, 0.0


def _lines(
    rows: Sequence[Row],
    theme: Theme,
    curve: Callable[[Sequence[Row]], tuple[list[int], list[float]]],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """A panel a temperature, a line a method; methods keep their colour."""
    labels, temperatures = distinct(rows, "label"), distinct(rows, "temperature")
    with drawn_in(theme, 0.8 + PANEL * len(temperatures), 4.4 + 0.27 * len(labels)) as figure:
        panels = figure.subplots(1, len(temperatures), sharex=True, sharey=True, squeeze=False)[0]
        for axes, temperature in zip(panels, temperatures, strict=True):
            own = [row for row in rows if row["temperature"] == temperature]
            for (label,), found in groups(own, "label"):
                number = labels.index(label)
                axes.plot(*curve(found), label=label, **_look(theme, number))
            axes.set_title(f"T = {temperature:g}", loc="left")
            axes.set_xlabel(xlabel)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel(ylabel)
        _legend(figure)
    return figure


def _look(theme: Theme, number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a series; when the colours are used up they come again, dashed."""
    style = "-" if number < len(theme.series) else (0, (3, 1.5))
    colour, marker = theme.series[number % len(theme.series)], MARKERS[number % len(MARKERS)]
    return {"color": colour, "marker": marker, "linestyle": style}


def _points(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    """Nodes and mean over tasks and seeds of each tree, small trees first."""
    found = ((own[0]["tree"]["nodes"], mean(own, name)) for _, own in groups(rows, "label"))
    return sorted((nodes, value) for nodes, value in found if value is not None)


def _legend(figure: Figure) -> None:
    """One legend above all panels, each name once; in as few columns as names are long."""
    found = {
        text: handle for axes in figure.axes for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = max(1, int(figure.get_figwidth() * 9 / (max(map(len, found)) + 8)))
    figure.legend(found.values(), found.keys(), loc="outside upper left", ncols=min(columns, len(found)))


CHARTS: dict[str, Callable[[Sequence[Row], Theme], Figure]] = {
    "speedup_by_method": speedup_by_method,
    "tau_by_depth": tau_by_depth,
    "n_alpha": n_alpha_curves,
    "tau_against_nodes": tau_against_nodes,
    "time_split": time_split,
}
"""All charts by the name of their file."""
