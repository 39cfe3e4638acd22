"""tau against tokens: the line through known points, and what is drawn."""

import json
from pathlib import Path

import pytest

from eagle_jax.figures.text_curve import REACH, TextPoint, fit, fits_in_words, read_points, tau_by_tokens
from eagle_jax.figures.theme import THEMES, Theme

POINTS = [
    TextPoint("a quarter", 250_000, {"0": 1.6, "1": 1.5}),
    TextPoint("half", 500_000, {"0": 1.8}),
    TextPoint("all", 1_000_000, {"0": 2.0, "1": 1.7}),
]


def test_line_through_the_points() -> None:
    """They are on lines, so these are found exactly."""
    line = fit(POINTS, "0")
    assert line == pytest.approx((2.0, 0.2))
    assert line(4e6) == pytest.approx(2.4)
    assert fit(POINTS, "1") == pytest.approx((1.7, 0.1))
    said = fits_in_words(POINTS)
    assert "T = 0: tau 2.00 after a million tokens, +0.20 with every doubling, 3.13 after 50 million" in said
    with pytest.raises(ValueError, match="heads at T = 1 saw 1 amounts of text"):
        fit(POINTS[:2], "1")


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_chart(theme: Theme) -> None:
    """A dashed line to 50 million tokens and marks, for each temperature."""
    figure = tau_by_tokens(POINTS, theme)
    figure.draw_without_rendering()
    greedy, marks, *sampled = figure.axes[0].get_lines()
    assert [tuple(point) for point in greedy.get_xydata()] == [
        pytest.approx((250_000, 1.6)),
        pytest.approx((REACH, fit(POINTS, "0")(REACH))),
    ]
    assert [tuple(point) for point in marks.get_xydata()] == [(point.tokens, point.tau["0"]) for point in POINTS]
    assert [line.get_label() for line in (marks, sampled[1])] == ["T = 0", "T = 1"]


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "curve.jsonl"
    path.write_text("".join(json.dumps(point._asdict()) + "\n" for point in POINTS))
    assert read_points(path) == POINTS
    for text, message in (
        (json.dumps(POINTS[0]._asdict()), "holds 1 heads, a curve needs 2"),
        ('{"label": "a", "tokens": 0, "tau": {"0": 1}}\n', "line 1: not a head with its tokens and tau"),
        ('{"label": "a", "tokens": 5}\n', "line 1: not a head with its tokens and tau"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_points(path)
