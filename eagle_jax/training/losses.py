"""Soft cross-entropy against the target over a (draft) vocabulary, without ever holding [rows, vocabulary].

Row n is one position of the target, and up to I unrolled steps of the head speak of it: the target's distribution is
computed once for all of them, a chunk of rows at a time. Where gradients are wanted the same chunk yields them at once
(softmax(q) - p times the LM head), so that nothing of the size of a vocabulary is kept or computed twice.

EAGLE (arXiv 2401.15077, section 3.2): cross-entropy through the target's LM head. EAGLE-3 (arXiv 2503.01840, section
3.1; reference code `traineagle3/cnets.py`): both sides restricted to the draft vocabulary, the target renormalised.
Knows nothing of sequences, masks or steps: weights say what counts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class VocabularyLoss(NamedTuple):
    """What the vocabulary says about I steps at N rows."""

    total: jax.Array  # f32[], sum of weights * cross-entropy: the only part that is differentiated
    cross_entropy: jax.Array  # f32[I, N]
    choice: jax.Array  # i32[I, N], the head's most probable row of its vocabulary


class _Chunk(NamedTuple):
    """Some rows and what is known of them."""

    reads: jax.Array  # [I, C, E]
    teacher: jax.Array  # [C, Et]
    weights: jax.Array  # f32[I, C]


def vocabulary_loss(
    reads: jax.Array,
    lm_head: jax.Array,
    teacher: jax.Array,
    teacher_lm_head: jax.Array,
    weights: jax.Array,
    *,
    chunk: int = 128,
    train_lm_head: bool = False,
) -> VocabularyLoss:
    """Weighted sum of - sum_u p(u) log q(u), p the target and q the head.

    Args:
      reads: [I, N, E], what the head's LM head reads.
      lm_head: [U, E].
      teacher: [N, Et], what the target's LM head reads; no gradient.
      teacher_lm_head: [U, Et], rows of the target's LM head for the same tokens; no gradient.
      weights: f32[I, N]; a weight of 0 leaves a row out.
      chunk: rows whose logits f32[I + 1, chunk, U] exist at a time.
      train_lm_head: whether `lm_head` gets a gradient; frozen, it costs none.

    Raises:
      ValueError: a chunk below 1, or numbers of rows that do not agree.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if reads.shape[1] != teacher.shape[0] or weights.shape != reads.shape[:2]:
        raise ValueError(f"reads {reads.shape}, teacher {teacher.shape} and weights {weights.shape} differ in rows")
    if lm_head.shape[0] != teacher_lm_head.shape[0]:
        raise ValueError(f"the head has {lm_head.shape[0]} draft tokens, the teacher {teacher_lm_head.shape[0]}")
    frozen = jax.lax.stop_gradient((teacher, teacher_lm_head))
    lm_head = lm_head if train_lm_head else lax.stop_gradient(lm_head)
    total, cross_entropy, choice = _loss(reads, lm_head, *frozen, weights, chunk, train_lm_head)
    return VocabularyLoss(total, lax.stop_gradient(cross_entropy), choice)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _loss(
    reads: jax.Array,
    lm_head: jax.Array,
    teacher: jax.Array,
    teacher_lm_head: jax.Array,
    weights: jax.Array,
    chunk: int,
    train_lm_head: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    def measure(carry: None, rows: _Chunk) -> tuple[None, tuple[jax.Array, jax.Array]]:
        target_logits, logits = _logits(rows, lm_head, teacher_lm_head)
        cross_entropy, _ = _cross_entropy(target_logits, logits)
        return carry, (cross_entropy, _choice(logits))

    _, (cross_entropy, choice) = lax.scan(measure, None, _split(reads, teacher, weights, chunk))
    cross_entropy, choice = _join(cross_entropy, weights), _join(choice, weights)
    return (weights * cross_entropy).sum(), cross_entropy, choice


def _forward(
    reads: jax.Array,
    lm_head: jax.Array,
    teacher: jax.Array,
    teacher_lm_head: jax.Array,
    weights: jax.Array,
    chunk: int,
    train_lm_head: bool,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    """The loss and, from the same logits, its gradients with respect to `reads` and `lm_head`."""

    def measure(lm_head_grad: jax.Array, rows: _Chunk) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
        target_logits, logits = _logits(rows, lm_head, teacher_lm_head)
        cross_entropy, difference = _cross_entropy(target_logits, logits)
        logit_grad = (difference * rows.weights[:, :, None]).astype(lm_head.dtype)
        read_grad = jnp.einsum("icu,ue->ice", logit_grad, lm_head, preferred_element_type=jnp.float32)
        if train_lm_head:
            lm_head_grad += jnp.einsum("icu,ice->ue", logit_grad, rows.reads, preferred_element_type=jnp.float32)
        return lm_head_grad, (cross_entropy, _choice(logits), read_grad.astype(reads.dtype))

    start = jnp.zeros(lm_head.shape if train_lm_head else (), jnp.float32)
    rows = _split(reads, teacher, weights, chunk)
    lm_head_grad, (cross_entropy, choice, read_grad) = lax.scan(measure, start, rows)
    cross_entropy, choice = _join(cross_entropy, weights), _join(choice, weights)
    outputs = (weights * cross_entropy).sum(), cross_entropy, choice
    return outputs, (_join(read_grad, weights), lm_head_grad, lm_head, teacher, teacher_lm_head, cross_entropy)


def _backward(
    chunk: int, train_lm_head: bool, saved: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, ...]:
    del chunk
    read_grad, lm_head_grad, lm_head, teacher, teacher_lm_head, cross_entropy = saved
    scale = cotangents[0]
    return (
        (scale * read_grad).astype(read_grad.dtype),
        (scale * lm_head_grad).astype(lm_head.dtype) if train_lm_head else jnp.zeros_like(lm_head),
        jnp.zeros_like(teacher),
        jnp.zeros_like(teacher_lm_head),
        scale * cross_entropy,
    )


_loss.defvjp(_forward, _backward)


def _split(reads: jax.Array, teacher: jax.Array, weights: jax.Array, chunk: int) -> _Chunk:
    """Rows in chunks along a new first axis; the last chunk is filled up with rows of weight 0."""
    num_rows = teacher.shape[0]
    chunk = min(chunk, num_rows)
    missing = -num_rows % chunk

    def by_steps(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    padded = jnp.pad(teacher, [(0, missing), (0, 0)]).reshape(-1, chunk, teacher.shape[1])
    return _Chunk(by_steps(reads), padded, by_steps(weights))


def _join(chunks: jax.Array, weights: jax.Array) -> jax.Array:
    """[chunks, I, C, ...] -> [I, N, ...], the filling left out."""
    whole = jnp.moveaxis(chunks, 0, 1)
    return whole.reshape(whole.shape[0], -1, *whole.shape[3:])[:, : weights.shape[1]]


def _logits(rows: _Chunk, lm_head: jax.Array, teacher_lm_head: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The target's f32[C, U] and the head's f32[I, C, U]."""
    target = jnp.einsum(
        "ce,ue->cu", rows.teacher, teacher_lm_head.astype(rows.teacher.dtype), preferred_element_type=jnp.float32
    )
    logits = jnp.einsum("ice,ue->icu", rows.reads, lm_head.astype(rows.reads.dtype), preferred_element_type=jnp.float32)
    return target, logits


def _cross_entropy(target_logits: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """- sum p log q, f32[I, C], and softmax(q) - p, its gradient with respect to the logits, f32[I, C, U]."""
    p = jax.nn.softmax(target_logits, axis=-1)
    top = logits.max(-1, keepdims=True)
    shifted = jnp.exp(logits - top)
    mass = shifted.sum(-1, keepdims=True)
    # p sums to 1, so - sum p (z - lse) = lse - sum p z.
    cross_entropy = (top + jnp.log(mass))[:, :, 0] - (p[None] * logits).sum(-1)
    return cross_entropy, shifted / mass - p[None]


def _choice(logits: jax.Array) -> jax.Array:
    return logits.argmax(-1).astype(jnp.int32)
