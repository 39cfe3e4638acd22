"""Soft cross-entropy against the target over a (draft) vocabulary, and the regression of its features.

No [rows, vocabulary] is ever held. Row n is one position of the target, and up to I unrolled steps of the head predict
it: the target's distribution is computed once for all of them, a chunk of rows at a time. Where gradients are wanted
the same chunk yields them at once (softmax(q) - p times the LM head), so that nothing of the size of a vocabulary is
stored or computed twice.

EAGLE (arXiv 2401.15077, section 3.2): cross-entropy through the target's LM head. EAGLE-3 (arXiv 2503.01840, section
3.1; reference code `traineagle3/cnets.py`): both sides restricted to the draft vocabulary, the target renormalised.
LK losses (arXiv 2602.23881): how much of a draft the p/q rule would accept, instead of the cross-entropy.
Knows nothing of sequences, masks or steps: weights say what counts.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec

from eagle_jax.sampling import first_largest
from eagle_jax.sharding import DATA, EVERYWHERE, ROWS, by_group, over_rows
from eagle_jax.types import NO_TOKEN

ObjectiveName = Literal["cross_entropy", "lk_alpha", "lk_lambda"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised at a row, p being the target, q the head and a = sum_u min(p(u), q(u)) the acceptance rate.

    cross_entropy   - sum_u p(u) log q(u)
    lk_alpha        - log a
    lk_lambda       l * cross-entropy + (1 - l) * (1 - a) with l = exp(-decay * a), through which no gradient flows

    LK losses: arXiv 2602.23881, section 4. Of a head of few weights, a smaller cross-entropy does not always mean that
    more is accepted.

    Raises:
      ValueError: another name, or a decay below 0.
    """

    name: ObjectiveName = "cross_entropy"
    decay: float = 3.0  # of `lk_lambda`

    def __post_init__(self) -> None:
        if self.name not in get_args(ObjectiveName):
            raise ValueError(f"objective must be {', '.join(get_args(ObjectiveName))}, got {self.name!r}")
        if self.decay < 0:
            raise ValueError(f"lk_decay must be at least 0, got {self.decay}")


CROSS_ENTROPY = Objective()


class VocabularyLoss(NamedTuple):
    """The loss of I steps at N rows; rows without weight are not computed (0 and NO_TOKEN)."""

    total: jax.Array  # f32[], sum of weights * objective: the only part that is differentiated
    cross_entropy: jax.Array  # f32[I, N]
    acceptance: jax.Array  # f32[I, N], sum_u min(p(u), q(u))
    choice: jax.Array  # i32[I, N], the head's most probable row of its vocabulary


MEASURED = VocabularyLoss._fields[1:]
"""What a chunk yields beside the objective and its gradients."""


def feature_error(guess: jax.Array, feature: jax.Array) -> jax.Array:
    """Smooth L1 between guesses [..., E] and the target's features, mean over the width: f32[...].

    EAGLE's regression (arXiv 2401.15077, section 3.2).
    """
    return optax.losses.huber_loss(guess.astype(jnp.float32), feature.astype(jnp.float32), delta=1).mean(-1)


