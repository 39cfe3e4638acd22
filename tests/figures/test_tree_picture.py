"""What the picture of a tree shows: its nodes, their tokens, the accepted path."""

import dataclasses
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from eagle_jax.evaluation.calibration import confidence
from eagle_jax.figures.nodes import COLOURS
from eagle_jax.figures.theme import DARK, LIGHT, Theme, ink_on
from eagle_jax.figures.tree_picture import draw_tree
from eagle_jax.types import NO_NODE, NO_PARENT, DraftTree, Verdict

WORDS = ["Once", " upon", "\n", " a", " time", " there", "中", "$x$"]

TREE = DraftTree(
    tokens=np.array([0, 1, 2, 3, 6, 7, 5, 0]),
    parents=np.array([NO_PARENT, 0, 0, 1, 1, 3, 2, NO_PARENT]),
    candidate=np.array([True, True, True, True, True, True, False, False]),
    log_values=np.log(np.array([1.0, 0.5, 0.25, 0.4, 0.05, 0.4, 0.2, 1.0])),
    max_depth=3,
)
VERDICT = Verdict(path=np.array([0, 1, 3, NO_NODE]), num_accepted=np.int32(2), next_token=np.int32(4))


def decode(ids: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in ids)


def parts(figure: Figure, kind: str) -> dict[str, object]:
    """The artists whose names begin so, by the rest of their names."""
    actual = figure.findobj(lambda artist: (artist.get_gid() or "").startswith(f"{kind}-"))
    return {artist.get_gid().removeprefix(f"{kind}-"): artist for artist in actual}


@pytest.fixture(params=[LIGHT, DARK], ids=["light", "dark"])
def theme(request: pytest.FixtureRequest) -> Theme:
    return request.param


@pytest.fixture
def figure(theme: Theme) -> Figure:
    return draw_tree(TREE, VERDICT, decode, theme=theme)


LISTS = DraftTree(
    tokens=np.array([0, 1, 7, 6, 3, 4, 2]),
    parents=np.array([NO_PARENT, 0, 0, 1, 1, 3, 3]),
    candidate=np.ones(7, bool),
    log_values=np.log(np.array([1.0, 0.5, 0.2, 0.3, 0.1, 0.1, 0.05])),
    max_depth=3,
)


def test_lists_of_slots_stand_above_the_tree(theme: Theme) -> None:
    """By depth, framed as the tree's node with this token, faded where the tree has none."""
    figure = draw_tree(TREE, VERDICT, decode, lists=LISTS, theme=theme)
    labels = {name: text.get_text() for name, text in parts(figure, "label-list").items()}
    assert labels == {"0-0": "␣upon", "0-1": "$x$", "1-0": r"\u4e2d", "1-1": "␣a", "2-0": "␣time", "2-1": "↵"}
    boxes = parts(figure, "list")
    assert {name for name, box in boxes.items() if box.get_edgecolor() == mpl.colors.to_rgba(theme.accent)} == {
        "0-0",
        "1-1",
    }
    assert boxes["2-0"].get_edgecolor() == mpl.colors.to_rgba(theme.bonus)
    assert {name for name, box in boxes.items() if (box.get_alpha() or 1) < 0.5} == {"0-1", "2-1"}
    assert boxes["1-0"].get_facecolor() == mpl.colormaps[COLOURS](confidence(LISTS)[3])
    lowest = max(box.get_bbox().y1 for box in boxes.values())
    assert lowest < min(node.get_bbox().y0 for node in parts(figure, "node").values())
    (axes,) = [axes for axes in figure.axes if axes.get_xticklabels()]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["root", "slot 0\ndepth 1", "slot 1\ndepth 2", "slot 2\ndepth 3"]
    assert any("listed, not in the tree" in text.get_text() for text in figure.findobj(mpl.text.Text))


def test_lists_that_are_deeper_than_the_tree() -> None:
    """All columns have a name and room."""
    few = {name: getattr(TREE, name)[:3] for name in ("tokens", "parents", "candidate", "log_values")}
    verdict = Verdict(path=np.array([0, NO_NODE, NO_NODE, NO_NODE]), num_accepted=np.int32(0), next_token=np.int32(4))
    figure = draw_tree(dataclasses.replace(TREE, **few), verdict, decode, lists=LISTS)
    (axes,) = [axes for axes in figure.axes if axes.get_xticklabels()]
    assert len(axes.get_xticklabels()) == 4
    assert max(box.get_bbox().x1 for box in parts(figure, "list").values()) < axes.get_xlim()[1]


