"""tau against the text that heads were trained on, with a line that says what more of it would bring.

EAGLE-3's authors found acceptance to grow with the logarithm of the data (arXiv 2503.01840, figure 1), so the line is
tau = a + b log2(tokens), fitted by least squares. It is a description of what was measured: nothing promises that it
goes on.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from eagle_jax.figures.theme import LIGHT, PANEL, Theme, drawn_in, legend_above, series_look
from eagle_jax.files import Location, check_fields, read_jsonl

REACH = 50e6
"""Tokens up to which the line is drawn."""


class TextPoint(NamedTuple):
    """A head, and how well it drafts."""

    label: str
    tokens: int  # supervised ones that it saw in training, repeated ones counted each time
    tau: Mapping[str, float]  # by temperature


class LogLine(NamedTuple):
    """tau = at_million + per_doubling * log2(tokens / 1e6)."""

    at_million: float
    per_doubling: float

    def __call__(self, tokens: float) -> float:
        """tau after so many tokens."""
        return self.at_million + self.per_doubling * float(np.log2(tokens / 1e6))


def read_points(path: str | pathlib.Path) -> list[TextPoint]:
    """The heads of a file, one JSON object a line: `label`, `tokens`, `tau` by temperature.

    Raises:
      ValueError: a line that is none, or fewer than two of them.
    """
    points = read_jsonl(path, _point, what="a head with its tokens and tau")
    if len(points) < 2:
        raise ValueError(f"{path} holds {len(points)} heads, a curve needs 2")
    return points


def _point(record: dict[str, Any], location: Location) -> TextPoint:
    del location
    check_fields(record, TextPoint._fields)
    label, tokens, tau = (record[name] for name in TextPoint._fields)
    if not isinstance(tokens, int) or tokens < 1 or not isinstance(tau, dict) or not tau:
        raise ValueError(f"tokens are {tokens!r} and tau {tau!r}, expected a number above 0 and numbers by temperature")
    return TextPoint(label, tokens, {str(name): float(value) for name, value in tau.items()})


def fit(points: Sequence[TextPoint], temperature: str) -> LogLine:
    """The line through the heads that were measured at a temperature.

    Raises:
      ValueError: all of them saw as many tokens.
    """
    some = [point for point in points if temperature in point.tau]
    if len({point.tokens for point in some}) < 2:
        raise ValueError(f"heads at T = {temperature} saw {len({point.tokens for point in some})} amounts of text")
    doublings = np.log2([point.tokens / 1e6 for point in some])
    slope, offset = np.polyfit(doublings, [point.tau[temperature] for point in some], 1)
    return LogLine(float(offset), float(slope))


def tau_by_tokens(points: Sequence[TextPoint], theme: Theme = LIGHT) -> Figure:
    """A mark a head and a line for each temperature, up to `REACH` tokens."""
    temperatures = list(dict.fromkeys(name for point in points for name in point.tau))
    with drawn_in(theme, PANEL + 2, 4.9) as figure:
        axes = figure.add_subplot()
        for number, temperature in enumerate(temperatures):
            some = [point for point in points if temperature in point.tau]
            line, look = fit(some, temperature), series_look(theme, number)
            ends = [min(point.tokens for point in some), max(REACH, *(point.tokens for point in some))]
            axes.plot(ends, [line(tokens) for tokens in ends], color=look["color"], linestyle="dashed", linewidth=1.2)
            marks = look | {"linestyle": "none"}
            axes.plot(
                [point.tokens for point in some],
                [point.tau[temperature] for point in some],
                label=f"T = {temperature}",
                **marks,
            )
        axes.set_xscale("log")
        axes.set_xlabel("supervised tokens seen in training")
        axes.set_ylabel("tokens per round (tau)")
        legend_above(figure)
    return figure


def fits_in_words(points: Sequence[TextPoint]) -> str:
    """What the lines say, a sentence for each temperature."""
    parts = []
    for temperature in dict.fromkeys(name for point in points for name in point.tau):
        line = fit(points, temperature)
        parts.append(
            f"T = {temperature}: tau {line.at_million:.2f} after a million tokens, {line.per_doubling:+.2f} with every "
            f"doubling, {line(REACH):.2f} after {REACH / 1e6:g} million if that went on."
        )
    return " ".join(parts)