def vocabulary_loss(
    reads: jax.Array,
    lm_head: jax.Array,
    teacher: jax.Array,
    teacher_lm_head: jax.Array,
    weights: jax.Array,
    *,
    objective: Objective = CROSS_ENTROPY,
    chunk: int | None = None,
    train_lm_head: bool = False,
) -> VocabularyLoss:
    """Weighted sum of the objective, by default of - sum_u p(u) log q(u), p the target and q the head.

    Args:
      reads: [I, N, E], what the head's LM head reads.
      lm_head: [U, E].
      teacher: [N, Et], what the target's LM head reads; no gradient.
      teacher_lm_head: [U, Et], rows of the target's LM head for the same tokens; no gradient.
      weights: f32[I, N]; a weight of 0 leaves a row out.
      objective: what is minimised at each row.
      chunk: rows whose logits f32[I + 1, chunk, U] exist at a time; None: by platform.
      train_lm_head: whether `lm_head` gets a gradient; frozen, it costs none.

    Raises:
      ValueError: a chunk below 1, or numbers of rows that do not agree.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if reads.shape[1] != teacher.shape[0] or weights.shape != reads.shape[:2]:
        raise ValueError(f"reads {reads.shape}, teacher {teacher.shape} and weights {weights.shape} differ in rows")
    if lm_head.shape[0] != teacher_lm_head.shape[0]:
        raise ValueError(f"the head has {lm_head.shape[0]} draft tokens, the teacher {teacher_lm_head.shape[0]}")
    frozen = jax.lax.stop_gradient((teacher, teacher_lm_head))
    lm_head = lm_head if train_lm_head else lax.stop_gradient(lm_head)
    loss = _loss(reads, lm_head, *frozen, weights, objective, chunk, train_lm_head)
    return VocabularyLoss(loss.total, *map(lax.stop_gradient, loss[1:]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _loss(
    reads: jax.Array,
    lm_head: jax.Array,
    teacher: jax.Array,
    teacher_lm_head: jax.Array,
    weights: jax.Array,
    objective: Objective,
    chunk: int | None,
    train_lm_head: bool,
) -> VocabularyLoss:
    del train_lm_head
    results = _scan(reads, lm_head, teacher, teacher_lm_head, weights, objective=objective, chunk=chunk, grads=())
    return _outputs(results, weights)


def _forward(
    reads: jax.Array,
    lm_head: jax.Array,
    teacher: jax.Array,
    teacher_lm_head: jax.Array,
    weights: jax.Array,
    objective: Objective,
    chunk: int | None,
    train_lm_head: bool,
) -> tuple[VocabularyLoss, tuple[jax.Array, ...]]:
    grads: tuple[str, ...] = ("reads", "lm_head") if train_lm_head else ("reads",)
    results = _scan(reads, lm_head, teacher, teacher_lm_head, weights, objective=objective, chunk=chunk, grads=grads)
    saved = (results["reads"], results.get("lm_head", jnp.zeros(())), lm_head, teacher, teacher_lm_head)
    return _outputs(results, weights), (*saved, results["value"])


def _backward(
    objective: Objective,
    chunk: int | None,
    train_lm_head: bool,
    saved: tuple[jax.Array, ...],
    cotangents: VocabularyLoss,
) -> tuple[jax.Array, ...]:
    del objective, chunk
    reads, lm_head_grad, lm_head, teacher, teacher_lm_head, value = saved
    scale = cotangents.total
    return (
        (scale * reads).astype(reads.dtype),
        (scale * lm_head_grad).astype(lm_head.dtype) if train_lm_head else jnp.zeros_like(lm_head),
        jnp.zeros_like(teacher),
        jnp.zeros_like(teacher_lm_head),
        scale * value,
    )


_loss.defvjp(_forward, _backward)


def _outputs(results: dict[str, jax.Array], weights: jax.Array) -> VocabularyLoss:
    return VocabularyLoss((weights * results["value"]).sum(), **{name: results[name] for name in MEASURED})


def _scan(*rows: jax.Array, objective: Objective, chunk: int | None, grads: tuple[str, ...]) -> dict[str, jax.Array]:
    """`_scan_rows` of these arrays, on a mesh by groups of devices: the wanted gradients by name."""
    steps = PartitionSpec(None, DATA)
    places = dict.fromkeys(("value", *MEASURED, "reads"), steps) | {"lm_head": EVERYWHERE}
    scan = by_group(
        functools.partial(_scan_rows, objective=objective, chunk=chunk, grads=grads),
        rows[0].shape[1],
        in_specs=(steps, EVERYWHERE, ROWS, EVERYWHERE, steps),
        out_specs={name: places[name] for name in ("value", *MEASURED, *grads)},
    )
    return scan(*rows)


def _scan_rows(
    reads: jax.Array,
    lm_head: jax.Array,
    teacher: jax.Array,
    teacher_lm_head: jax.Array,
    weights: jax.Array,
    *,
    objective: Objective,
    chunk: int | None,
    grads: tuple[str, ...],
    axis: str | None,
) -> dict[str, jax.Array]:
    """Objective, what is measured beside it, and the wanted gradients of the weighted sum, by name.

    Rows without any weight are left out: the number of chunks is a run-time number.
    """
    num_steps, num_rows, _ = reads.shape

    def measure(some: jax.Array, results: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def pick(x: jax.Array) -> jax.Array:
            return x.at[:, some].get(mode="fill", fill_value=0)

        def put(name: str, values: jax.Array) -> None:
            results[name] = results[name].at[:, some].set(values.astype(results[name].dtype), mode="drop")

        results, read = dict(results), pick(reads)
        p = jax.nn.softmax(product("ce,ue->cu", pick(teacher[None])[0], teacher_lm_head), axis=-1)
        logits = product("ice,ue->icu", read, lm_head)
        compared = compare(p, logits, objective)
        for name in ("value", *MEASURED):
            put(name, getattr(compared, name))
        if grads:
            logit_grad = (compared.gradient * pick(weights)[:, :, None]).astype(read.dtype)
            put("reads", product("icu,ue->ice", logit_grad, lm_head))
        if "lm_head" in grads:
            results["lm_head"] += jnp.einsum("icu,ice->ue", logit_grad, read, preferred_element_type=jnp.float32)
        return results

    start = {
        **{name: jnp.zeros((num_steps, num_rows), jnp.float32) for name in ("value", "cross_entropy", "acceptance")},
        "choice": jnp.full((num_steps, num_rows), NO_TOKEN, jnp.int32),
        **({"reads": jnp.zeros_like(reads)} if grads else {}),
        **({"lm_head": jnp.zeros(lm_head.shape, jnp.float32)} if "lm_head" in grads else {}),
    }
    results = over_rows(measure, start, (weights != 0).any(0), chunk, axis)
    if axis is not None and "lm_head" in grads:
        results["lm_head"] = lax.psum(results["lm_head"], axis)
    return results


def product(axes: str, x: jax.Array, rows: jax.Array) -> jax.Array:
    """An einsum with rows of a table in the dtype of `x`, summed up in float32."""
    return jnp.einsum(axes, x, rows.astype(x.dtype), preferred_element_type=jnp.float32)


class ChunkLoss(NamedTuple):
    """The loss of a chunk's logits."""

    value: jax.Array  # f32[I, C], of the objective
    cross_entropy: jax.Array  # f32[I, C], - sum p log q
    acceptance: jax.Array  # f32[I, C], sum min(p, q)
    choice: jax.Array  # i32[I, C]
    gradient: jax.Array  # f32[I, C, U], of the objective with respect to the logits


