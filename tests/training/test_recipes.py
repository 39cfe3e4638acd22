"""Recipes: packed = unpacked, accumulated = at once, what is counted, and gradients against finite differences."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.models.draft_head import HeadParams
from eagle_jax.training import alignment, step
from eagle_jax.training.losses import feature_error
from eagle_jax.training.recipes import make_head_recipe
from eagle_jax.training.recipes.feature_recipe import FeatureConfig, make_feature_recipe
from eagle_jax.training.recipes.unroll_recipe import OFFICIAL, UnrollConfig, make_unroll_recipe
from eagle_jax.training.records import NO_SLOT, Batch, Features, Recipe, Tally, rates_of
from eagle_jax.training.unroll import unroll
from tests.tolerance import assert_close, gradient_terms, head_terms
from tests.training import reference, small

EXAMPLES = [small.document(0, 17, 6), small.document(1, 12, 4), small.document(2, 21, 9, 15)]
DRAFT_SIZE = 40


def recipe_of(kind: str) -> Recipe:
    """A recipe of each kind; the noise off, which differs between packings."""
    head, _, _ = small.head(kind, draft_size=DRAFT_SIZE)  # type: ignore[arg-type]
    if kind == "eagle3":
        return make_unroll_recipe(head, UnrollConfig(num_steps=3, chunk=16))
    return make_feature_recipe(head, FeatureConfig(noise=0.0, chunk=16))


def terms_of(kind: str) -> int:
    """Terms of loss and gradient on rows of 64 tokens: three steps over 40 draft tokens, or one."""
    head, _, _ = small.head(kind, draft_size=DRAFT_SIZE)  # type: ignore[arg-type]
    forward = head_terms(head.config, 64, 3 if kind == "eagle3" else 1) + DRAFT_SIZE
    return gradient_terms(forward, rows=64)


@functools.cache
def compiled(kind: str) -> Callable[..., Any]:
    """(weights, batch, features, divisors) -> (loss, tally), gradient."""
    recipe = recipe_of(kind)
    _, params, vocabulary = small.head(kind, draft_size=DRAFT_SIZE)  # type: ignore[arg-type]
    _, _, target_params = small.model()

    def loss(weights: Any, batch: Batch, features: Features, divisors: jax.Array) -> tuple[jax.Array, Tally]:
        changed = dataclasses.replace(params, weights=weights)
        return recipe.loss(changed, target_params, vocabulary, batch, features, divisors, jax.random.key(0))

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def run(kind: str, batch: Batch, divisors: jax.Array | None = None) -> tuple[jax.Array, Tally, Any]:
    """Loss, tally and gradient of a batch."""
    _, params, _ = small.head(kind, draft_size=DRAFT_SIZE)  # type: ignore[arg-type]
    divisors = recipe_of(kind).divisors(batch) if divisors is None else divisors
    (total, tally), grads = compiled(kind)(params.weights, batch, small.features_of(batch), divisors)
    return total, tally, grads


@pytest.mark.parametrize("kind", small.KINDS)
def test_packed_is_unpacked(kind: str) -> None:
    packed = run(kind, small.batch_of(EXAMPLES, 64))
    apart = run(kind, small.batch_of(EXAMPLES, 64, rows=len(EXAMPLES)))
    assert int(packed[1].rows[0]) == sum(len(example.slots) for example in EXAMPLES)
    assert_close(packed, apart, terms_of(kind))


@pytest.mark.parametrize("kind", small.KINDS)
def test_parts_add_up_to_the_whole(kind: str) -> None:
    whole = small.batch_of(EXAMPLES, 24, rows=len(EXAMPLES))
    divisors = recipe_of(kind).divisors(whole)
    parts = [run(kind, jax.tree.map(lambda x, i=i: x[i : i + 1], whole), divisors) for i in range(len(EXAMPLES))]
    assert_close(
        run(kind, whole), jax.tree.map(lambda *values: sum(values[1:], start=values[0]), *parts), terms_of(kind)
    )


@pytest.mark.parametrize("kind", small.KINDS)
def test_gradient_points_where_the_loss_goes(kind: str) -> None:
    batch = small.batch_of(EXAMPLES, 64)
    recipe = recipe_of(kind)
    _, params, vocabulary = small.head(kind, draft_size=DRAFT_SIZE)  # type: ignore[arg-type]
    _, _, target_params = small.model()
    features, divisors = small.features_of(batch), recipe.divisors(batch)
    leaves, structure = jax.tree.flatten(params.weights)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    direction = structure.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])

    @jax.jit
    def loss(step: jax.Array) -> jax.Array:
        weights = jax.tree.map(lambda x, d: x + step * d, params.weights, direction)
        changed = HeadParams(weights, params.lm_head, params.target_ids)
        return recipe.loss(changed, target_params, vocabulary, batch, features, divisors, jax.random.key(0))[0]

    _, _, grads = run(kind, batch)
    slope = sum(float((g * d).sum()) for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True))
    size = 1e-3
    measured = (float(loss(jnp.float32(size))) - float(loss(jnp.float32(-size)))) / (2 * size)
    assert slope == pytest.approx(measured, rel=2e-2, abs=1e-2)


@pytest.mark.parametrize("num_steps", [1, 3, 5])
def test_chain_rows(num_steps: int) -> None:
    slots = [3, 4, 5, 6, 9, 10, 20]
    padded = jnp.asarray([[*slots, NO_SLOT, NO_SLOT]])
    found = np.asarray(alignment.chain_rows(padded, num_steps))[:, 0]
    np.testing.assert_array_equal(found[:, : len(slots)], reference.chain_rows(slots, num_steps))
    assert not found[:, len(slots) :].any()


def test_loss_is_the_mean_over_supervised_rows() -> None:
    total, tally, _ = run("eagle3", small.batch_of(EXAMPLES, 64))
    weights = np.array(UnrollConfig(num_steps=3).step_weights)
    np.testing.assert_allclose(weights, np.array([1, 0.8, 0.64]) / 2.44)
    np.testing.assert_allclose(total, (weights * tally.cross_entropy / tally.rows).sum(), rtol=1e-5)
    # Chains that would leave their answer do not count: one row an answer and step fewer.
    assert tally.rows.tolist() == [11 + 8 + 6, 11 + 8 + 6 - 3, 11 + 8 + 6 - 6]
    assert 0 < tally.in_vocabulary[0] < tally.rows[0]


def test_joint_accuracy_and_tau_by_hand() -> None:
    tally = Tally(
        rows=jnp.array([10.0, 8.0]),
        in_vocabulary=jnp.array([9.0, 7.0]),
        cross_entropy=jnp.array([18.0, 21.0]),
        acceptance=jnp.array([6.3, 4.2]),
        correct=jnp.array([6.0, 5.0]),
        joint=jnp.array([6.0, 4.0]),
        feature_error=jnp.zeros(()),
    )
    rates = rates_of(tally)
    assert rates["accuracy_0"] == pytest.approx(0.6)
    assert rates["joint_1"] == pytest.approx(0.5)
    assert rates["cross_entropy_1"] == pytest.approx(3.0)
    assert rates["acceptance_0"] == pytest.approx(0.7)
    assert rates["coverage"] == pytest.approx(0.9)
    assert rates["simulated_tau"] == pytest.approx(1 + 0.6 + 0.5)


def test_feature_loss_of_the_unrolled_recipe() -> None:
    """The mean over the rows of each step, whether or not the target's choice can be drafted, on top of the rest."""
    head, params, vocabulary = small.head("eagle3", draft_size=DRAFT_SIZE)
    _, _, target_params = small.model()
    batch = small.batch_of(EXAMPLES, 64)
    features = small.features_of(batch)
    config = UnrollConfig(num_steps=3, chunk=16, feature_weight=2.5)
    recipe = make_unroll_recipe(head, config)

    @jax.jit
    def both(weights: Any) -> tuple[jax.Array, Tally, jax.Array]:
        changed = dataclasses.replace(params, weights=weights)
        rest = (batch, features, recipe.divisors(batch), jax.random.key(0))
        states = unroll(head, changed, target_params, batch, features.taps, batch.slots, 3)
        reads = jnp.stack([head.readout(changed, state) for state in states])
        return *recipe.loss(changed, target_params, vocabulary, *rest), reads

    total, tally, reads = both(params.weights)
    (slots,) = np.asarray(batch.slots).tolist()
    slots = [slot for slot in slots if slot != NO_SLOT]
    errors = reference.feature_errors(np.asarray(reads)[:, 0], np.asarray(features.hidden[0]), slots)
    assert [len(some) for some in errors] == tally.rows.tolist()
    plain, before, _ = run("eagle3", batch)
    wanted = sum(w * np.mean(some) for w, some in zip(config.step_weights, errors, strict=True))
    assert float(total - plain) == pytest.approx(2.5 * wanted, rel=1e-4)
    assert float(tally.feature_error) == pytest.approx(sum(errors[0]), rel=1e-4)
    assert_close(dataclasses.replace(tally, feature_error=before.feature_error), before, terms_of("eagle3"))
    assert rates_of(tally)["feature_error"] == pytest.approx(np.mean(errors[0]), rel=1e-4)
    assert "feature_error" not in rates_of(before)


