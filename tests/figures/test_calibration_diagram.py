"""The reliability diagram shows what was counted."""

import numpy as np
import pytest

from eagle_jax.evaluation.calibration import measure_calibration
from eagle_jax.figures.calibration_diagram import reliability_diagram
from eagle_jax.figures.theme import THEMES, Theme
from tests.evaluation.played_rounds import ROUNDS


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_the_diagram(theme: Theme) -> None:
    figure = reliability_diagram({"T = 0": ROUNDS * 30, "T = 1": ROUNDS * 10}, theme)
    figure.draw_without_rendering()
    tokens, paths = figure.axes[:2]
    (line,) = [line for line in tokens.get_lines() if line.get_label() == "T = 0"]
    np.testing.assert_allclose(line.get_xdata(), [(0.5 + 0.11 / 0.45) / 3, 0.55, 0.45 / 0.55], rtol=1e-6)
    np.testing.assert_allclose(line.get_ydata(), [0, 0.5, 1])
    curves = {line.get_label(): line.get_xdata() for line in paths.get_lines()}
    np.testing.assert_allclose(curves["T = 0"], [0.13, 0.25, 0.45, 0.55], rtol=1e-6)
    np.testing.assert_allclose(curves["T = 1"], [0.13, 0.25, 0.55], rtol=1e-6)  # 10 paths of 0.45 are too few
    heights = [bar.get_height() for bar in figure.axes[2].patches]
    assert sum(heights) == len(measure_calibration(ROUNDS * 40).accepted)
