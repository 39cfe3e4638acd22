"""Both verification rules against recursive walks on thousands of random trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_jax import verify
from eagle_jax.sampling import make_sampling
from eagle_jax.types import NO_NODE, NO_PARENT, DraftTree
from tests.reference import sampling as slow_sampling
from tests.reference import trees
from tests.reference import verify as slow

CHANCES = st.floats(0, 1)
MATCH = jax.jit(verify.match)
RESIDUAL = jax.jit(verify.residual)


def draft_tree(
    batch: list[trees.Tree],
    max_depth: int,
    draft_logits: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
) -> DraftTree:
    """The rows as one `DraftTree`."""
    return DraftTree(
        tokens=jnp.asarray([t.tokens for t in batch]),
        parents=jnp.asarray([t.parents for t in batch]),
        candidate=jnp.asarray([t.candidate for t in batch]),
        log_values=jnp.zeros((len(batch), len(batch[0].tokens))),
        draft_logits=None if draft_logits is None else jnp.asarray(draft_logits, jnp.float32),
        fixed=None if fixed is None else jnp.asarray(fixed),
        max_depth=max_depth,
    )


@pytest.mark.parametrize(("num_nodes", "max_depth"), [(1, 0), (6, 5), (14, 4), (40, 9)])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), unused=CHANCES, barred=CHANCES, follow=CHANCES, deep=CHANCES)
def test_match_on_random_trees(
    num_nodes: int, max_depth: int, seed: int, unused: float, barred: float, follow: float, deep: float
) -> None:
    rng = np.random.default_rng(seed)
    knobs = {"unused": unused, "barred": barred, "follow": follow, "deep": deep}
    batch = [trees.random_tree(rng, num_nodes, max_depth, 8, **knobs) for _ in range(32)]
    verdict = jax.device_get(MATCH(draft_tree(batch, max_depth), jnp.asarray([t.choice for t in batch])))
    walks = [slow.match(tree) for tree in batch]
    assert verdict.path.tolist() == [trees.padded(walk.path, max_depth + 1) for walk in walks]
    assert verdict.num_accepted.tolist() == [len(walk.path) - 1 for walk in walks]
    assert verdict.next_token.tolist() == [walk.next_token for walk in walks]


def test_random_trees_are_worth_trying() -> None:
    """The generator gives long paths, unused slots, nodes below barred ones, and barred twins of candidates."""
    rng = np.random.default_rng(0)
    batch = [trees.random_tree(rng, 14, 4, 8, follow=0.9) for _ in range(300)]
    lengths = [len(slow.match(tree).path) for tree in batch]
    assert set(lengths) == {1, 2, 3, 4, 5}
    assert any(NO_PARENT in tree.parents[1:-1] for tree in batch)
    barred = [(t, j) for t in batch for j in range(1, 14) if t.parents[j] != NO_PARENT and not t.candidate[j]]
    assert any(t.parents[k] == j and t.candidate[k] for t, j in barred for k in range(14))
    assert any(t.tokens[k] == t.tokens[j] for t, j in barred for k in slow.children(t, t.parents[j]))


def test_match_takes_no_barred_node() -> None:
    """A node that is no candidate carries the right token, and so does its child: neither is accepted."""
    tree = trees.Tree([1, 2, 3, 2], [NO_PARENT, 0, 1, 0], [True, False, True, True], [2, 3, 4, 5])
    verdict = verify.match(draft_tree([tree], 2), jnp.asarray([tree.choice]))
    assert verdict.path.tolist() == [[0, 3, NO_NODE]]
    assert verdict.next_token.tolist() == [5]


CLOSE = 1e-4
"""Decisions closer than this may turn with the rounding of float32; such rows are left out, and counted."""


def _distributions(logits: np.ndarray, temperature: float, k: int = 0, p: float = 1.0) -> np.ndarray:
    return np.array([slow_sampling.distribution(node, temperature, k, p) for node in logits])


@pytest.mark.parametrize("fixed_share", [0.0, 0.5, 1.0], ids=["p/q", "mixed", "q=1"])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), likeness=st.sampled_from([0.3, 1.0, 3.0]), deep=CHANCES)
def test_residual_on_random_trees(fixed_share: float, seed: int, likeness: float, deep: float) -> None:
    rng = np.random.default_rng(seed)
    batch = [trees.random_tree(rng, 14, 4, 8, deep=deep) for _ in range(32)]
    logits = rng.normal(size=(32, 14, 8)).astype(np.float32)
    draft = (logits + rng.normal(size=logits.shape) / likeness).astype(np.float32) if fixed_share < 1 else None
    fixed = rng.random((32, 14)) < fixed_share if 0 < fixed_share < 1 else None
    uniforms = rng.random((32, 14)).astype(np.float32)
    noise = rng.gumbel(size=logits.shape).astype(np.float32)
    knobs = [(float(rng.choice([0.5, 1, 2])), int(rng.choice([0, 3])), float(rng.choice([1, 0.8]))) for _ in batch]
    temperature, top_k, top_p = (list(column) for column in zip(*knobs, strict=True))
    sampling = make_sampling(32, temperature=temperature, top_k=top_k, top_p=top_p)
    verdict = jax.device_get(RESIDUAL(draft_tree(batch, 4, draft, fixed), logits, sampling, uniforms, noise))
    compared = 0
    for row, tree in enumerate(batch):
        target = _distributions(logits[row], *knobs[row])
        q = None if draft is None else _distributions(draft[row], temperature[row])
        own = None if fixed is None else fixed[row]
        walk = slow.residual(tree, target, q, uniforms[row].astype(np.float64), own)
        with np.errstate(divide="ignore"):
            scores = np.log(walk.next_distribution) + noise[row, walk.path[-1]]
        runner_up, best = np.sort(scores)[-2:]
        if min(walk.margin, best - runner_up) > CLOSE:
            assert verdict.path[row].tolist() == trees.padded(walk.path, 5)
            assert int(verdict.num_accepted[row]) == len(walk.path) - 1
            assert int(verdict.next_token[row]) == int(scores.argmax())
            compared += 1
    assert compared >= 30


def test_residual_at_temperature_zero_is_match() -> None:
    """Greedy, both rules take the path of the target's first choices, whatever the uniforms say."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(64, 14, 8)).astype(np.float32)
    choice = logits.argmax(-1)
    batch = [trees.random_tree(rng, 14, 4, 8)._replace(choice=row.tolist()) for row in choice]
    uniforms = rng.random((64, 14)).astype(np.float32)
    noise = rng.gumbel(size=logits.shape).astype(np.float32)
    tree = draft_tree(batch, 4)
    actual = RESIDUAL(tree, logits, make_sampling(64, top_k=2, top_p=0.5), uniforms, noise)
    wanted = MATCH(tree, jnp.asarray(choice))
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)
    assert int(wanted.num_accepted.max()) >= 2


