"""The chunked vocabulary loss against dense logits: values, gradients, and what is never built."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.training.losses import vocabulary_loss
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
    with pytest.raises(ValueError, match="29 draft tokens, the teacher 5"):
        vocabulary_loss(reads, lm_head, teacher, teacher_lm_head[:5], weights)
