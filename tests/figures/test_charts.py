"""Charts of synthetic rows show the rows' numbers."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from eagle_jax.figures import charts, time_charts
from eagle_jax.figures.theme import THEMES, Theme, ink_on, save
from tests.evaluation.synthetic import METHODS, ROUNDS, TASKS, make_row, make_rows

ROWS = make_rows()


def lines(figure: Figure, panel: int = 0) -> dict[str, tuple[list[float], list[float]]]:
    """The curves of a panel by the name in the legend."""
    actual = figure.axes[panel].get_lines()
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in actual
        if not str(line.get_label()).startswith("_")
    }


def bars(figure: Figure, panel: int = 0) -> list[BarContainer]:
    return [actual for actual in figure.axes[panel].containers if isinstance(actual, BarContainer)]


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
@pytest.mark.parametrize("chart", charts.CHARTS.values(), ids=charts.CHARTS)
def test_all_charts_can_be_drawn(chart: Callable[..., Figure], theme: Theme) -> None:
    figure = chart(ROWS, theme)
    figure.draw_without_rendering()  # warnings are errors
    assert figure.get_facecolor() == mpl.colors.to_rgba(theme.background)
    assert {text.get_color() for text in figure.findobj(mpl.text.Text) if text.get_text()} <= {
        theme.ink,
        *("#ffffff", "#111111"),
    }
    assert min(text.get_fontsize() for text in figure.findobj(mpl.text.Text) if text.get_text()) >= 10
    assert mpl.rcParams["axes.facecolor"] == mpl.rcParamsDefault["axes.facecolor"]


def test_speedup_by_method() -> None:
    figure = charts.speedup_by_method(ROWS)
    actual = sorted(patch.get_width() for container in bars(figure) for patch in container)
    wanted = sorted(
        np.mean([make_row(label, task, temperature)["speedup"] for task in TASKS])
        for label in METHODS
        for temperature in (0.0, 1.0)
    )
    np.testing.assert_allclose(actual, wanted)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == list(METHODS)


def test_tau_by_depth_ends_at_tau() -> None:
    figure = charts.tau_by_depth([make_row("eagle3, 60 nodes", "gsm8k", 1.0)])
    depths, taus = lines(figure)["eagle3, 60 nodes"]
    assert depths == list(range(9))
    assert taus[0] == 1
    assert taus[-1] == pytest.approx(make_row("eagle3, 60 nodes", "gsm8k", 1.0)["tau"])


def test_n_alpha_leaves_out_what_few_rounds_have_seen() -> None:
    row = make_row("eagle3, 16 nodes", "gsm8k", 0.0, accepted=[380, 10, 6, 4])
    depths, alphas = lines(charts.n_alpha_curves([row]))["eagle3, 16 nodes"]
    assert depths == [0, 1]  # 400 rounds, then 20, then 10
    assert alphas == pytest.approx([20 / 400, 10 / 20])


def test_plain_decoding_has_no_line_beside_others() -> None:
    drafted = make_row("eagle3, 16 nodes", "gsm8k", 0.0)
    plain = {**drafted, "label": "plain", "accepted": [100]}
    for chart in (charts.tau_by_depth, charts.n_alpha_curves):
        assert list(lines(chart([plain, drafted]))) == ["eagle3, 16 nodes"]
    assert lines(charts.tau_by_depth([plain])) == {"plain": ([0], [1.0])}


def test_tau_against_nodes_goes_through_the_best_tree_of_each_size() -> None:
    eagle3 = [row for row in ROWS if row["method"] == "eagle3" and row["task"] == "gsm8k" and not row["temperature"]]
    worse = {**eagle3[0], "label": "wide", "tau": 1.5, "speedup": 0.5}
    figure = charts.tau_against_nodes([*eagle3, worse])
    assert lines(figure)["eagle3, T = 0"] == ([16, 60], [eagle3[1]["tau"], eagle3[0]["tau"]])
    assert lines(figure, 1)["eagle3, T = 0"] == ([16, 60], [eagle3[1]["speedup"], eagle3[0]["speedup"]])


def test_speedup_by_task() -> None:
    figure = charts.speedup_by_task(ROWS)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["T = 0", "T = 1"]
    assert [tick.get_text() for tick in figure.axes[1].get_xticklabels()] == list(TASKS)
    for panel, temperature in enumerate((0.0, 1.0)):
        actual = {
            (bar.get_label(), round(patch.get_x())): patch.get_height() for bar in bars(figure, panel) for patch in bar
        }
        wanted = {
            (label, place): make_row(label, task, temperature)["speedup"]
            for label in METHODS
            for place, task in enumerate(TASKS)
        }
        assert actual == pytest.approx(wanted)


def test_tau_against_depth() -> None:
    size = {"nodes": 16, "depth": 7, "top_k": 4}
    deep = make_row("eagle3, 16 nodes", "gsm8k", 0.0, tau=2.5, tree=size) | {"label": "deep"}
    plain = make_row("prompt lookup", "gsm8k", 0.0, tree={"nodes": 1, "depth": None, "top_k": None})
    rows = [make_row("eagle3, 16 nodes", task, 0.0) for task in TASKS]
    figure = charts.tau_against_depth([deep, *rows, plain, make_row("eagle3, 60 nodes", "gsm8k", 1.0)])
    first, second = lines(figure), lines(figure, 1)
    assert first["eagle3, 16 nodes, top-k 4"] == ([5, 7], [pytest.approx(np.mean([r["tau"] for r in rows])), 2.5])
    assert first["eagle3, 60 nodes, top-k 10"] == ([], [])
    assert second["eagle3, 60 nodes, top-k 10"][0] == [7]
    assert len(first) == 2


def test_what_differs_in_noise_is_no_line() -> None:
    """Trees of one size and depth with and without the target's noise."""
    shared = make_row("eagle3, 16 nodes", "gsm8k", 1.0)
    own = {**shared, "label": "plain top-k", "share_noise": False, "tau": 1.5}
    actual = lines(charts.tau_against_depth([shared, own]))
    name = "eagle3, 16 nodes, top-k 4"
    assert actual == {name: ([5], [pytest.approx(shared["tau"])]), f"{name}, own noise": ([5], [1.5])}


