"""Calibration of the drafter, drawn: its confidence against the acceptance rate."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from eagle_jax.evaluation.calibration import BINS, in_bins, measure_calibration
from eagle_jax.evaluation.rounds import Round
from eagle_jax.figures.theme import LIGHT, PANEL, Theme, drawn_in, legend_above, reference_look, series_look


def reliability_diagram(rounds: Mapping[str, Sequence[Round]], theme: Theme = LIGHT) -> Figure:
    """Acceptance against confidence, of tokens and of paths, with intervals of 95 %; below, the nodes of each bin.

    Args:
      rounds: series by name, such as temperatures.
      theme: colours.
    """
    titles = {False: "a token, its parent accepted", True: "a path from the root"}
    with drawn_in(theme, 2 * PANEL + 0.6, 6.2) as figure:
        panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1))
        for (paths, title), (upper, lower) in zip(titles.items(), panels.T, strict=True):
            upper.plot([0, 1], [0, 1], **reference_look(theme))
            for number, (name, some) in enumerate(rounds.items()):
                judged, look = measure_calibration(some, paths=paths), series_look(theme, number)
                bins = in_bins(judged)
                upper.plot(bins.confidence, bins.accepted, label=name, **look)
                upper.vlines(bins.confidence, bins.low, bins.high, color=look["color"], linewidth=1.4)
                centres = (np.arange(BINS) + (number + 0.5) / len(rounds)) / BINS
                lower.bar(centres, bins.count, 0.9 / BINS / len(rounds), color=look["color"])
            upper.set_title(title, loc="left")
            upper.set_xlim(0, 1)
            upper.set_ylim(0, 1)
            lower.set_xlabel("confidence of the drafter" if not paths else "value: the product along the path")
            lower.set_yscale("log")
            lower.grid(visible=False, axis="x")
        panels[0, 0].set_ylabel("share accepted")
        panels[1, 0].set_ylabel("nodes")
        legend_above(figure)
    return figure
