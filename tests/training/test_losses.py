"""The chunked vocabulary loss against dense logits: values, gradients, and what is never built."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.training.losses import Objective, vocabulary_loss
from eagle_jax.types import NO_TOKEN
from tests.tolerance import assert_close, gradient_terms
from tests.training import reference
from tests.training.programs import shapes

SIZES = {"steps": 3, "rows": 11, "width": 8, "teacher_width": 6, "vocabulary": 29}
TERMS = SIZES["width"] + SIZES["teacher_width"] + 2 * SIZES["vocabulary"]
"""Logits of both, and the sums of softmax and cross-entropy."""
ROWS = SIZES["steps"] * SIZES["rows"]


def inputs(seed: int, sizes: dict[str, int] = SIZES) -> tuple[jax.Array, ...]:
    """Random reads, LM head, teacher, its LM head, and weights with zeros among them."""
    draw = np.random.default_rng(seed)
    steps, rows, vocabulary = sizes["steps"], sizes["rows"], sizes["vocabulary"]
    weights = draw.uniform(0.1, 1, (steps, rows)) * (draw.random((steps, rows)) < 0.6)
    weights[:, 4] = 0  # a row that nobody asks for
    arrays = (
        draw.standard_normal((steps, rows, sizes["width"])),
        draw.standard_normal((vocabulary, sizes["width"])),
        draw.standard_normal((rows, sizes["teacher_width"])),
        draw.standard_normal((vocabulary, sizes["teacher_width"])),
        weights,
    )
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def dense(
    reads: jax.Array, lm_head: jax.Array, teacher: jax.Array, teacher_lm_head: jax.Array, weights: jax.Array
) -> jax.Array:
    """The weighted sum by automatic differentiation's own means."""
    p = jax.nn.softmax(teacher @ teacher_lm_head.T)
    return -(weights[:, :, None] * p[None] * jax.nn.log_softmax(reads @ lm_head.T)).sum()


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_chunked_equals_dense(chunk: int) -> None:
    reads, lm_head, teacher, teacher_lm_head, weights = inputs(chunk)
    found = vocabulary_loss(reads, lm_head, teacher, teacher_lm_head, weights, chunk=chunk)
    wanted = reference.cross_entropy(*map(np.asarray, (reads, lm_head, teacher, teacher_lm_head)))
    active = (np.asarray(weights) != 0).any(0)
    assert_close(found.cross_entropy[:, active], wanted[:, active], TERMS)
    assert_close(found.total, (np.asarray(weights) * wanted).sum(), TERMS + ROWS)
    p, q = jax.nn.softmax(teacher @ teacher_lm_head.T), jax.nn.softmax(reads @ lm_head.T)
    assert_close(found.acceptance[:, active], np.minimum(p[None], q).sum(-1)[:, active], TERMS)
    np.testing.assert_array_equal(found.choice[:, active], np.asarray(reads @ lm_head.T).argmax(-1)[:, active])


@pytest.mark.parametrize("train_lm_head", [False, True])
@pytest.mark.parametrize("chunk", [4, 128])
def test_gradients(train_lm_head: bool, chunk: int) -> None:
    reads, lm_head, teacher, teacher_lm_head, weights = inputs(0)

    def total(reads: jax.Array, lm_head: jax.Array) -> jax.Array:
        options = {"chunk": chunk, "train_lm_head": train_lm_head}
        return 3.0 * vocabulary_loss(reads, lm_head, teacher, teacher_lm_head, weights, **options).total

    found = jax.grad(total, argnums=(0, 1))(reads, lm_head)
    wanted = jax.grad(lambda *some: 3.0 * dense(*some, teacher, teacher_lm_head, weights), argnums=(0, 1))
    wanted = wanted(reads, lm_head)
    wanted = wanted if train_lm_head else (wanted[0], np.zeros_like(lm_head))
    assert_close(found, wanted, gradient_terms(TERMS, ROWS))


def dense_lk(
    objective: Objective,
    reads: jax.Array,
    lm_head: jax.Array,
    teacher: jax.Array,
    teacher_lm_head: jax.Array,
    weights: jax.Array,
) -> jax.Array:
    """An LK loss by automatic differentiation's own means."""
    p, log_q = jax.nn.softmax(teacher @ teacher_lm_head.T)[None], jax.nn.log_softmax(reads @ lm_head.T)
    accepted = jnp.minimum(p, jnp.exp(log_q)).sum(-1)
    share = jax.lax.stop_gradient(jnp.exp(-objective.decay * accepted))
    mixed = share * -(p * log_q).sum(-1) + (1 - share) * (1 - accepted)
    return (weights * (-jnp.log(accepted) if objective.name == "lk_alpha" else mixed)).sum()


