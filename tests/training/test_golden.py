"""The unrolled recipe against the official EAGLE-3 training pass: logits, losses, accuracies and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.models.draft_head import HeadParams
from eagle_jax.training.recipes.unroll_recipe import OFFICIAL, make_unroll_recipe
from eagle_jax.training.records import Tally
from eagle_jax.training.unroll import unroll
from tests.tolerance import assert_close, gradient_terms, head_terms
from tests.training import golden as fixtures


def terms_of(golden: fixtures.Golden) -> int:
    """Of a loss: seven steps of the head, then its vocabulary."""
    head, length = golden.head.config, golden.batch.tokens.shape[1]
    return head_terms(head, length, 7) + head.layer.vocab_size


@functools.cache
def run(seed: int) -> tuple[jax.Array, Tally, HeadParams]:
    """Loss, tally and gradients."""
    golden = fixtures.load(seed)
    recipe = make_unroll_recipe(golden.head, dataclasses.replace(OFFICIAL, chunk=16, block=8))
    divisors = recipe.divisors(golden.batch)

    def loss(weights: object, lm_head: jax.Array) -> tuple[jax.Array, Tally]:
        params = HeadParams(weights, lm_head, golden.params.target_ids)
        return recipe.loss(
            params, golden.target_params, golden.vocabulary, golden.batch, golden.features, divisors, jax.random.key(0)
        )

    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (total, tally), (weights, lm_head) = both(golden.params.weights, golden.params.lm_head)
    return total, tally, HeadParams(weights, lm_head)


@pytest.mark.parametrize("seed", fixtures.SEEDS)
def test_logits(seed: int) -> None:
    golden = fixtures.load(seed)
    states = unroll(
        golden.head, golden.params, golden.target_params, golden.batch, golden.features.taps, golden.batch.slots, 7
    )
    logits = jnp.stack([golden.head.logits(golden.params, golden.target_params, state) for state in states])
    real = golden.results["attention_mask"].astype(bool)  # what padding slots compute, nobody reads
    assert_close(np.asarray(logits)[:, real], golden.results["logits"][:, real], terms_of(golden))


@pytest.mark.parametrize("seed", fixtures.SEEDS)
def test_losses_and_accuracies(seed: int) -> None:
    golden = fixtures.load(seed)
    total, tally, _ = run(seed)
    results = golden.results
    size = golden.batch.tokens.size
    assert_close(tally.cross_entropy / size, results["losses"], terms_of(golden))
    assert_close(total, results["total_loss"], terms_of(golden))
    assert_close(tally.correct / (tally.rows + 1e-6), results["accuracies"], 2)
    np.testing.assert_array_equal(tally.in_vocabulary, results["position_mask"].sum((1, 2)))


@pytest.mark.parametrize("seed", fixtures.SEEDS)
def test_gradients(seed: int) -> None:
    golden = fixtures.load(seed)
    _, _, grads = run(seed)
    found = {**fixtures.stored(golden.head, grads.weights), "lm_head.weight": np.asarray(grads.lm_head)}
    assert set(found) == set(golden.grads)
    assert_close(found, golden.grads, gradient_terms(terms_of(golden), golden.batch.tokens.size))
