"""States of many blocks at once: what a one-pass head computes at anchors sampled in packed text.

A block sees the context of its own document below its anchor, and its own slots as in decoding; anchors do not see each
other, although they stand in the same text (DSpark, arXiv 2607.05147, training mask; DFlash, arXiv 2602.06036):

    block of anchor 3:  context               block            block of anchor 5: not seen
                        0 1 2 . . .           3 4 5
                        [x x x . . .]         [x x .]          one softmax over both, here of the slot at 4

So scores are [anchors, slots, T] and [anchors, slots, slots]: no mask over all slots of all blocks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from eagle_jax.models.attention import MASKED
from eagle_jax.models.block_head import BlockHead, seen_in_block
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.training.alignment import take
from eagle_jax.training.records import NO_SLOT, Batch
from eagle_jax.types import Params


class _Context(NamedTuple):
    """One layer's keys and values of the target's features."""

    keys: jax.Array  # [B, T, K, D]
    values: jax.Array  # [B, T, K, D]


class _Blocks(NamedTuple):
    """Blocks of some anchors, with S slots each, in one layer."""

    queries: jax.Array  # [B, A, S, H, D]
    keys: jax.Array  # [B, A, S, K, D]
    values: jax.Array  # [B, A, S, K, D]
    visible: jax.Array  # bool[B, A, T], the context that each block sees


def pick_rows(slots: jax.Array, count: int, key: jax.Array | None) -> jax.Array:
    """Which rows of `Batch.slots` start a block: i32[B, A], indices into i32[B, R], NO_SLOT where there are too few.

    Args:
      slots: i32[B, R]; the anchor of row n stands at slots[n] + 1, so that the first token after it is supervised.
      count: A.
      key: draws them without replacement; None: evenly spread, the same ones every time.
    """
    size, num_rows = slots.shape
    count = min(count, num_rows)
    real = slots != NO_SLOT
    steps, total = jnp.arange(count)[None, :], real.sum(1)[:, None]
    if key is None:
        chosen = steps * jnp.maximum(total, count) // count
    else:
        draws = jnp.where(real, jax.random.uniform(key, (size, num_rows)), -1.0)
        _, chosen = lax.top_k(draws, count)
    return jnp.where(steps < total, chosen, NO_SLOT)


def draft_blocks(
    head: BlockHead,
    params: HeadParams,
    target_params: Params,
    batch: Batch,
    features: jax.Array,
    anchors: jax.Array,
    *,
    at_a_time: int = 64,
) -> jax.Array:
    """States before the final norm of the blocks at `anchors`: [B, A, drafted tokens, E], as `head.block` gives them.

    Args:
      head, params, target_params: the head and the frozen target that lends its embedding.
      batch: packed text.
      features: [B, T, feature width], what `head.fuse` reads.
      anchors: i32[B, A], places in the rows; those outside 0..T-1 give states without meaning.
      at_a_time: anchors whose attention scores, [B, H, anchors * slots, T], exist at a time; they are computed anew for
        gradients.
    """
    size, num_anchors = anchors.shape
    num_slots, length = head.config.block, batch.tokens.shape[1]
    fused = head.fuse(params, features)
    keys, values = head.context(params, fused, batch.positions)
    newest = take(fused, anchors - 1) if head.config.joins_context else None
    slots = head.inputs(params, target_params, take(batch.tokens, anchors), newest).astype(features.dtype)
    places = take(batch.positions, anchors)[:, :, None] + jnp.arange(num_slots)[None, None]
    visible = take(batch.segments, anchors)[:, :, None] == batch.segments[:, None, :]
    visible &= jnp.arange(length)[None, None, :] < anchors[:, :, None]
    attend_fns = [
        functools.partial(
            _attend, context=_Context(*layer), visible=visible, seen=seen_in_block(head.config), at_a_time=at_a_time
        )
        for layer in zip(keys, values, strict=True)
    ]
    flat = (size, num_anchors * num_slots)
    states = head.layers(params, slots.reshape(*flat, -1), places.reshape(flat), attend_fns)
    return states.reshape(size, num_anchors, num_slots, -1)[:, :, num_slots - head.config.num_drafted :]


def _attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    context: _Context,
    visible: jax.Array,
    seen: jax.Array,
    at_a_time: int,
) -> jax.Array:
    """What the slots of all blocks gather, [B, A * S, H, D]; some anchors after others."""
    size, num_anchors, _ = visible.shape
    split = (size, num_anchors, len(seen))
    own = [x.reshape(*split, *x.shape[2:]) for x in (queries, keys, values)]
    blocks = _Blocks(own[0], own[1], own[2], visible)
    attend = jax.checkpoint(functools.partial(_attend_some, context=context, seen=seen))
    if num_anchors <= at_a_time:
        return attend(blocks).reshape(queries.shape)
    num_parts = -(-num_anchors // at_a_time)
    each = -(-num_anchors // num_parts)  # all of a size, so that little is filled up

    def part(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, num_parts * each - num_anchors), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(size, num_parts, each, *x.shape[2:]), 1, 0)

    mixed = jnp.moveaxis(lax.map(attend, jax.tree.map(part, blocks)), 0, 1)
    return mixed.reshape(size, num_parts * each, *mixed.shape[3:])[:, :num_anchors].reshape(queries.shape)


def _attend_some(blocks: _Blocks, *, context: _Context, seen: jax.Array) -> jax.Array:
    """[B, A, S, H, D], one softmax over the context and the block."""
    size, num_anchors, num_slots, num_heads, head_dim = blocks.queries.shape
    num_kv_heads = context.keys.shape[2]
    group = num_heads // num_kv_heads
    # Heads first: as plain batched matrix products these run several times faster on CPU.
    queries = blocks.queries * jnp.asarray(head_dim**-0.5, blocks.queries.dtype)
    queries = queries.reshape(size, num_anchors, num_slots, num_kv_heads, group, head_dim)
    queries = queries.transpose(0, 3, 1, 4, 2, 5).reshape(size, num_kv_heads, num_anchors, group * num_slots, head_dim)
    rows = queries.reshape(size, num_kv_heads, num_anchors * group * num_slots, head_dim)
    own_keys, own_values = (x.transpose(0, 3, 1, 2, 4) for x in (blocks.keys, blocks.values))
    far_keys, far_values = (x.transpose(0, 2, 1, 3) for x in context)

    far = jnp.einsum("bkqd,bktd->bkqt", rows, far_keys, preferred_element_type=jnp.float32)
    far = jnp.where(blocks.visible[:, None, :, None], far.reshape(*queries.shape[:-1], -1), MASKED)
    own = jnp.einsum("bkaqd,bkasd->bkaqs", queries, own_keys, preferred_element_type=jnp.float32)
    own = jnp.where(jnp.tile(seen, (group, 1))[None, None, None], own, MASKED)

    top = lax.stop_gradient(jnp.maximum(far.max(-1), own.max(-1)))[..., None]
    far, own = jnp.exp(far - top), jnp.exp(own - top)
    total = far.sum(-1) + own.sum(-1)
    weights = far.astype(far_values.dtype).reshape(*rows.shape[:-1], -1)
    mixed = jnp.einsum("bkqt,bktd->bkqd", weights, far_values, preferred_element_type=jnp.float32)
    mixed = mixed.reshape(queries.shape)
    mixed += jnp.einsum(
        "bkaqs,bkasd->bkaqd", own.astype(own_values.dtype), own_values, preferred_element_type=jnp.float32
    )
    mixed = (mixed / total[..., None]).astype(far_values.dtype)
    mixed = mixed.reshape(size, num_kv_heads, num_anchors, group, num_slots, head_dim)
    return mixed.transpose(0, 2, 4, 1, 3, 5).reshape(blocks.queries.shape)
