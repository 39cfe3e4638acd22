"""Static trees taken apart: the same nodes, masks, positions and drafting levels as in the official code."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.drafters.eagle1 import PUBLISHED_TREE, StaticTree, take_apart
from eagle_jax.tree import ancestors, depths, path_to
from eagle_jax.types import NO_NODE
from tests import golden

TREES = sorted(path.stem for path in (golden.GOLDEN / "static_tree").glob("*.json"))


def declared(name: str) -> dict[str, list[tuple[int, ...]]]:
    """The paths of a tree as given, and sorted as its nodes are numbered."""
    text = json.loads((golden.GOLDEN / "static_tree" / f"{name}.json").read_text())
    return {key: [tuple(path) for path in paths] for key, paths in text.items() if key.startswith("paths")}


def seen_by(shape: StaticTree) -> np.ndarray:
    """bool[N, N]: ancestors of each node, itself included."""
    return np.asarray(ancestors(jnp.asarray(shape.parents)[None], len(shape.levels)))[0]


@pytest.mark.parametrize("name", TREES)
def test_nodes(name: str) -> None:
    wanted = golden.results(f"static_tree/{name}.npz")
    paths = declared(name)
    shape = take_apart(paths["paths"])
    np.testing.assert_array_equal(shape.parents, take_apart(paths["paths_sorted"]).parents)
    np.testing.assert_array_equal(shape.parents, wanted["parents"])
    np.testing.assert_array_equal(seen_by(shape), wanted["tree_mask"] > 0)
    positions = depths(jnp.asarray(shape.parents)[None], len(shape.levels))[0]
    np.testing.assert_array_equal(positions, wanted["tree_position_ids"])


@pytest.mark.parametrize("name", TREES)
def test_ranks(name: str) -> None:
    """`tree_indices` is 1 + 10 x (place of the parent among the inner nodes) + rank."""
    wanted = golden.results(f"static_tree/{name}.npz")
    shape = take_apart(declared(name)["paths"])
    offset = 0
    for level in shape.levels:
        np.testing.assert_array_equal(
            1 + 10 * (offset + level.child_rows) + level.child_ranks, wanted["tree_indices"][level.children]
        )
        offset += len(level.inner)


@pytest.mark.parametrize("name", TREES)
def test_drafting_levels(name: str) -> None:
    """Each level feeds the official nodes after the official parents, with the same sight of those fed before."""
    wanted = golden.results(f"static_tree/{name}.npz")
    shape = take_apart(declared(name)["paths"])
    seen, above, fed = seen_by(shape), shape.levels[0], []
    assert len(shape.levels) == 1 + wanted["n_draft_levels"]
    for index, level in enumerate(shape.levels[1:]):
        fed += level.inner.tolist()
        np.testing.assert_array_equal(seen[np.ix_(level.inner, fed)], wanted[f"draft_mask_{index}"] > 0)
        place = np.searchsorted(above.children, level.inner)
        np.testing.assert_array_equal(level.parent_rows, above.child_rows[place])
        entries = 10 * above.child_rows[place] + above.child_ranks[place]
        np.testing.assert_array_equal(entries, wanted[f"draft_indices_{index}"])
        _, repeats = np.unique(level.parent_rows, return_counts=True)
        np.testing.assert_array_equal(repeats, wanted[f"draft_repeat_{index}"])
        above = level


@pytest.mark.parametrize("name", TREES)
def test_paths(name: str) -> None:
    """From the root to each leaf."""
    wanted = golden.results(f"static_tree/{name}.npz")["retrieve_indices"]
    shape = take_apart(declared(name)["paths"])
    seen = jnp.asarray(seen_by(shape))[None]
    leaves = sorted(set(range(len(shape.parents))) - set(shape.parents.tolist()))
    actual = {tuple(path_to(jnp.asarray([leaf]), seen, len(shape.levels))[0].tolist()) for leaf in leaves}
    assert NO_NODE == -1  # as the fixture pads
    assert actual == {tuple(row) for row in wanted.tolist()}


def test_published_tree() -> None:
    assert set(PUBLISHED_TREE) == set(declared("mc_sim_7b_63")["paths"])
    assert len(PUBLISHED_TREE) == 25


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ((), "got 0 of which 0 differ"),
        (((0,), (0,)), "got 2 of which 1 differ"),
        (((0,), (1, 0)), r"node \(1, 0\) of the static tree stands below \(1,\), which is not in it"),
    ],
)
def test_what_is_no_tree(paths: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        take_apart(paths)