def test_round_split_adds_up() -> None:
    costs = {
        "small": {"round": 10.0, "draft": 3.0, "target": 5.0, "observe": 2.5, "rest": -0.5},
        "large": {"round": 40.0, "draft": 10.0, "target": 25.0, "observe": 3.0, "rest": 2.0},
    }
    for theme in THEMES.values():
        figure = time_charts.round_split(costs, 4.0, theme)
        figure.draw_without_rendering()
        widths = {bar.get_label(): [patch.get_width() for patch in bar] for bar in bars(figure)}
        assert widths == {
            "drafting": [3, 10],
            "the target's pass": [5, 25],
            "reading what was accepted": [2.5, 3],
            "noise, verification, commit": [0, 2],  # a difference of measurements may be negative
        }
        assert figure.axes[0].get_lines()[0].get_xdata() == [4.0, 4.0]


def test_time_split_adds_up() -> None:
    row = make_row("eagle3, 60 nodes", "gsm8k", 0.0)
    prompt, one_pass, more = bars(charts.time_split_chart([row]))
    assert [patch.get_width() for patch in prompt] == pytest.approx([1400 / row["tokens"], 1500 / row["tokens"]])
    assert one_pass[0].get_width() == pytest.approx(30 * (row["tokens"] - 10) / row["tokens"])
    assert one_pass[1].get_width() == pytest.approx(30 * ROUNDS / row["tokens"])
    total = one_pass[1].get_width() + more[1].get_width()
    assert total == pytest.approx(1000 * row["decode_seconds"] / row["tokens"])
    assert more[0].get_width() == 0


def test_a_number_that_is_missing_leaves_a_gap() -> None:
    rows = [make_row("eagle3, 60 nodes", "gsm8k", 0.0), make_row("prompt lookup", "gsm8k", 0.0, speedup=None, tau=None)]
    for chart in charts.CHARTS.values():
        chart(rows)
    assert len(bars(charts.speedup_by_method(rows))) == 1


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(charts.n_alpha_curves(ROWS[:1]), tmp_path, name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_ink() -> None:
    assert [ink_on(color) for color in ("#000000", "#0072b2", "#f0e442", "#ffffff")] == [
        "#ffffff",
        "#ffffff",
        "#111111",
        "#111111",
    ]
