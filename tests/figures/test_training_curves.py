"""Curves of a run show the lines of its metrics."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from eagle_jax.figures.theme import LIGHT, THEMES, Theme
from eagle_jax.figures.training_curves import accuracy_by_step, read_metrics, training_curves

LINES = [
    {"step": 10, "kind": "train", "loss": 9.0, "simulated_tau": 1.1},
    {"step": 20, "kind": "train", "loss": 6.0, "simulated_tau": 1.3},
    {"step": 20, "kind": "heldout", "simulated_tau": 1.2, "accuracy_0": 0.3, "accuracy_1": 0.2},
    {"step": 20, "kind": "real", "tau": 1.5, "tau_at_temperature_1": 1.4},
    {"step": 30, "kind": "heldout", "simulated_tau": 1.25, "accuracy_0": 0.4, "accuracy_1": 0.3},
]


def curves(figure: Figure, panel: int) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): [(x, y) for x, y in line.get_xydata()] for line in figure.axes[panel].get_lines()}


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_training_curves(theme: Theme) -> None:
    figure = training_curves({"eagle3": LINES, "short": LINES[:1]}, theme)
    figure.draw_without_rendering()
    assert curves(figure, 0) == {"eagle3: loss": [(10, 9.0), (20, 6.0)], "short: loss": [(10, 9.0)]}
    assert curves(figure, 1) == {
        "eagle3: training text": [(10, 1.1), (20, 1.3)],
        "eagle3: held out": [(20, 1.2), (30, 1.25)],
        "eagle3: decoder, T = 0": [(20, 1.5)],
        "eagle3: decoder, T = 1": [(20, 1.4)],
        "short: training text": [(10, 1.1)],
    }


def test_the_decoders_two_temperatures_can_be_told_apart() -> None:
    lines = {line.get_label(): line for line in training_curves({"eagle3": LINES}, LIGHT).axes[1].get_lines()}
    greedy, sampled = (lines[f"eagle3: decoder, T = {temperature}"] for temperature in (0, 1))
    assert greedy.get_marker() != sampled.get_marker()


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)
def test_accuracy_of_the_unrolled_steps(theme: Theme) -> None:
    figure = accuracy_by_step(LINES, theme)
    figure.draw_without_rendering()
    assert curves(figure, 0) == {
        "unrolled step 0": [(20, 0.3), (30, 0.4)],
        "unrolled step 1": [(20, 0.2), (30, 0.3)],
    }


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n\n".join(map(json.dumps, LINES)) + "\n")
    assert read_metrics(path) == LINES
    for text, message in (
        ("", "holds no line"),
        ('{"step": 1}\n', "line 1: not a line of a run's metrics"),
        (json.dumps(LINES[0]) + "\n[1]\n", "line 2: not a line of a run's metrics"),
        ("{\n", "line 1: not a line of a run's metrics"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_metrics(path)
