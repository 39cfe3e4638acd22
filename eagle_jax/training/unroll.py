"""The head fed with its own outputs, many chains at once (EAGLE-3's training-time test, arXiv 2503.01840, section 3.2).

Every slot t starts a chain. Step i feeds the token at t + 1 + i and the chain's own state, stands at position t + i,
and sees what a decoder's head would see there: the keys made from the target's features up to t, and the chain's own
later keys.

    step 2 at slot t:   keys of step 0          step 1   step 2
                        0 1 2 .. t . . .        t        t
                        [x x x x x . . .]       [x]      [x]        one softmax over all of them

So a step adds one score a slot and not a block of keys; memory does not grow with T x steps. Only the slots of
`Batch.slots` are followed; the others lend keys and values.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from eagle_jax.models.attention import MASKED
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.platforms import platform
from eagle_jax.training.alignment import take
from eagle_jax.training.records import Batch
from eagle_jax.types import Params

CHAINS_AT_A_TIME = {"cpu": 96}
"""Chains whose attention scores exist at a time by default, by platform: caches are small there."""

MOST_CHAINS_AT_A_TIME = 512
"""The same on accelerators."""


class _Base(NamedTuple):
    """Keys and values made from the target's features, and who sees them."""

    keys: jax.Array  # [B, T, K, D]
    values: jax.Array  # [B, T, K, D]
    segments: jax.Array  # i32[B, T]


class _Queries(NamedTuple):
    """Chains of one row block, with the keys and values of their own later steps."""

    queries: jax.Array  # [B, R, H, D]
    slots: jax.Array  # i32[B, R]
    segments: jax.Array  # i32[B, R]
    keys: tuple[jax.Array, ...]  # a later step each: [B, R, K, D]
    values: tuple[jax.Array, ...]


def unroll(
    head: Head,
    params: HeadParams,
    target_params: Params,
    batch: Batch,
    features: jax.Array,
    slots: jax.Array,
    num_steps: int,
    *,
    block: int | None = None,
) -> list[jax.Array]:
    """States after each of `num_steps` steps of the chains that start at `slots`.

    Args:
      head, params, target_params: the head and the frozen target that lends its embedding.
      batch: packed text; chains stay within their document as long as `slots` asks for no more.
      features: [B, T, feature width], what `head.fuse` reads.
      slots: i32[B, R]; slots outside 0..T-1 give states without meaning (finite, and no gradient comes from them).
      num_steps: I.
      block: chains whose attention scores, [B, H, block, T], exist at a time; they are computed anew for gradients.
        None: by platform (`CHAINS_AT_A_TIME`).

    Returns:
      I arrays [B, R, E].
    """

    def embed(tokens: jax.Array) -> jax.Array:
        return head.embed(params, target_params, tokens).astype(features.dtype)

    block = block or CHAINS_AT_A_TIME.get(platform(), MOST_CHAINS_AT_A_TIME)
    fused = head.fuse(params, features)
    following = take(batch.tokens, jnp.broadcast_to(jnp.arange(batch.tokens.shape[1]) + 1, batch.tokens.shape))
    # Queries, output and MLP of this pass are not used, and the compiler drops them.
    _, keys, values = head.step(params, fused, embed(following), batch.positions, lambda q, k, v: q)
    base = _Base(keys, values, batch.segments)
    state, positions, segments = take(fused, slots), take(batch.positions, slots), take(batch.segments, slots)
    own: tuple[tuple[jax.Array, jax.Array], ...] = ()  # keys and values of the steps after step 0
    states = []
    for step in range(num_steps):
        attend_fn = functools.partial(_mix, step=step, own=own, slots=slots, segments=segments, base=base, block=block)
        embedded = embed(take(batch.tokens, slots + 1 + step))
        state, keys, values = head.step(params, state, embedded, positions + step, attend_fn)
        if step:
            own = (*own, (keys, values))
        states.append(state)
    return states


def _mix(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    step: int,
    own: tuple[tuple[jax.Array, jax.Array], ...],
    slots: jax.Array,
    segments: jax.Array,
    base: _Base,
    block: int,
) -> jax.Array:
    """What the chains gather at a step; their keys of step 0 are among those of the base."""
    later = (*own, (keys, values)) if step else ()
    chains = _Queries(queries, slots, segments, tuple(k for k, _ in later), tuple(v for _, v in later))
    return _attend(chains, base, block)


def _attend(chains: _Queries, base: _Base, block: int) -> jax.Array:
    """What each chain gathers, [B, R, H, D]; blocks of chains one after the other."""
    num_chains = chains.slots.shape[1]
    attend = jax.checkpoint(functools.partial(_attend_block, base=base))
    if num_chains <= block:
        return attend(chains)
    num_blocks = -(-num_chains // block)
    block = -(-num_chains // num_blocks)  # all of a size, so that little is filled up
    missing = -num_chains % block

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)

    mixed = jnp.moveaxis(lax.map(attend, jax.tree.map(split, chains)), 0, 1)
    return mixed.reshape(mixed.shape[0], -1, *mixed.shape[3:])[:, :num_chains]


def _attend_block(chains: _Queries, base: _Base) -> jax.Array:
    batch, num_chains, num_heads, head_dim = chains.queries.shape
    num_kv_heads = base.keys.shape[2]
    group = num_heads // num_kv_heads

    def by_head(x: jax.Array) -> jax.Array:
        # Heads first: as plain batched matrix products these run several times faster on CPU.
        return x.transpose(0, 2, 1, 3)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(batch, num_kv_heads, num_chains * group, -1)

    queries = chains.queries * jnp.asarray(head_dim**-0.5, chains.queries.dtype)
    queries = by_head(queries.reshape(batch, num_chains, num_kv_heads, group * head_dim))
    queries = queries.reshape(batch, num_kv_heads, num_chains, group, head_dim)
    visible = chains.segments[:, :, None] == base.segments[:, None, :]
    visible &= jnp.arange(base.keys.shape[1])[None, None, :] <= chains.slots[:, :, None]
    scores = jnp.einsum("bkqd,bksd->bkqs", flat(queries), by_head(base.keys), preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, num_kv_heads, num_chains, group, -1)
    scores = jnp.where(visible[:, None, :, None, :], scores, MASKED)
    own = [
        jnp.einsum("bkrgd,bkrd->bkrg", queries, by_head(keys), preferred_element_type=jnp.float32)
        for keys in chains.keys
    ]
    top = lax.stop_gradient(functools.reduce(jnp.maximum, own, scores.max(-1)))
    weights = jnp.exp(scores - top[..., None])
    total = weights.sum(-1)
    mixed = jnp.einsum(
        "bkqs,bksd->bkqd",
        flat(weights.astype(base.values.dtype)),
        by_head(base.values),
        preferred_element_type=jnp.float32,
    ).reshape(queries.shape)
    for score, values in zip(own, chains.values, strict=True):
        weight = jnp.exp(score - top)
        total += weight
        mixed += weight[..., None] * by_head(values)[:, :, :, None].astype(jnp.float32)
    mixed = (mixed / total[..., None]).astype(base.values.dtype)
    return mixed.transpose(0, 2, 1, 3, 4).reshape(chains.queries.shape)