def test_feature_error() -> None:
    """Smooth L1, in float32 whatever the type of the features: half the square within 1, linear outside."""
    guess = jnp.array([[-3.0], [-0.5], [0.0], [1.0], [2.0]], jnp.bfloat16)
    error, grad = jax.vmap(jax.value_and_grad(feature_error), in_axes=(0, None))(guess, jnp.zeros(1, jnp.bfloat16))
    np.testing.assert_array_equal(error, np.float32([2.5, 0.125, 0.0, 0.5, 1.5]))
    np.testing.assert_array_equal(grad[:, 0].astype(jnp.float32), [-1.0, -0.5, 0.0, 1.0, 1.0])


def test_noise_is_the_keys() -> None:
    head, params, vocabulary = small.head("eagle", draft_size=DRAFT_SIZE)
    _, _, target_params = small.model()
    batch = small.batch_of(EXAMPLES, 64)
    recipe = make_feature_recipe(head, FeatureConfig(noise=0.5))
    rest = (batch, small.features_of(batch), recipe.divisors(batch))
    losses = [float(recipe.loss(params, target_params, vocabulary, *rest, jax.random.key(k))[0]) for k in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_heads_are_measured_without_noise() -> None:
    head, params, vocabulary = small.head("eagle", draft_size=DRAFT_SIZE)
    _, target, target_params = small.model()
    batch = small.batch_of(EXAMPLES, 64)
    trained, frozen = {"weights": params.weights}, step.Frozen(target_params, vocabulary)
    noisy, plain = (
        step.make_measure(make_feature_recipe(head, FeatureConfig(noise=noise, chunk=16)), target)(
            trained, frozen, {**vars(batch), **vars(small.features_of(batch))}
        )
        for noise in (0.5, 0.0)
    )
    jax.tree.map(np.testing.assert_array_equal, noisy, plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UnrollConfig(num_steps=0), "num_steps must be at least 1, got 0"),
        (lambda: UnrollConfig(decay=1.5), r"decay must be in \(0, 1\], got 1.5"),
        (lambda: UnrollConfig(alignment="other"), "alignment must be target or official, got 'other'"),
        (lambda: UnrollConfig(objective="tv"), "objective must be cross_entropy, lk_alpha, lk_lambda, got 'tv'"),
        (lambda: FeatureConfig(lk_decay=-1), "lk_decay must be at least 0, got -1"),
        (lambda: UnrollConfig(feature_weight=-1), "feature_weight must be at least 0, got -1"),
        (
            lambda: dataclasses.replace(OFFICIAL, feature_weight=0.5),
            "the official alignment has no feature loss, got feature_weight 0.5",
        ),
        (lambda: FeatureConfig(noise=-1), "noise must be at least 0, got -1"),
        (lambda: FeatureConfig(feature_weight=0, token_weight=0), "weights must be positive, got 0 and 0"),
    ],
)
def test_misuse(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_recipe_without_a_name_is_the_first_of_its_kind(kind: str) -> None:
    """As in configs from before recipes had names."""
    head, _, _ = small.head(kind, draft_size=DRAFT_SIZE)  # type: ignore[arg-type]
    knobs = {"eagle": {"noise": 0.0}, "eagle3": {"num_steps": 3}}[kind]
    assert make_head_recipe(head, knobs).num_steps == recipe_of(kind).num_steps
    assert make_head_recipe(head, {"name": "unroll", "num_steps": 2}).num_steps == 2


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("eagle3", {"name": "feature"}, "a head of kind eagle3 is trained by unroll, got recipe 'feature'"),
        ("eagle", {"name": "distil"}, "a head of kind eagle is trained by feature or unroll, got recipe 'distil'"),
        ("eagle", {"num_steps": 3}, "the recipe feature has no knob 'num_steps'; known: feature_weight, token_weight"),
        ("eagle3", {"num_steps": 0}, "num_steps must be at least 1, got 0"),
    ],
)
def test_recipes_that_cannot_be(kind: str, settings: dict[str, Any], message: str) -> None:
    head, _, _ = small.head(kind, draft_size=DRAFT_SIZE)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        make_head_recipe(head, settings)
