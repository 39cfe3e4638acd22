"""Places, labels and confidences of nodes, and what a tree dropped."""

import numpy as np
import pytest

from eagle_jax.figures.layout import layout, visible, with_dropped
from eagle_jax.types import NO_PARENT, DraftTree


def test_nodes_do_not_overlap_and_parents_stand_in_the_middle() -> None:
    rng = np.random.default_rng(0)
    parents = [NO_PARENT] + [int(rng.integers(node)) for node in range(1, 60)]
    places = layout(parents)
    assert len(set(places.values())) == len(places) == 60
    for depth in {x for x, _ in places.values()}:
        lines = sorted(y for x, y in places.values() if x == depth)
        assert min(np.diff(lines), default=1) >= 1
    for node, place in places.items():
        lines = [places[child][1] for child, parent in enumerate(parents) if parent == node]
        assert not lines or place[1] == (min(lines) + max(lines)) / 2


def make_tree(tokens: list[int], parents: list[int], values: list[float]) -> DraftTree:
    candidate = np.array(parents) != NO_PARENT
    candidate[0] = True
    return DraftTree(np.array(tokens), np.array(parents), candidate, np.log(np.array(values, np.float32)))


def test_what_only_the_wider_tree_has_stands_behind() -> None:
    """Nodes are numbered anew in the wider tree; the same token at another place is another node."""
    tree = make_tree([0, 5, 6, 0], [NO_PARENT, 0, 1, NO_PARENT], [1.0, 0.5, 0.4, 1.0])
    wider = make_tree([0, 7, 5, 6, 6, 8], [NO_PARENT, 0, 0, 2, 1, 4], [1.0, 0.2, 0.5, 0.4, 0.1, 0.05])
    both = with_dropped(tree, wider)
    assert both.tokens.tolist() == [0, 5, 6, 0, 7, 6, 8]
    assert both.parents.tolist() == [NO_PARENT, 0, 1, NO_PARENT, 0, 4, 5]
    assert both.candidate.tolist() == [True, True, True, False, False, False, False]
    np.testing.assert_allclose(np.exp(both.log_values), [1.0, 0.5, 0.4, 1.0, 0.2, 0.1, 0.05], rtol=1e-6)


def test_nothing_was_dropped() -> None:
    tree = make_tree([0, 5, 6], [NO_PARENT, 0, 0], [1.0, 0.5, 0.4])
    np.testing.assert_array_equal(with_dropped(tree, tree).tokens, tree.tokens)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("a b\tc\r\n", "a␣b⇥c←↵"),
        ("", ""),
        ("\x00é\ufffd", r"\u0000é" + "\ufffd"),
        ("internationalisation", "internation…"),
        ("exactly12cha", "exactly12cha"),
    ],
)
def test_labels(text: str, label: str) -> None:
    assert visible(text) == label
