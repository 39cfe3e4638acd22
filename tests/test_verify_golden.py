"""Acceptance cases of the official code: same path, same distribution of the next token, for recorded uniforms.

Its rule is the walk of `verify.residual` with q = 1; greedy, that of `verify.match`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax import verify
from eagle_jax.sampling import make_sampling, warp
from eagle_jax.tree import ancestors, path_to
from eagle_jax.types import NO_NODE, DraftTree, Sampling
from tests import golden
from tests.tolerance import rounding


def read(seed: int) -> dict[str, np.ndarray]:
    return golden.results(f"seed{seed}/verify/posterior.npz")


def draft_tree(results: dict[str, np.ndarray], batch: int) -> DraftTree:
    """The tree of all cases, once a row."""
    shape = (batch, results["parents"].shape[0])
    tree = DraftTree(
        tokens=jnp.asarray(np.broadcast_to(results["draft_tokens"], shape), jnp.int32),
        parents=jnp.asarray(np.broadcast_to(results["parents"], shape), jnp.int32),
        candidate=jnp.ones(shape, bool),
        log_values=jnp.zeros(shape),
    )
    deepest = int(ancestors(tree.parents, shape[1]).sum(-1).max()) - 1
    return tree.replace(max_depth=deepest)


def tried(parents: np.ndarray, path: list[int]) -> list[int]:
    """The nodes in the order in which a walk along `path` tries them."""
    order = []
    for node, following in zip(path, [*path[1:], None], strict=True):
        for child in np.flatnonzero(parents == node).tolist():
            order.append(child)
            if child == following:
                break
    return order


def accepted(results: dict[str, np.ndarray], case: int) -> list[int]:
    """The official path, root included."""
    path = [node for node in results["accepted_nodes"][case].tolist() if node != NO_NODE]
    assert len(path) == 1 + results["accept_length"][case]
    return path


@pytest.mark.parametrize("seed", golden.SEEDS)
def test_greedy_walks(seed: int) -> None:
    results = read(seed)
    cases = np.flatnonzero(results["temperature"] == 0)
    tree = draft_tree(results, len(cases))
    choice = jnp.asarray(results["node_logits"][cases].argmax(-1), jnp.int32)
    verdict = verify.match(tree, choice)
    for row, case in enumerate(cases):
        assert [node for node in verdict.path[row].tolist() if node != NO_NODE] == accepted(results, case)
        assert verdict.num_accepted[row] == results["accept_length"][case]
        assert verdict.next_token[row] == results["greedy_bonus"][case]
    assert len(cases) == 4


@pytest.mark.parametrize("seed", golden.SEEDS)
def test_sampled_walks(seed: int) -> None:
    """The official code masks by top-p before top-k; where only one of the two is on, the order is of no matter."""
    results = read(seed)
    cases = np.flatnonzero(results["temperature"] > 0)
    tree = draft_tree(results, len(cases))
    temperature, top_k = results["temperature"][cases].tolist(), results["top_k"][cases].tolist()
    top_p = [p or 1.0 for p in results["top_p"][cases].tolist()]
    masked = make_sampling(len(cases), temperature=temperature, top_k=top_k, top_p=top_p)
    uniforms = np.full(tree.tokens.shape, np.nan, np.float32)  # of nodes that must not be tried
    for row, case in enumerate(cases):
        order = tried(results["parents"], accepted(results, case))
        assert len(order) == results["n_uniforms"][case]
        uniforms[row, order] = results["uniforms"][case, : len(order)]
    scaled = results["node_logits"][cases] / results["temperature"][cases][:, None, None]
    tries, vocab_size = 1 + results["n_uniforms"][cases], scaled.shape[-1]

    def check(logits: jax.Array, sampling: Sampling, rows: np.ndarray) -> None:
        walk = verify.walk_down(tree, logits, sampling, jnp.asarray(uniforms))
        paths = path_to(walk.node, ancestors(tree.parents, tree.max_depth), tree.max_depth)
        for row in rows:
            assert [node for node in paths[row].tolist() if node != NO_NODE] == accepted(results, cases[row])
            # A probability is off by what its logit over the temperature is off, and by a sum for each token tried.
            sums = rounding(walk.target[row], terms=tries[row] * vocab_size)
            allowed = rounding(scaled[row], terms=2) + sums
            np.testing.assert_allclose(walk.target[row], results["sample_p"][cases[row]], atol=allowed, rtol=0)

    logits = jnp.asarray(results["node_logits"][cases])
    one_mask = np.flatnonzero((np.array(top_k) == 0) | (np.array(top_p) == 1))
    check(logits, masked, one_mask)
    unmasked = make_sampling(len(cases), temperature=temperature)
    check(warp(logits, masked, top_k_first=False), unmasked, np.arange(len(cases)))
    assert (len(cases), len(one_mask)) == (14, 12)