def test_residual_refuses_what_the_target_never_says() -> None:
    """A uniform of 0 accepts no token outside top-k, and the bonus is the target's."""
    logits = np.zeros((1, 2, 8), np.float32)
    logits[0, 0, 3] = 5.0
    tree = draft_tree([trees.Tree([0, 6], [NO_PARENT, 0], [True, True], [0, 0])], 1, np.zeros((1, 2, 8)))
    sampling = make_sampling(1, temperature=1.0, top_k=1)
    verdict = RESIDUAL(tree, logits, sampling, np.zeros((1, 2), np.float32), np.zeros((1, 2, 8), np.float32))
    assert verdict.num_accepted.tolist() == [0]
    assert verdict.next_token.tolist() == [3]


def test_residual_with_nothing_left_keeps_the_target() -> None:
    """Where p and q differ by rounding alone, p - q is empty: the bonus still comes from the target's tokens."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4096, 2, 8)).astype(np.float32)
    logits[..., 0] = -9.0  # top-k excludes the token that an argmax over nothing would give
    draft = (logits + 1e-7 * rng.normal(size=logits.shape)).astype(np.float32)
    draft[..., 0] = -np.inf
    batch = [trees.Tree([0, int(t)], [NO_PARENT, 0], [True, True], [0, 0]) for t in rng.integers(1, 8, 4096)]
    uniforms = np.full((4096, 2), np.float32(1 - 2**-24))
    noise = np.zeros_like(logits)
    sampling = make_sampling(4096, temperature=1.0, top_k=7)
    verdict = RESIDUAL(draft_tree(batch, 1, draft), logits, sampling, uniforms, noise)
    refused = np.asarray(verdict.num_accepted) == 0
    assert refused.sum() > 100
    assert (np.asarray(verdict.next_token)[refused] != 0).all()
