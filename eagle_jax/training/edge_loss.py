"""Soft cross-entropy of a one-pass head: of its logits alone, and of its logits with edges, against one teacher.

    base = read . LM head                     what makes the shortlist of a slot
    edge = base + before . after              the same given the token before, a low-rank term

Both share the product with the LM head and the target's distribution, so the loss of a row costs little more than one
cross-entropy. As in `losses` no [rows, vocabulary] is ever held: rows are taken a chunk at a time, and where gradients
are wanted the same chunk yields them at once. The LM heads are frozen; `after` is trained.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from eagle_jax.sharding import EVERYWHERE, ROWS, by_group, over_rows
from eagle_jax.training.losses import MEASURED, compare, product
from eagle_jax.types import NO_TOKEN


class EdgeLoss(NamedTuple):
    """The loss of N rows; rows without weight are not computed (0 and NO_TOKEN)."""

    total: jax.Array  # f32[], the only part that is differentiated
    cross_entropy: jax.Array  # f32[N], of the logits with edges
    acceptance: jax.Array  # f32[N], the same: sum_u min(p(u), q(u))
    choice: jax.Array  # i32[N], the most probable row of the vocabulary by the logits with edges


class EdgeRows(NamedTuple):
    """What the logits of N rows are made of."""

    reads: jax.Array  # [N, E], what the LM head reads
    before: jax.Array  # [N, r], of the token before
    after: jax.Array  # [U, r], of each token of the vocabulary
    lm_head: jax.Array  # [U, E]; no gradient
    teacher: jax.Array  # [N, Et], what the target's LM head reads; no gradient
    teacher_lm_head: jax.Array  # [U, Et], rows of the target's LM head for the same tokens; no gradient


TRAINED = ("reads", "before", "after")


def edge_loss(rows: EdgeRows, weights: jax.Array, *, base_weight: float, chunk: int | None = None) -> EdgeLoss:
    """Sum of weights * (cross-entropy with edges + base_weight * cross-entropy without).

    Args:
      rows: N rows.
      weights: f32[N]; a weight of 0 leaves a row out.
      base_weight: of the logits without edges.
      chunk: rows whose logits f32[chunk, U] exist at a time; None: by platform.

    Raises:
      ValueError: a chunk below 1, or numbers of rows that do not agree.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    counts = {len(x) for x in (rows.reads, rows.before, rows.teacher, weights)}
    if len(counts) > 1 or rows.before.shape[1] != rows.after.shape[1]:
        raise ValueError(
            f"reads {rows.reads.shape}, before {rows.before.shape}, teacher {rows.teacher.shape} and weights"
            f" {weights.shape} differ in rows, or in rank from after {rows.after.shape}"
        )
    frozen = {name: lax.stop_gradient(getattr(rows, name)) for name in ("lm_head", "teacher", "teacher_lm_head")}
    loss = _loss(rows._replace(**frozen), weights, base_weight, chunk)
    return EdgeLoss(loss.total, *map(lax.stop_gradient, loss[1:]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _loss(rows: EdgeRows, weights: jax.Array, base_weight: float, chunk: int | None) -> EdgeLoss:
    return _outputs(_scan(rows, weights, base_weight, chunk, grads=False), weights)


def _outputs(results: dict[str, jax.Array], weights: jax.Array) -> EdgeLoss:
    return EdgeLoss((weights * results["value"]).sum(), **{name: results[name] for name in MEASURED})


def _forward(
    rows: EdgeRows, weights: jax.Array, base_weight: float, chunk: int | None
) -> tuple[EdgeLoss, tuple[EdgeRows, dict[str, jax.Array]]]:
    results = _scan(rows, weights, base_weight, chunk, grads=True)
    return _outputs(results, weights), (rows, {name: results[name] for name in (*TRAINED, "value")})


def _backward(
    base_weight: float,
    chunk: int | None,
    saved: tuple[EdgeRows, dict[str, jax.Array]],
    cotangents: EdgeLoss,
) -> tuple[EdgeRows, jax.Array]:
    del base_weight, chunk
    rows, results = saved
    scale = cotangents.total
    grads = jax.tree.map(jnp.zeros_like, rows)
    trained = {name: (scale * results[name]).astype(getattr(rows, name).dtype) for name in TRAINED}
    return grads._replace(**trained), scale * results["value"]


_loss.defvjp(_forward, _backward)


def _scan(
    rows: EdgeRows, weights: jax.Array, base_weight: float, chunk: int | None, *, grads: bool
) -> dict[str, jax.Array]:
    """`_scan_rows`, on a mesh by groups of devices."""
    names = ("value", *MEASURED, *(TRAINED if grads else ()))
    once = {"after", "lm_head", "teacher_lm_head"}  # the same in every group
    specs: Any = [EVERYWHERE if name in once else ROWS for name in EdgeRows._fields]
    scan = by_group(
        functools.partial(_scan_rows, base_weight=base_weight, chunk=chunk, grads=grads),
        len(weights),
        in_specs=(EdgeRows(*specs), ROWS),
        out_specs={name: EVERYWHERE if name in once else ROWS for name in names},
    )
    return scan(rows, weights)


def _scan_rows(
    rows: EdgeRows, weights: jax.Array, *, base_weight: float, chunk: int | None, grads: bool, axis: str | None
) -> dict[str, jax.Array]:
    """Cross-entropies, choices and, where wanted, the gradients of the weighted sum, by name."""

    def measure(some: jax.Array, results: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def pick(x: jax.Array) -> jax.Array:
            return x.at[some].get(mode="fill", fill_value=0)

        def put(name: str, values: jax.Array) -> None:
            results[name] = results[name].at[some].set(values.astype(results[name].dtype), mode="drop")

        results, read, before = dict(results), pick(rows.reads), pick(rows.before)
        p = jax.nn.softmax(product("ce,ue->cu", pick(rows.teacher), rows.teacher_lm_head), axis=-1)
        logits = product("ce,ue->cu", read, rows.lm_head)
        base = compare(p, logits[None])
        edge = compare(p, (logits + product("cr,ur->cu", before, rows.after))[None])
        for name in MEASURED:
            put(name, getattr(edge, name)[0])
        put("value", edge.cross_entropy[0] + base_weight * base.cross_entropy[0])
        if grads:
            weight = pick(weights)[:, None]
            of_edge = weight * edge.gradient[0]
            of_both = of_edge + base_weight * weight * base.gradient[0]
            put("reads", product("cu,ue->ce", of_both.astype(read.dtype), rows.lm_head))
            put("before", product("cu,ur->cr", of_edge.astype(before.dtype), rows.after))
            results["after"] += jnp.einsum(
                "cu,cr->ur", of_edge.astype(before.dtype), before, preferred_element_type=jnp.float32
            )
        return results

    count = len(weights)
    start = {
        **{name: jnp.zeros(count, jnp.float32) for name in ("value", "cross_entropy", "acceptance")},
        "choice": jnp.full(count, NO_TOKEN, jnp.int32),
    }
    if grads:
        start |= {"reads": jnp.zeros_like(rows.reads), "before": jnp.zeros_like(rows.before)}
        start["after"] = jnp.zeros(rows.after.shape, jnp.float32)
    results = over_rows(measure, start, weights != 0, chunk, axis)
    if axis is not None and grads:
        results["after"] = lax.psum(results["after"], axis)
    return results
