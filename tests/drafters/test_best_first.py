"""The best tree over tables of children, against a heap."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_jax.drafters.best_first import NO_ROW, ChildTables, grow
from eagle_jax.tree import depths
from eagle_jax.types import NO_PARENT, DraftTree
from tests import golden
from tests.reference import best_first as reference

DEPTH, ROWS, TOP_K = 5, 6, 4
ROOT = 7


@functools.cache
def program(nodes: int, beam: int, spine: int) -> Callable[[ChildTables, jax.Array], DraftTree]:
    """`grow`, compiled."""
    run = functools.partial(grow, nodes=nodes, beam=beam, spine=spine)
    return jax.jit(run, compiler_options=golden.QUICK)


def random_tables(seed: int, batch: int = 1, *, spread: float = 2.0, coarse: bool = False) -> ChildTables:
    """Children as of a softmax over eight tokens, best first; some without a row, some missing.

    `coarse`: logs of few values, so that many paths tie, exactly.
    """
    rng = np.random.default_rng(seed)
    shape = (batch, DEPTH, ROWS)
    logits = spread * rng.standard_normal((*shape, 8))
    order = np.argsort(-logits, axis=-1)[..., :TOP_K]
    scores = np.take_along_axis(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True), order, axis=-1)
    if coarse:
        scores = -np.sort(rng.integers(0, 3, scores.shape), axis=-1) / 4.0
    scores[..., -1] = np.where(rng.random(shape) < 0.2, -np.inf, scores[..., -1])
    rows = rng.integers(NO_ROW, ROWS, (*shape, TOP_K))
    return ChildTables(*(jnp.asarray(x, kind) for x, kind in ((order, "int32"), (scores, "float32"), (rows, "int32"))))


def nodes_of(tree: DraftTree, row: int) -> list[tuple[tuple[int, ...], float]]:
    """Used nodes below the root in node order: their tokens from the root down, and their value."""
    paths: dict[int, tuple[int, ...]] = {0: ()}
    for node in range(1, tree.tokens.shape[1]):
        parent = int(tree.parents[row, node])
        if tree.candidate[row, node]:
            paths[node] = (*paths[parent], int(tree.tokens[row, node]))
        else:
            assert parent == NO_PARENT
    return [(paths[node], float(tree.log_values[row, node])) for node in paths if node]


def wanted(tables: ChildTables, row: int, nodes: int, spine: int) -> list[tuple[tuple[int, ...], float]]:
    """The same from the heap."""
    own = [np.asarray(table[row]) for table in tables]
    found = reference.grow(*own, nodes, spine)
    tokens = {(): ()} | {node.path: () for node in found}
    for node in sorted(found, key=lambda node: len(node.path)):
        tokens[node.path] = (*tokens[node.path[:-1]], node.token)
    return [(tokens[node.path], float(node.value)) for node in found]


@given(
    seed=st.integers(0, 10**6),
    nodes=st.sampled_from([2, 5, 16, 32]),
    spined=st.booleans(),
    coarse=st.booleans(),
    spread=st.sampled_from([0.3, 2.0, 6.0]),
)
@settings(max_examples=80, deadline=None)
def test_a_wide_beam_finds_what_a_heap_finds(seed: int, nodes: int, spined: bool, coarse: bool, spread: float) -> None:
    """The same nodes in the same order, ties included; three rows at a time."""
    tables = random_tables(seed, 3, spread=spread, coarse=coarse)
    spine = min(DEPTH, nodes // 2) if spined else 0
    tree = program(nodes, nodes - 1, spine)(tables, jnp.full(3, ROOT))
    assert (tree.tokens[:, 0] == ROOT).all()
    for row in range(3):
        assert nodes_of(tree, row) == wanted(tables, row, nodes, spine)


def test_every_prefix_is_a_tree() -> None:
    """Parents stand before their children, and nodes by value."""
    tree = program(32, 31, DEPTH)(random_tables(0, 8), jnp.full(8, ROOT))
    assert (tree.parents[:, 1:] < jnp.arange(1, 32)[None, :]).all()
    assert (jnp.diff(tree.log_values, axis=1) <= 0).all()


def test_a_narrow_beam_loses_little() -> None:
    """Expected accepted tokens of 15 nodes, by beam: of 15 nodes a level, which is exact, of 6 and of 3."""
    tables, root = random_tables(1, 200), jnp.full(200, ROOT)
    exact, narrow, narrower = (
        float(jnp.exp(program(16, beam, 0)(tables, root).log_values[:, 1:]).sum(-1).mean()) for beam in (15, 6, 3)
    )
    assert exact >= narrow >= 0.99 * exact
    assert narrower < 0.99 * exact


def test_the_spine_is_there_in_any_case() -> None:
    """Down to the depth that was given, where the chain of first children goes on so far; else it often is not."""
    tables, root = random_tables(2, 50, spread=0.3), jnp.full(50, ROOT)
    reached = {}
    for spine in (0, 3, DEPTH):
        tree = program(12, 4, spine)(tables, root)
        chains = [[path for path, _ in nodes_of(tree, row)] for row in range(50)]
        first = [[path for path, _ in first_children(tables, row, spine)] for row in range(50)]
        assert all(set(some) <= set(found) for some, found in zip(first, chains, strict=True))
        reached[spine] = np.mean([first_children(tables, row, DEPTH)[-1][0] in chains[row] for row in range(50)])
    assert reached[0] < 0.7 < reached[DEPTH] == 1


def first_children(tables: ChildTables, row: int, count: int) -> list[tuple[tuple[int, ...], float]]:
    """The chain of first children, up to `count` deep, as `nodes_of` has it."""
    tokens, scores, rows = (np.asarray(table[row]) for table in tables)
    chain: list[tuple[tuple[int, ...], float]] = []
    path, value, place = (), 0.0, 0
    for depth in range(count):
        if place == NO_ROW:
            break
        path, value = (*path, int(tokens[depth, place, 0])), value + float(scores[depth, place, 0])
        place = int(rows[depth, place, 0])
        chain.append((path, value))
    return chain


def test_slots_without_a_path_stay_unused() -> None:
    """The root has two children, of which one has one child."""
    tables = random_tables(3)
    dead = ChildTables(tables.tokens, jnp.full_like(tables.scores, -jnp.inf), jnp.full_like(tables.rows, NO_ROW))
    scores = dead.scores.at[0, 0, 0, :2].set(jnp.array([-0.5, -1.0])).at[0, 1, 3, 0].set(-0.25)
    tree = program(8, 7, 2)(dead._replace(scores=scores, rows=dead.rows.at[0, 0, 0, 1].set(3)), jnp.array([ROOT]))
    assert tree.parents[0].tolist() == [NO_PARENT, 0, 0, 2, *[NO_PARENT] * 4]
    assert tree.candidate[0].tolist() == [True] * 4 + [False] * 4
    assert tree.log_values[0, :4].tolist() == [0.0, -0.5, -1.0, -1.25]
    assert depths(tree.parents, DEPTH)[0].tolist() == [0, 1, 1, 2, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"nodes": 17, "beam": 3}, "nodes - 1 is 16, but depth 5, top_k 4 and beam 3 find only 15"),
        ({"nodes": 3, "beam": 3, "spine": 3}, "a spine of 3 nodes does not fit below the root of a tree of 3"),
    ],
)
def test_sizes_that_cannot_be(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grow(random_tables(0), jnp.array([ROOT]), **sizes)
