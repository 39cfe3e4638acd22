"""Soft cross-entropy against the target over a (draft) vocabulary, and the regression of its features.

No [rows, vocabulary] is ever held. Row n is one position of the target, and up to I unrolled steps of the head speak of
it: the target's distribution is computed once for all of them, a chunk of rows at a time. Where gradients are wanted
the same chunk yields them at once (softmax(q) - p times the LM head), so that nothing of the size of a vocabulary is
kept or computed twice.

EAGLE (arXiv 2401.15077, section 3.2): cross-entropy through the target's LM head. EAGLE-3 (arXiv 2503.01840, section
3.1; reference code `traineagle3/cnets.py`): both sides restricted to the draft vocabulary, the target renormalised.
Knows nothing of sequences, masks or steps: weights say what counts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from eagle_jax.sampling import first_largest
from eagle_jax.sharding import DATA
from eagle_jax.training.groups import EVERYWHERE, ROWS, by_group, max_over_groups
from eagle_jax.types import NO_TOKEN


class VocabularyLoss(NamedTuple):
    """What the vocabulary says about I steps at N rows; rows without weight are not computed (0 and NO_TOKEN)."""

    total: jax.Array  # f32[], sum of weights * cross-entropy: the only part that is differentiated
    cross_entropy: jax.Array  # f32[I, N]
    choice: jax.Array  # i32[I, N], the head's most probable row of its vocabulary


def feature_error(guess: jax.Array, feature: jax.Array) -> jax.Array:
    """Smooth L1 between guesses [..., E] and the target's features, mean over the width: f32[...].

    EAGLE's regression (arXiv 2401.15077, section 3.2).
    """
    return smooth_l1(guess.astype(jnp.float32) - feature.astype(jnp.float32)).mean(-1)


def smooth_l1(x: jax.Array) -> jax.Array:
    """x^2 / 2 within 1 of zero, |x| - 1/2 outside."""
    size = jnp.abs(x)
    return jnp.where(size < 1, 0.5 * x * x, size - 0.5)


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
    del train_lm_head
    found = _scan(reads, lm_head, teacher, teacher_lm_head, weights, chunk=chunk, grads=())
    return _outputs(found, weights)


def _forward(
    reads: jax.Array,
    lm_head: jax.Array,
    teacher: jax.Array,
    teacher_lm_head: jax.Array,
    weights: jax.Array,
    chunk: int,
    train_lm_head: bool,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    grads: tuple[str, ...] = ("reads", "lm_head") if train_lm_head else ("reads",)
    found = _scan(reads, lm_head, teacher, teacher_lm_head, weights, chunk=chunk, grads=grads)
    saved = (found["reads"], found.get("lm_head", jnp.zeros(())), lm_head, teacher, teacher_lm_head)
    return _outputs(found, weights), (*saved, found["cross_entropy"])


def _backward(
    chunk: int, train_lm_head: bool, saved: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, ...]:
    del chunk
    reads, lm_head_grad, lm_head, teacher, teacher_lm_head, cross_entropy = saved
    scale = cotangents[0]
    return (
        (scale * reads).astype(reads.dtype),
        (scale * lm_head_grad).astype(lm_head.dtype) if train_lm_head else jnp.zeros_like(lm_head),
        jnp.zeros_like(teacher),
        jnp.zeros_like(teacher_lm_head),
        scale * cross_entropy,
    )


_loss.defvjp(_forward, _backward)


def _outputs(found: dict[str, jax.Array], weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return (weights * found["cross_entropy"]).sum(), found["cross_entropy"], found["choice"]


def _scan(*rows: jax.Array, chunk: int, grads: tuple[str, ...]) -> dict[str, jax.Array]:
    """`_scan_rows` of these arrays, on a mesh by groups of devices: the wanted gradients by name."""
    steps = PartitionSpec(None, DATA)
    places = {"cross_entropy": steps, "choice": steps, "reads": steps, "lm_head": EVERYWHERE}
    scan = by_group(
        functools.partial(_scan_rows, chunk=chunk, grads=grads),
        rows[0].shape[1],
        in_specs=(steps, EVERYWHERE, ROWS, EVERYWHERE, steps),
        out_specs={name: places[name] for name in ("cross_entropy", "choice", *grads)},
    )
    return scan(*rows)


def _scan_rows(
    reads: jax.Array,
    lm_head: jax.Array,
    teacher: jax.Array,
    teacher_lm_head: jax.Array,
    weights: jax.Array,
    *,
    chunk: int,
    grads: tuple[str, ...],
    axis: str | None,
) -> dict[str, jax.Array]:
    """Cross-entropy, choice and the wanted gradients of the weighted sum, by name.

    Rows without any weight are left out: the number of chunks is a run-time number.
    """
    num_steps, num_rows, _ = reads.shape
    active = (weights != 0).any(0)
    (order,) = jnp.nonzero(active, size=num_rows, fill_value=num_rows)
    order = jnp.pad(order, (0, -num_rows % chunk), constant_values=num_rows)

    def measure(index: jax.Array, found: dict[str, jax.Array]) -> dict[str, jax.Array]:
        some = lax.dynamic_slice_in_dim(order, index * chunk, chunk)

        def pick(x: jax.Array) -> jax.Array:
            return x.at[:, some].get(mode="fill", fill_value=0)

        def put(name: str, values: jax.Array) -> None:
            found[name] = found[name].at[:, some].set(values.astype(found[name].dtype), mode="drop")

        found, read = dict(found), pick(reads)
        p = jax.nn.softmax(_logits("ce,ue->cu", pick(teacher[None])[0], teacher_lm_head), axis=-1)
        logits = _logits("ice,ue->icu", read, lm_head)
        seen = _compare(p, logits)
        put("cross_entropy", seen.cross_entropy)
        put("choice", seen.choice)
        if grads:
            logit_grad = (seen.gradient * pick(weights)[:, :, None]).astype(read.dtype)
            put("reads", _logits("icu,ue->ice", logit_grad, lm_head))
        if "lm_head" in grads:
            found["lm_head"] += jnp.einsum("icu,ice->ue", logit_grad, read, preferred_element_type=jnp.float32)
        return found

    start = {
        "cross_entropy": jnp.zeros((num_steps, num_rows), jnp.float32),
        "choice": jnp.full((num_steps, num_rows), NO_TOKEN, jnp.int32),
        **({"reads": jnp.zeros_like(reads)} if grads else {}),
        **({"lm_head": jnp.zeros(lm_head.shape, jnp.float32)} if "lm_head" in grads else {}),
    }
    num_chunks = max_over_groups((active.sum() + chunk - 1) // chunk, axis)
    found = lax.fori_loop(0, num_chunks, measure, start)
    if axis is not None and "lm_head" in grads:
        found["lm_head"] = lax.psum(found["lm_head"], axis)
    return found


def _logits(axes: str, x: jax.Array, rows: jax.Array) -> jax.Array:
    return jnp.einsum(axes, x, rows.astype(x.dtype), preferred_element_type=jnp.float32)


class _Step(NamedTuple):
    """What a chunk's logits say."""

    cross_entropy: jax.Array  # f32[I, C], - sum p log q
    choice: jax.Array  # i32[I, C]
    gradient: jax.Array  # f32[I, C, U], of the cross-entropy with respect to the logits: softmax(q) - p


def _compare(p: jax.Array, logits: jax.Array) -> _Step:
    """The head's logits f32[I, C, U] against the target's law f32[C, U]."""
    top = logits.max(-1, keepdims=True)
    shifted = jnp.exp(logits - top)
    mass = shifted.sum(-1, keepdims=True)
    # p sums to 1, so - sum p (z - lse) = lse - sum p z.
    cross_entropy = (top + jnp.log(mass))[:, :, 0] - (p[None] * logits).sum(-1)
    return _Step(cross_entropy, first_largest(logits), shifted / mass - p[None])
