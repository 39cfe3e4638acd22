"""Charts of training runs, from their metrics.jsonl (written by `training.loop`)."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter

from eagle_jax.figures.theme import LIGHT, PANEL, Theme, drawn_in, legend_above, series_look
from eagle_jax.files import read_jsonl, with_fields

Line = dict[str, Any]

DASHES: dict[str, Any] = {"heldout": "-", "real": (0, (3, 1.5))}
"""Dashes by the kind of a line; training text is noisy and drawn faintly."""


def read_metrics(path: str | pathlib.Path) -> list[Line]:
    """The lines of a run's metrics.jsonl.

    Raises:
      ValueError: a line that is not one of a run's metrics, or no line at all.
    """
    lines = read_jsonl(path, with_fields("step", "kind"), what="a line of a run's metrics")
    if not lines:
        raise ValueError(f"{path} holds no line")
    return lines


def training_curves(runs: Mapping[str, Sequence[Line]], theme: Theme = LIGHT) -> Figure:
    """Two panels over the steps: the loss, and tau, simulated on text and measured by the decoder; a colour a run.

    Args:
      runs: lines by name of the run.
      theme: colours.
    """
    with drawn_in(theme, 2 * PANEL + 1.4, 4.9 + 0.27 * len(runs)) as figure:
        loss, tau = figure.subplots(1, 2)
        for number, (name, lines) in enumerate(runs.items()):
            look = series_look(theme, number) | {"markersize": 4}
            _curve(loss, lines, "train", "loss", f"{name}: loss", look)
            _curve(tau, lines, "train", "simulated_tau", f"{name}: training text", {**look, "alpha": 0.45})
            _curve(tau, lines, "heldout", "simulated_tau", f"{name}: held out", look)
            _curve(tau, lines, "real", "tau", f"{name}: decoder, T = 0", {**look, "marker": "*"})
            _curve(tau, lines, "real", "tau_at_temperature_1", f"{name}: decoder, T = 1", {**look, "marker": "1"})
        for axes, text in ((loss, "loss"), (tau, "tau")):
            axes.set_xlabel("step")
            axes.set_ylabel(text)
        loss.set_yscale("log")
        loss.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        for set_formatter in (loss.yaxis.set_major_formatter, loss.yaxis.set_minor_formatter):
            set_formatter(StrMethodFormatter("{x:g}"))
        legend_above(figure)
    return figure


def accuracy_by_step(lines: Sequence[Line], theme: Theme = LIGHT) -> Figure:
    """Held-out accuracy of each unrolled step of one run: agreement with the target when fed its own output."""
    held = [line for line in lines if line["kind"] == "heldout"]
    names = sorted({name for line in held for name in line if name.startswith("accuracy_")})
    with drawn_in(theme, PANEL + 2, 4.6) as figure:
        axes = figure.add_subplot()
        for number, name in enumerate(names):
            look = series_look(theme, number) | {"markersize": 4}
            _curve(axes, held, "heldout", name, f"unrolled step {name.removeprefix('accuracy_')}", look)
        axes.set_xlabel("step of training")
        axes.set_ylabel("agrees with the target")
        axes.set_ylim(bottom=0)
        legend_above(figure)
    return figure


def _curve(axes: Axes, lines: Sequence[Line], kind: str, name: str, label: str, look: dict[str, Any]) -> None:
    """One number over the steps, where the run has it."""
    points = [(line["step"], line[name]) for line in lines if line["kind"] == kind and line.get(name) is not None]
    if points:
        style = look | ({"marker": ""} if kind == "train" else {"linestyle": DASHES[kind]})
        axes.plot([x for x, _ in points], [y for _, y in points], label=label, **style)
