"""The picture of consecutive rounds: a staircase below the text."""

import dataclasses
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from eagle_jax.figures.theme import THEMES, Theme
from eagle_jax.figures.timeline import draw_strip
from tests.evaluation.played_rounds import FIRST, ROUNDS, SECOND, decode


@pytest.fixture(params=THEMES.values(), ids=THEMES)
def theme(request: pytest.FixtureRequest) -> Theme:
    return request.param


@pytest.fixture
def figure(theme: Theme) -> Figure:
    return draw_strip(ROUNDS, decode, theme=theme)


def labels(figure: Figure) -> dict[str, mpl.text.Text]:
    """The tokens in boxes by round and node."""
    actual = figure.findobj(lambda artist: (artist.get_gid() or "").startswith("label-node-"))
    return {text.get_gid().removeprefix("label-node-"): text for text in actual}


def test_accepted_tokens_and_what_stood_beside_them(figure: Figure) -> None:
    assert {name: text.get_text() for name, text in labels(figure).items()} == {
        "0-0": "Once",
        "0-1": "␣upon",
        "0-2": "↵",  # its child was never verified
        "0-3": "␣a",
        "0-5": "$x$",
        "0-own": "␣time",
        "1-0": "␣time",
        "1-1": "␣there",
        "1-2": "␣was",  # node 3 is no candidate
        "1-own": "$x$",
    }


def test_each_stands_below_the_token_that_it_guesses(figure: Figure) -> None:
    places = {name: text.get_position() for name, text in labels(figure).items()}
    assert [places[f"0-{name}"][0] for name in ("0", "1", "3", "own")] == [0, 1, 2, 3]
    assert [places[f"0-{name}"][0] for name in ("2", "5")] == [1, 3]
    assert [places[f"1-{name}"][0] for name in ("0", "1", "2", "own")] == [3, 4, 4, 4]
    assert len(set(places.values())) == len(places)
    first, second = ({y for name, (_, y) in places.items() if name.startswith(str(n))} for n in (0, 1))
    assert max(first) < min(second)
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert ticks == ["Once", "␣upon", "␣a", "␣time", "$x$"]
    assert figure.axes[0].get_title(loc="left") == "4 tokens in 2 rounds"


def test_the_path_is_thick(figure: Figure, theme: Theme) -> None:
    edges = {
        artist.get_gid().removeprefix("edge-"): artist
        for artist in figure.findobj(lambda artist: (artist.get_gid() or "").startswith("edge-"))
    }
    accent = mpl.colors.to_rgba(theme.accent)
    assert {name for name, edge in edges.items() if edge.get_edgecolor() == accent} == {"0-1", "0-3"}
    assert edges["0-1"].get_linewidth() > 3 * edges["0-2"].get_linewidth()


def test_an_answer_that_was_cut_off_short_of_what_was_found() -> None:
    cut = dataclasses.replace(FIRST, written=[1, 3])
    figure = draw_strip([cut], decode)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["Once", "␣upon", "␣a", ""]
    assert labels(figure)["0-own"].get_text() == "␣time"


def test_rounds_that_do_not_follow_each_other() -> None:
    with pytest.raises(ValueError, match="ends at token 6, the next begins at another text"):
        draw_strip([SECOND, FIRST], decode)
    with pytest.raises(ValueError, match="no rounds"):
        draw_strip([], decode)


def test_it_can_be_saved(figure: Figure, tmp_path: Path) -> None:
    figure.savefig(tmp_path / "strip.svg")  # warnings are errors
    assert (tmp_path / "strip.svg").stat().st_size > 2000
