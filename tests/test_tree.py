"""Depths, ancestors and paths against their recursive twins, on thousands of random trees."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_jax.tree import ancestors, chain_tree, depths, path_to, root_of
from eagle_jax.types import NO_NODE, NO_PARENT
from tests.reference import trees

CHANCES = st.floats(0, 1)
SIZES = [(1, 0), (2, 1), (13, 4), (40, 9)]  # nodes, max_depth


def _derive(max_depth: int) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """Depths, ancestors and the path to one node of each row, compiled once for each size."""

    @jax.jit
    def run(parents: jax.Array, node: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        seen = ancestors(parents, max_depth)
        return depths(parents, max_depth), seen, path_to(node, seen, max_depth)

    return run


DERIVE = {max_depth: _derive(max_depth) for _, max_depth in SIZES}


@pytest.mark.parametrize(("num_nodes", "max_depth"), SIZES)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), unused=CHANCES, deep=CHANCES)
def test_random_trees(num_nodes: int, max_depth: int, seed: int, unused: float, deep: float) -> None:
    rng = np.random.default_rng(seed)
    batch = [trees.random_tree(rng, num_nodes, max_depth, 50, unused=unused, deep=deep) for _ in range(32)]
    # Any used node may end a path; an unused slot never does.
    ends = [int(rng.choice([j for j, up in enumerate(t.parents) if j == 0 or up != NO_PARENT])) for t in batch]
    actual = DERIVE[max_depth](jnp.asarray([t.parents for t in batch]), jnp.asarray(ends))
    depth, seen, path = map(np.asarray, actual)
    for row, (tree, end) in enumerate(zip(batch, ends, strict=True)):
        assert depth[row].tolist() == [trees.depth(tree.parents, j) for j in range(num_nodes)]
        np.testing.assert_array_equal(seen[row], trees.ancestors(tree.parents))
        assert path[row].tolist() == trees.padded(trees.line(tree.parents, end), max_depth + 1)


@pytest.mark.parametrize("max_depth", [1, 2, 3, 4, 5, 8, 9, 17])
def test_deepest_chain(max_depth: int) -> None:
    """The bound on the depth may be reached: powers of two and their neighbours."""
    actual = jax.jit(depths, static_argnums=1)(jnp.arange(-1, max_depth)[None], max_depth)
    assert actual[0].tolist() == list(range(max_depth + 1))


def test_root_of() -> None:
    text = jnp.asarray([[5, 6, 7], [8, 9, 10]])
    assert root_of(text, jnp.asarray([2, 0])).tolist() == [7, 8]


def test_chain_tree() -> None:
    tree = chain_tree(jnp.asarray([1, 2]), jnp.asarray([[3, 4], [5, 6]]), jnp.asarray([2, 0]), jnp.full((2, 2), -0.5))
    assert tree.max_depth == 2
    assert tree.tokens.tolist() == [[1, 3, 4], [2, 5, 6]]
    assert tree.parents.tolist() == [[NO_PARENT, 0, 1], [NO_PARENT, NO_PARENT, NO_PARENT]]
    assert tree.candidate.tolist() == [[True, True, True], [True, False, False]]
    np.testing.assert_array_equal(tree.log_values, [[0, -0.5, -0.5], [0, -0.5, -0.5]])


def test_path_is_padded_with_no_node() -> None:
    parents = jnp.asarray([[NO_PARENT, 0]])
    assert path_to(jnp.asarray([0]), ancestors(parents, 3), 3).tolist() == [[0, NO_NODE, NO_NODE, NO_NODE]]