@pytest.mark.parametrize("train_lm_head", [False, True])
@pytest.mark.parametrize(
    "objective", [Objective("lk_alpha"), Objective("lk_lambda"), Objective("lk_lambda", 0.5), Objective("lk_lambda", 0)]
)
def test_lk_losses(objective: Objective, train_lm_head: bool) -> None:
    reads, lm_head, teacher, teacher_lm_head, weights = inputs(0)
    options = {"objective": objective, "chunk": 4, "train_lm_head": train_lm_head}

    def total(reads: jax.Array, lm_head: jax.Array, weights: jax.Array) -> jax.Array:
        return 3.0 * vocabulary_loss(reads, lm_head, teacher, teacher_lm_head, weights, **options).total

    def wanted(reads: jax.Array, lm_head: jax.Array, weights: jax.Array) -> jax.Array:
        return 3.0 * dense_lk(objective, reads, lm_head, teacher, teacher_lm_head, weights)

    assert_close(total(reads, lm_head, weights), wanted(reads, lm_head, weights), TERMS + ROWS)
    actual = jax.grad(total, argnums=(0, 1, 2))(reads, lm_head, weights)
    by_autodiff = jax.grad(wanted, argnums=(0, 1, 2))(reads, lm_head, weights)
    if not train_lm_head:
        assert not np.asarray(actual[1]).any()
        actual, by_autodiff = actual[::2], by_autodiff[::2]
    asked = np.asarray(weights) != 0  # rows without weight are not computed, so nothing flows into their weight
    actual, by_autodiff = ((*grads[:-1], np.asarray(grads[-1])[asked]) for grads in (actual, by_autodiff))
    assert_close(actual, by_autodiff, gradient_terms(TERMS, ROWS))


def test_lk_losses_of_the_target_itself() -> None:
    """Everything is accepted: lk_alpha is 0, and cross-entropy is all that is left of lk_lambda, without a gradient."""
    _, lm_head, _, _, weights = inputs(1)
    teacher = jnp.asarray(np.random.default_rng(1).standard_normal((SIZES["rows"], SIZES["width"])), jnp.float32)
    reads = jnp.broadcast_to(teacher, (SIZES["steps"], *teacher.shape))
    entropy = vocabulary_loss(reads, lm_head, teacher, lm_head, weights).total
    for objective, value in ((Objective("lk_alpha"), 0.0), (Objective("lk_lambda", 2.0), np.exp(-2.0) * entropy)):
        loss, grad = jax.value_and_grad(
            lambda reads, objective=objective: (
                vocabulary_loss(reads, lm_head, teacher, lm_head, weights, objective=objective).total
            )
        )(reads)
        np.testing.assert_allclose(loss, value, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(grad, 0, atol=1e-5)


def test_lk_losses_stay_finite_where_nothing_is_accepted() -> None:
    """Target and head are certain of different tokens: every product underflows."""
    sure = 1e4 * jnp.eye(2)
    for name in ("lk_alpha", "lk_lambda"):
        loss, grad = jax.value_and_grad(
            lambda reads, name=name: (
                vocabulary_loss(reads, sure, jnp.eye(2)[:1], sure, jnp.ones((1, 1)), objective=Objective(name)).total
            )
        )(jnp.eye(2)[None, 1:])
        assert np.isfinite(loss)
        assert np.isfinite(grad).all()


def test_the_teacher_gets_no_gradient() -> None:
    reads, lm_head, teacher, teacher_lm_head, weights = inputs(0)
    grads = jax.grad(lambda *some: vocabulary_loss(reads, lm_head, *some, weights).total, argnums=(0, 1))(
        teacher, teacher_lm_head
    )
    assert not any(np.asarray(grad).any() for grad in grads)


def test_rows_without_weight_are_not_computed() -> None:
    reads, lm_head, teacher, teacher_lm_head, weights = inputs(0)
    found = vocabulary_loss(reads.at[:, 4].set(jnp.nan), lm_head, teacher, teacher_lm_head, weights)
    assert np.isfinite(found.total)
    assert (np.asarray(found.choice[:, 4]) == NO_TOKEN).all()


def test_never_holds_rows_times_vocabulary() -> None:
    sizes = {"steps": 3, "rows": 256, "width": 8, "teacher_width": 8, "vocabulary": 509}
    chunk = 16

    def total(reads: jax.Array, lm_head: jax.Array, *rest: jax.Array) -> jax.Array:
        return vocabulary_loss(reads, lm_head, *rest, chunk=chunk, train_lm_head=True).total

    program = jax.make_jaxpr(jax.grad(total, argnums=(0, 1)))(*inputs(0, sizes))
    over_vocabulary = [shape for shape in shapes(program.jaxpr) if sizes["vocabulary"] in shape]
    assert (sizes["steps"], chunk, sizes["vocabulary"]) in over_vocabulary
    assert max(map(math.prod, over_vocabulary)) == sizes["steps"] * chunk * sizes["vocabulary"]


def test_misuse() -> None:
    reads, lm_head, teacher, teacher_lm_head, weights = inputs(0)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        vocabulary_loss(reads, lm_head, teacher, teacher_lm_head, weights, chunk=0)
    with pytest.raises(ValueError, match="differ in rows"):
        vocabulary_loss(reads, lm_head, teacher[:3], teacher_lm_head, weights)
    with pytest.raises(ValueError, match="objective must be cross_entropy, lk_alpha, lk_lambda, got 'tv'"):
        Objective("tv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lk_decay must be at least 0, got -1"):
        Objective("lk_lambda", -1)
    with pytest.raises(ValueError, match="29 draft tokens, the teacher 5"):
        vocabulary_loss(reads, lm_head, teacher, teacher_lm_head[:5], weights)