def compare(p: jax.Array, logits: jax.Array, objective: Objective = CROSS_ENTROPY) -> ChunkLoss:
    """The head's logits f32[I, C, U] against the target's distribution f32[C, U]."""
    top = logits.max(-1, keepdims=True)
    shifted = jnp.exp(logits - top)
    mass = shifted.sum(-1, keepdims=True)
    # p sums to 1, so - sum p (z - lse) = lse - sum p z.
    cross_entropy = (top + jnp.log(mass))[:, :, 0] - (p[None] * logits).sum(-1)
    q = shifted / mass
    acceptance = jnp.maximum(jnp.minimum(p[None], q).sum(-1), jnp.finfo(q.dtype).tiny)  # its logarithm is finite
    measured = (cross_entropy, acceptance, first_largest(logits))
    if objective.name == "cross_entropy":
        return ChunkLoss(cross_entropy, *measured, q - p[None])
    # Where q is the smaller one, min(p, q) moves with it: of the sum, da/dz_u = q_u ([q_u < p_u] - sum of such q).
    moves = jnp.where(q < p[None], q, 0)
    rise = moves - q * moves.sum(-1, keepdims=True)
    if objective.name == "lk_alpha":
        return ChunkLoss(-jnp.log(acceptance), *measured, -rise / acceptance[:, :, None])
    share = jnp.exp(-objective.decay * acceptance)
    value = share * cross_entropy + (1 - share) * (1 - acceptance)
    share = share[:, :, None]
    return ChunkLoss(value, *measured, share * (q - p[None]) - (1 - share) * rise)