def test_every_node_is_drawn_once_with_its_token(figure: Figure) -> None:
    labels = {name: text.get_text() for name, text in parts(figure, "label-node").items()}
    assert labels == {
        "0": "Once",
        "1": "␣upon",
        "2": "↵",
        "3": "␣a",
        "4": r"\u4e2d",
        "5": "$x$",
        "6": "␣there",
        "8": "␣time",  # the target's own; slot 7 is unused
    }
    assert parts(figure, "node").keys() == labels.keys()
    assert parts(figure, "edge").keys() == labels.keys() - {"0"}


def test_the_accepted_path_stands_out(figure: Figure, theme: Theme) -> None:
    edges = parts(figure, "edge")
    accent = mpl.colors.to_rgba(theme.accent)
    assert {name for name, edge in edges.items() if edge.get_edgecolor() == accent} == {"1", "3"}
    assert min(edges[name].get_linewidth() for name in "13") > 3 * edges["2"].get_linewidth()
    assert edges["8"].get_edgecolor() == mpl.colors.to_rgba(theme.bonus)
    nodes = parts(figure, "node")
    assert {name for name, node in nodes.items() if node.get_edgecolor() == accent} == {"0", "1", "3"}


def test_confidence_is_colour_and_what_cannot_be_accepted_is_faded(figure: Figure) -> None:
    np.testing.assert_allclose(confidence(TREE)[[0, 1, 3, 4, 5]], [1.0, 0.5, 0.8, 0.1, 1.0])
    nodes = parts(figure, "node")
    assert nodes["3"].get_facecolor() == mpl.colormaps[COLOURS](confidence(TREE)[3])
    assert {name for name, node in nodes.items() if (node.get_alpha() or 1) < 0.5} == {"6"}
    # What is faded takes after the background, and its label must be read on that.
    faded, background = parts(figure, "label-node")["6"], figure.get_facecolor()
    assert faded.get_color() == ink_on(background)


def test_the_title_counts(figure: Figure) -> None:
    assert figure.axes[0].get_title(loc="left") == "5 tokens drafted, 2 accepted, 3 written"
    assert draw_tree(TREE, VERDICT, decode, title="A round").axes[0].get_title(loc="left") == "A round"


def test_what_is_faded_is_named(figure: Figure) -> None:
    def legend(figure: Figure) -> list[str]:
        return [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().get_texts()]

    assert legend(figure) == ["accepted", "the target's own", "refused", "cannot be accepted"]
    full = dataclasses.replace(TREE, candidate=np.arange(8) < 6, parents=np.where(np.arange(8) < 6, TREE.parents, -1))
    assert legend(draw_tree(full, VERDICT, decode)) == ["accepted", "the target's own", "refused"]


def test_log_probabilities_on_demand(figure: Figure) -> None:
    assert parts(figure, "note-node") == {}
    notes = {name: text.get_text() for name, text in parts(with_notes(), "note-node").items()}
    assert notes == {"1": "-0.69", "2": "-1.39", "3": "-0.22", "4": "-2.30", "5": "0.00", "6": "-0.22"}


def with_notes() -> Figure:
    return draw_tree(TREE, VERDICT, decode, log_probabilities=True)


def test_a_root_alone() -> None:
    tree = DraftTree(
        tokens=np.array([0]), parents=np.array([NO_PARENT]), candidate=np.array([True]), log_values=np.zeros(1)
    )
    figure = draw_tree(tree, Verdict(path=np.array([0]), num_accepted=np.int32(0), next_token=np.int32(1)), decode)
    assert parts(figure, "node").keys() == {"0", "1"}


def test_it_can_be_saved(figure: Figure, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("trees")
    for name in ("tree.png", "tree.svg"):
        figure.savefig(folder / name)  # warnings, as of a missing character, are errors
        assert (folder / name).stat().st_size > 2000
