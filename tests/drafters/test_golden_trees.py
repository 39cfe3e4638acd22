"""Dynamic trees of the official code: the same candidates, trees and scores, in a first round and a later one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.drafters import head as heads
from eagle_jax.drafters.base import Observation
from eagle_jax.drafters.eagle2 import Candidates, expand, rerank
from eagle_jax.drafters.head import HeadState
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.tree import ancestors, depths
from eagle_jax.types import NO_PARENT, DraftTree, Params, TargetOutput
from tests import golden

SIZES = {10: [(60, 7), (60, 5)], 4: [(32, 8), (10, 3)]}
"""By top_k, nodes and depth; the deepest first."""
CAPACITY = 32
ROWS = 12  # features of a round, padded


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=golden.QUICK)
def draft(
    head: Head, top_k: int, params: HeadParams, target_params: Params, state: HeadState, observation: Observation
) -> tuple[HeadState, list[tuple[Candidates, DraftTree]]]:
    """Read the features, then grow and re-rank trees of all sizes.

    Expansion does not look ahead, so the candidates of a shallower tree are the first ones of the deepest.
    """
    state = heads.observe(head, params, target_params, state, observation)
    deepest = SIZES[top_k][0][1]
    noise = jnp.zeros((1, deepest + 1, target_params["lm_head"].shape[0]))
    full = expand(head, params, target_params, state, noise, depth=deepest, top_k=top_k)
    root = observation.text[:, observation.length[0] + observation.count[0]]
    actual = []
    for nodes, depth in SIZES[top_k]:
        candidates = Candidates(*(part[:, : top_k + depth * top_k**2] for part in full))
        actual.append((candidates, rerank(candidates, root, nodes, depth + 1)))
    return state, actual


def observed(features: np.ndarray, ids: np.ndarray) -> Observation:
    """The target's features [1, n, *] of the last n tokens but one of `ids` [1, m]."""
    count, tokens = features.shape[1], ids.shape[1]
    padded = jnp.asarray(np.pad(features, ((0, 0), (0, ROWS - count), (0, 0))))
    return Observation(
        text=jnp.asarray(np.pad(ids, ((0, 0), (0, CAPACITY - tokens))), jnp.int32),
        length=jnp.asarray([tokens - 1 - count]),
        output=TargetOutput(hidden=padded, taps=padded, keys=(), values=()),
        path=jnp.arange(ROWS)[None],
        count=jnp.asarray([count]),
    )


def flat_parents(kept: np.ndarray, top_k: int) -> list[int]:
    """Parents of the flat candidates: those of a block are the kept ones of the block before, `kept` [D, k]."""
    parents = [NO_PARENT] * top_k + np.repeat(np.arange(top_k), top_k).tolist()
    for block, chosen in enumerate(kept[:-1]):
        parents += np.repeat(top_k + block * top_k**2 + chosen, top_k).tolist()
    return parents


def check(candidates: Candidates, tree: DraftTree, results: dict[str, np.ndarray], prefix: str) -> None:
    """All integers are equal, scores close."""
    wanted = {name.removeprefix(prefix): value for name, value in results.items() if name.startswith(prefix)}
    assert candidates.tokens[0].tolist() == wanted["flat_tokens"].tolist()
    assert candidates.parents[0].tolist() == flat_parents(wanted["kept"], wanted["kept"].shape[1])
    np.testing.assert_allclose(candidates.log_values[0], wanted["flat_scores"], atol=1e-3, rtol=0)
    assert tree.tokens.tolist() == wanted["draft_tokens"].tolist()
    assert tree.parents[0].tolist() == wanted["parents"].tolist()
    np.testing.assert_array_equal(ancestors(tree.parents, tree.max_depth), wanted["tree_mask"][0] > 0)
    assert depths(tree.parents, tree.max_depth)[0].tolist() == wanted["tree_position_ids"].tolist()
    np.testing.assert_allclose(tree.log_values[0, 1:], wanted["node_scores"], atol=1e-3, rtol=0)
    assert tree.candidate.all()


@pytest.mark.parametrize("top_k", SIZES)
@pytest.mark.parametrize("name", golden.HEADS)
def test_trees(name: str, top_k: int) -> None:
    head, params = golden.head(name)
    _, _, target_params = golden.target(golden.seed_of(name))
    files = [golden.results(f"{name}/tree_{nodes}_{depth}_{top_k}.npz") for nodes, depth in SIZES[top_k]]
    for results in files:  # each has its own features
        state = heads.init_state(head, 1, CAPACITY, "float32")
        for prefix in ("", "r2_"):
            seen = observed(results[prefix + "hidden_states"], results[prefix + "input_ids"])
            state, actual = draft(head, top_k, params, target_params, state, seen)
            check(*actual[[one is results for one in files].index(True)], results, prefix)


def test_every_file_is_read() -> None:
    wanted = {
        f"{name}/tree_{nodes}_{depth}_{top_k}.npz"
        for name in golden.HEADS
        for top_k in SIZES
        for nodes, depth in SIZES[top_k]
    }
    actual = {str(path.relative_to(golden.GOLDEN)) for path in golden.GOLDEN.glob("seed*/eagle*/tree_*.npz")}
    assert actual == wanted
    assert len(actual) == 56
