"""Charts of rows (`eagle_jax.evaluation.rows`): pure functions from rows to a figure, in one style.

Whatever a chart does not distinguish (tasks, seeds) is summed or averaged. Rows of one target, dtype and device at a
time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eagle_jax.evaluation.metrics import well_seen
from eagle_jax.evaluation.tables import Row, accepted, distinct, groups, mean
from eagle_jax.figures.theme import LIGHT, PANEL, Theme, drawn_in, ink_on, legend_above, reference_look, series_look
from eagle_jax.figures.time_charts import time_split_chart

LATER_LINES = ("dashed", "dotted", "dashdot")
"""From the second temperature on, where colours denote methods; their markers are hollow."""


def speedup_by_method(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Bars: mean speed-up of each method over the tasks, a bar per temperature; the tasks are dots."""
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
        axes.axvline(1, **reference_look(theme))
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.45, -0.55)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("speed-up over plain decoding; dots are tasks")
        legend_above(figure)
    return figure


def speedup_by_task(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Bars: speed-up on each task, a bar per method, a panel per temperature."""
    labels, temperatures, tasks = (distinct(rows, name) for name in ("label", "temperature", "task"))
    wide = 0.8 / len(labels)
    with drawn_in(theme, max(7.0, 1.6 + 0.26 * len(tasks) * (len(labels) + 1)), 1.2 + 3 * len(temperatures)) as figure:
        panels = figure.subplots(len(temperatures), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, temperature in zip(panels, temperatures, strict=True):
            own = [row for row in rows if row["temperature"] == temperature]
            for (label, task), of_task in groups(own, "label", "task"):
                value, number = mean(of_task, "speedup"), labels.index(label)
                if value is None:
                    continue
                look = series_look(theme, number)
                hatch: dict[str, Any] = (
                    {"hatch": "//", "edgecolor": theme.background} if number >= len(theme.series) else {}
                )
                x = tasks.index(task) - 0.4 + wide * (number + 0.5)
                axes.bar(x, value, 0.88 * wide, color=look["color"], label=label, **hatch)
            axes.axhline(1, **reference_look(theme))
            axes.grid(visible=False, axis="x")
            axes.set_title(f"T = {temperature:g}", loc="left")
            axes.set_ylabel("speed-up")
        panels[-1].set_xticks(range(len(tasks)), tasks)
        legend_above(figure)
    return figure


def tau_by_depth(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Lines: tau if no round accepted more than so many tokens, up to the tree's own depth.

    Last rounds, which the end of the answer may cut, count with all that they accepted: a little above tau.
    """

    def curve(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
        counts = accepted(rows)
        reached = np.cumsum(counts[::-1])[::-1] / max(1, counts.sum())
        return list(range(len(counts))), np.cumsum(reached).tolist()

    return _lines(rows, theme, curve, "accepted tokens at most", "tokens per round (tau)")


def n_alpha_curves(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Lines: the chance that the next token is accepted when n drafted ones were (`acceptance`)."""

    def curve(rows: Sequence[Row]) -> tuple[list[int], list[float]]:
        alphas = well_seen(accepted(rows))
        return [*range(len(alphas))], alphas

    figure = _lines(rows, theme, curve, "accepted before (n)", "chance of one more (n-alpha)")
    figure.axes[0].set_ylim(0, 1)
    return figure


def tau_against_nodes(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Tau, and speed-up where it was measured, against the tree's nodes: a mark a tree, lines through the best."""
    methods, temperatures = distinct(rows, "method"), distinct(rows, "temperature")
    measured = {"tau": "tokens per round (tau)", "speedup": "speed-up"}
    if mean(rows, "speedup") is None:
        del measured["speedup"]
    with drawn_in(theme, PANEL * len(measured) + 1, 4.9) as figure:
        panels = figure.subplots(1, len(measured), squeeze=False)[0]
        for axes, (name, text) in zip(panels, measured.items(), strict=True):
            for (method, temperature), own in groups(rows, "method", "temperature"):
                points = _points(own, name)
                best = {nodes: max(y for x, y in points if x == nodes) for nodes, _ in points}
                look = series_look(theme, methods.index(method))
                if temperature != temperatures[0]:
                    line = LATER_LINES[(temperatures.index(temperature) - 1) % len(LATER_LINES)]
                    look |= {"linestyle": line, "markerfacecolor": theme.background}
                axes.plot(*zip(*points, strict=True), **{**look, "linestyle": "none", "alpha": 0.35})
                axes.plot(list(best), list(best.values()), label=f"{method}, T = {temperature:g}", **look)
            axes.set_xscale("log", base=2)
            sizes = sorted({row["tree"]["nodes"] for row in rows})
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel("nodes of the tree, the root included")
            axes.set_ylabel(text)
            if name == "speedup":
                axes.axhline(1, **reference_look(theme))
        legend_above(figure)
    return figure


def tau_against_depth(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Lines: tau against the depth of the tree, a line for each number of nodes and top-k, a panel per temperature."""
    drafted = [row for row in rows if row["tree"]["depth"] is not None]
    labels: dict[tuple[str, int], set[str]] = {}
    for row in drafted:
        labels.setdefault((_kind(row), row["tree"]["depth"]), set()).add(row["label"])
    trees: dict[str, list[Row]] = {}
    for row in drafted:  # two ways to draft one tree are two lines
        alone = len(labels[_kind(row), row["tree"]["depth"]]) == 1
        trees.setdefault(_kind(row) if alone else row["label"], []).append(row)
    temperatures = distinct(rows, "temperature")
    with drawn_in(theme, 0.8 + PANEL * len(temperatures), 4.4 + 0.27 * len(trees)) as figure:
        panels = figure.subplots(1, len(temperatures), sharex=True, sharey=True, squeeze=False)[0]
        for axes, temperature in zip(panels, temperatures, strict=True):
            for number, (text, own) in enumerate(trees.items()):
                points = _points([row for row in own if row["temperature"] == temperature], "tau", "depth")
                axes.plot([x for x, _ in points], [y for _, y in points], label=text, **series_look(theme, number))
            axes.set_title(f"T = {temperature:g}", loc="left")
            axes.set_xlabel("depth: levels below the first")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel("tokens per round (tau)")
        legend_above(figure)
    return figure


def _kind(row: Row) -> str:
    """Method and tree, its depth apart."""
    text = f"{row['method']}, {row['tree']['nodes']} nodes, top-k {row['tree']['top_k']}"
    own_noise = "" if row["share_noise"] else ", own noise"
    return text + own_noise + ("" if row["rule"] == "match" else f", {row['rule']}")


def _lines(
    rows: Sequence[Row],
    theme: Theme,
    curve: Callable[[Sequence[Row]], tuple[list[int], list[float]]],
    xlabel: str,
    ylabel: str,
) -> Figure:
    """A panel per temperature, a line of one colour per method; plain decoding only where there is nothing else."""
    rows = [row for row in rows if len(row["accepted"]) > 1] or rows
    labels, temperatures = distinct(rows, "label"), distinct(rows, "temperature")
    with drawn_in(theme, 0.8 + PANEL * len(temperatures), 4.4 + 0.27 * len(labels)) as figure:
        panels = figure.subplots(1, len(temperatures), sharex=True, sharey=True, squeeze=False)[0]
        for axes, temperature in zip(panels, temperatures, strict=True):
            own = [row for row in rows if row["temperature"] == temperature]
            for (label,), of_method in groups(own, "label"):
                number = labels.index(label)
                axes.plot(*curve(of_method), label=label, **series_look(theme, number))
            axes.set_title(f"T = {temperature:g}", loc="left")
            axes.set_xlabel(xlabel)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].set_ylabel(ylabel)
        legend_above(figure)
    return figure


def _points(rows: Sequence[Row], name: str, size: str = "nodes") -> list[tuple[int, float]]:
    """Size of each tree and its mean over tasks and seeds, small trees first."""
    means = ((own[0]["tree"][size], mean(own, name)) for _, own in groups(rows, "label"))
    return sorted((number, value) for number, value in means if value is not None)


CHARTS: dict[str, Callable[[Sequence[Row], Theme], Figure]] = {
    "speedup_by_method": speedup_by_method,
    "speedup_by_task": speedup_by_task,
    "tau_by_depth": tau_by_depth,
    "n_alpha": n_alpha_curves,
    "tau_against_nodes": tau_against_nodes,
    "tau_against_depth": tau_against_depth,
    "time_split": time_split_chart,
}
"""All charts by the name of their file."""
