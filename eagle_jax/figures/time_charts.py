"""Charts of time: where a written token's time goes, from rows, and where a round's goes, measured part by part."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from eagle_jax.evaluation.tables import Row, distinct, groups
from eagle_jax.figures.theme import LIGHT, PANEL, Theme, drawn_in, ink_on, legend_above, reference_look

PARTS = {
    "draft": "drafting",
    "target": "the target's pass",
    "observe": "reading what was accepted",
    "rest": "noise, verification, commit",
}
"""Parts of a round as `time_split.time_split_chart` names them."""


def time_split_chart(rows: Sequence[Row], theme: Theme = LIGHT) -> Figure:
    """Stacked bars: where the time of a written token goes, a panel per temperature.

    A round costs at least a target pass over one token, as in plain decoding, shared by the tokens that the round
    writes. The rest is drafting, and verifying a tree instead of one token.
    """
    rows = [row for row in rows if row["tree"]["depth"] is not None] or rows  # plain decoding has its bar
    parts = ("reading the prompt", "a pass over one token", "drafting, and checking more")
    labels, temperatures = distinct(rows, "label"), distinct(rows, "temperature")
    with drawn_in(theme, 3.2 + PANEL * len(temperatures), 1.9 + 0.42 * (len(labels) + 1)) as figure:
        panels = figure.subplots(1, len(temperatures), sharex=True, sharey=True, squeeze=False)[0]
        for axes, temperature in zip(panels, temperatures, strict=True):
            own = [row for row in rows if row["temperature"] == temperature]
            bars = {0: _plain_split(own)}
            bars |= {labels.index(label) + 1: _split(of_method) for (label,), of_method in groups(own, "label")}
            left = np.zeros(len(bars))
            for number, part in enumerate(parts):
                widths = np.array([split[number] for split in bars.values()])
                axes.barh(list(bars), widths, 0.72, left=left, color=theme.series[number], label=part)
                left += widths
            axes.grid(visible=False, axis="y")
            axes.set_title(f"T = {temperature:g}", loc="left")
            axes.set_xlabel("milliseconds per token")
        panels[0].set_yticks(range(len(labels) + 1), ["plain decoding", *labels])
        panels[0].set_ylim(len(labels) + 0.5, -0.5)
        legend_above(figure)
    return figure


def _split(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Milliseconds a token of the three parts."""
    tokens, rounds = (sum(row[name] for row in rows) for name in ("tokens", "rounds"))
    prefill = 1e3 * sum(row["prefill_seconds"] for row in rows) / tokens
    decode = 1e3 * sum(row["decode_seconds"] for row in rows) / tokens
    passes = sum(row["plain_tokens"] - row["turns"] for row in rows)
    one_pass = 1e3 * sum(row["plain_decode_seconds"] for row in rows) / max(1, passes)
    floor = min(decode, one_pass * rounds / tokens)
    return prefill, floor, decode - floor


def _plain_split(rows: Sequence[Row]) -> tuple[float, float, float]:
    """The same of plain decoding."""
    tokens = sum(row["plain_tokens"] for row in rows)
    prefill, decode = (1e3 * sum(row[f"plain_{name}_seconds"] for row in rows) for name in ("prefill", "decode"))
    return prefill / tokens, decode / tokens, 0.0


def round_split(costs: Mapping[str, Mapping[str, float]], plain: float, theme: Theme = LIGHT) -> Figure:
    """Stacked bars: milliseconds of the parts of a round, a bar per method.

    Args:
      costs: what `time_split.time_split_chart` measured, by label.
      plain: milliseconds of a round of plain decoding, drawn as a line.
      theme: colours.
    """
    with drawn_in(theme, 9.5, 2.0 + 0.55 * len(costs)) as figure:
        axes = figure.add_subplot()
        left, readable = np.zeros(len(costs)), 0.06 * max(cost["round"] for cost in costs.values())
        for number, (part, name) in enumerate(PARTS.items()):
            # A difference of two measurements may come out below zero.
            widths = np.array([max(0.0, cost[part]) for cost in costs.values()])
            color = theme.series[number]
            bars = axes.barh(list(costs), widths, 0.7, left=left, color=color, label=name)
            texts = [f"{width:.0f}" if width > readable else "" for width in widths]
            axes.bar_label(bars, texts, label_type="center", color=ink_on(color), fontsize=10)
            left += widths
        axes.axvline(plain, **{**reference_look(theme), "color": theme.ink, "linewidth": 1.8})
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("milliseconds per round; dashed: a round of plain decoding")
        legend_above(figure)
    return figure
