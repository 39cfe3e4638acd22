"""Pictures of the steps of a round show the round's arrays."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from eagle_jax.drafters.eagle2 import Candidates
from eagle_jax.figures.nodes import COLOURS
from eagle_jax.figures.round_steps import draw_candidates, draw_mask, draw_rows
from eagle_jax.figures.theme import LIGHT, THEMES, Theme
from tests.evaluation.played_rounds import FIRST, WORDS

# k = 2, one pass after the first reading: 2 + 4 candidates.
CANDIDATES = Candidates(
    tokens=np.array([1, 2, 3, 4, 5, 6]),
    log_values=np.log(np.array([0.6, 0.3, 0.3, 0.12, 0.15, 0.03])),
    parents=np.array([-1, -1, 0, 0, 1, 1]),
    picked=np.array([0, 1, 2, 4]),
    logits=np.zeros((3, 8)),
)

every_theme = pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES)


def cells(figure: Figure) -> dict[int, mpl.patches.Rectangle]:
    actual = figure.findobj(lambda artist: (artist.get_gid() or "").startswith("cell-"))
    return {int(cell.get_gid().removeprefix("cell-")): cell for cell in actual}


def name(token: int) -> str:
    return WORDS[token].strip()


@every_theme
def test_candidates(theme: Theme) -> None:
    figure = draw_candidates(CANDIDATES, 2, name, [0, 1, 2, 4], title="fed", theme=theme)
    figure.draw_without_rendering()
    drawn = cells(figure)
    colours, accent = mpl.colormaps[COLOURS], mpl.colors.to_rgba(theme.accent)
    for index, share in enumerate([0.6, 0.3, 0.5, 0.2, 0.5, 0.1]):  # given the parent
        np.testing.assert_allclose(drawn[index].get_facecolor(), colours(share), atol=0.01)
    assert [index for index in drawn if drawn[index].get_edgecolor() == accent] == [0, 1, 2, 4]
    assert [cell.get_y() // 1 for cell in drawn.values()] == [0, 0, 1, 1, 1, 1]
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert shown == [name(token) for token in CANDIDATES.tokens]


def test_values_of_paths() -> None:
    drawn = cells(draw_candidates(CANDIDATES, 2, name, [], values=True))
    for index, share in enumerate([0.6, 0.3, 0.3, 0.12, 0.15, 0.03]):
        np.testing.assert_allclose(drawn[index].get_facecolor(), mpl.colormaps[COLOURS](share), atol=0.01)


@every_theme
def test_mask(theme: Theme) -> None:
    tree = FIRST.tree
    figure = draw_mask(tree, [7, 6], 40, name, theme=theme)
    figure.draw_without_rendering()
    (image,) = figure.axes[0].get_images()
    seen = (np.asarray(image.get_array()) == mpl.colors.to_rgba(theme.series[0])).all(-1)
    assert not seen[:, :2].any()
    assert [np.flatnonzero(row[2:]).tolist() for row in seen[:6]] == [
        [0],
        [0, 1],
        [0, 2],
        [0, 1, 3],
        [0, 2, 4],
        [0, 1, 3, 5],
    ]
    rows = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert rows[:4] == ["Once at 40", "upon at 41", " at 41", "a at 42"]


@every_theme
def test_rows(theme: Theme) -> None:
    arrays = {"before": (np.ones((3, 4)), ["a", "b"]), "after": (-2 * np.ones((5, 4)), [])}
    figure = draw_rows(arrays, theme=theme)
    figure.draw_without_rendering()
    for axes, (title, (rows, names)) in zip(figure.axes, arrays.items(), strict=True):
        assert axes.get_title(loc="left") == title
        np.testing.assert_array_equal(axes.get_images()[0].get_array(), rows)
        assert axes.get_images()[0].get_clim() == (-2, 2)
        assert [tick.get_text() for tick in axes.get_yticklabels()] == names


def test_notebooks_show_pictures() -> None:
    figure = draw_rows({"one": (np.ones((2, 2)), [])}, theme=LIGHT)
    assert figure._repr_png_().startswith(b"\x89PNG")
