"""What every EAGLE drafter does with its head, whatever the tree.

Alignment (DESIGN 3): tokens x_0..x_{n-1} are in the target's cache, the root is x_n. Slot p of the head joins the
target's features at p with token x_{p+1}; its output at slot n - 1 predicts x_{n+1}. A node of depth d is fed at slot
n - 1 + d. The head's cache holds rows made from the target's features only: rows of drafted nodes are scratch.

    slot of the head      0    1   ...  n-1  | n     n      n+1   <- tree nodes of depth 1, 1, 2
    feature of the target f_0  f_1 ...  f_n-1| own   own    own
    token                 x_1  x_2 ...  x_n  | a     b      a'
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from eagle_jax.cache import commit, count_after, init_cache
from eagle_jax.drafters.base import Observation
from eagle_jax.kernels.packed import is_packed
from eagle_jax.models.attention import Prefix, attend
from eagle_jax.models.draft_head import Head, HeadConfig, HeadParams, features_of
from eagle_jax.sampling import first_largest, top_k_rows
from eagle_jax.types import KVCache, Params


@struct.dataclass
class HeadState:
    """What an EAGLE drafter carries from round to round."""

    cache: KVCache  # one layer; as long as the target's
    newest: jax.Array  # [B, E], the head's output at its last slot, which predicts the root's children


class DraftedNodes(NamedTuple):
    """Tree nodes that the head has read in this round, in the order of reading."""

    keys: jax.Array  # [B, M, K, D]
    values: jax.Array  # [B, M, K, D]
    seen: jax.Array  # bool[B, M, M], the ancestors of each among them, itself included
    slots: jax.Array  # i32[B, M], slot of each


class TopChildren(NamedTuple):
    """The best children of some nodes."""

    values: jax.Array  # f32[B, T, k], log-confidence, best first
    tokens: jax.Array  # i32[B, T, k], ids of the target's vocabulary
    logits: jax.Array  # f32[B, T, U], before the noise; what they were drawn from


def init_state(head: Head, batch: int, capacity: int, dtype: DTypeLike) -> HeadState:
    """The state before the first token."""
    layer = head.config.layer
    return HeadState(
        cache=init_cache(1, batch, capacity, layer.num_kv_heads, layer.head_dim, jnp.dtype(dtype)),
        newest=jnp.zeros((batch, layer.width), dtype),
    )


def features_along(config: HeadConfig, observation: Observation) -> jax.Array:
    """The target's features [B, P, feature width] of the tokens that joined the text, as a head reads them."""
    features = features_of(config, observation.output.hidden, observation.output.taps)
    return jnp.take_along_axis(features, jnp.maximum(observation.path, 0)[:, :, None], axis=1)


def newest_of(rows: jax.Array, observation: Observation) -> jax.Array:
    """Of rows [B, P, E], that of the last token that joined the text: [B, E]; any where none did."""
    last = jnp.maximum(observation.count - 1, 0)
    return jnp.take_along_axis(rows, last[:, None, None], axis=1)[:, 0]


def observe(
    head: Head, params: HeadParams, target_params: Params, state: HeadState, observation: Observation
) -> HeadState:
    """Read the target's features of the tokens that joined the text, each with the token after it."""
    batch, size = observation.path.shape
    steps = jnp.arange(size)[None, :]
    features = features_along(head.config, observation)
    slots = observation.length[:, None] + steps
    next_tokens = jnp.take_along_axis(observation.text, slots + 1, axis=1, mode="clip")
    embedded = head.embed(params, target_params, next_tokens)
    prefix = Prefix(*state.cache.layer(0), observation.length)
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool)), (batch, size, size))

    def attend_fn(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        kernel = is_packed(params.weights)
        return attend(queries, keys, values, causal, prefix, slots, window=head.config.layer.window(0), kernel=kernel)

    states, keys, values = head.step(params, head.fuse(params, features), embedded, slots, attend_fn)
    newest = newest_of(states, observation)
    count = count_after(observation.count, newest[:, 0] > -jnp.inf)
    cache = commit(
        dataclasses.replace(state.cache, length=observation.length),
        (keys,),
        (values,),
        jnp.broadcast_to(steps, slots.shape),
        count,
    )
    return HeadState(cache=cache, newest=jnp.where((observation.count > 0)[:, None], newest, state.newest))


def no_drafted_nodes(head: Head, state: HeadState) -> DraftedNodes:
    """The empty `DraftedNodes`, before the first pass over tree nodes."""
    batch, layer = state.newest.shape[0], head.config.layer
    rows = jnp.zeros((batch, 0, layer.num_kv_heads, layer.head_dim), state.cache.keys[0].dtype)
    return DraftedNodes(
        keys=rows, values=rows, seen=jnp.zeros((batch, 0, 0), bool), slots=jnp.zeros((batch, 0), jnp.int32)
    )


def extend(
    head: Head,
    params: HeadParams,
    target_params: Params,
    state: HeadState,
    fed: DraftedNodes,
    tokens: jax.Array,
    states: jax.Array,
    parents: jax.Array | None,
    depth: int,
) -> tuple[jax.Array, DraftedNodes]:
    """Feed one more level of the tree to the head.

    Args:
      fed: the nodes read before.
      tokens: i32[B, T], the new nodes, all at the same depth.
      states: [B, T, E], the head's output at the parent of each.
      parents: i32[B, T], index of the parent among the nodes read before; None: the parent is the root.
      depth: of the new nodes, the root at 0.

    Returns:
      The head's output [B, T, E] at the new nodes, and all nodes read so far.
    """
    batch, size = tokens.shape
    before = fed.seen.shape[1]
    own = jnp.broadcast_to(jnp.eye(size, dtype=bool), (batch, size, size))
    above = jnp.zeros((batch, size, before), bool)
    if parents is not None:
        above = jnp.take_along_axis(fed.seen, parents[:, :, None], axis=1)
    mask = jnp.concatenate([above, own], axis=2)
    slots = jnp.broadcast_to(state.cache.length[:, None] + depth - 1, (batch, size))
    stand = jnp.concatenate([fed.slots, slots], axis=1)
    prefix = Prefix(*state.cache.layer(0), state.cache.length)

    def attend_fn(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        keys = jnp.concatenate([fed.keys, keys.astype(fed.keys.dtype)], axis=1)
        values = jnp.concatenate([fed.values, values.astype(fed.values.dtype)], axis=1)
        window, kernel = head.config.layer.window(0), is_packed(params.weights)
        return attend(queries, keys, values, mask, prefix, slots, key_positions=stand, window=window, kernel=kernel)

    outputs, keys, values = head.step(params, states, head.embed(params, target_params, tokens), slots, attend_fn)
    seen = jnp.concatenate([jnp.pad(fed.seen, ((0, 0), (0, 0), (0, size))), mask], axis=1)
    fed = DraftedNodes(
        keys=jnp.concatenate([fed.keys, keys.astype(fed.keys.dtype)], axis=1),
        values=jnp.concatenate([fed.values, values.astype(fed.values.dtype)], axis=1),
        seen=seen,
        slots=stand,
    )
    return outputs, fed


def top_children(
    head: Head, params: HeadParams, target_params: Params, states: jax.Array, noise: jax.Array, count: int
) -> TopChildren:
    """The `count` most confident children of nodes whose outputs are `states` [B, T, E].

    `noise` f32[B, V] is that of the next position; with a draft vocabulary, its tokens' entries are gathered.
    Confidence is log_softmax(logits + noise), never divided by the temperature (DESIGN 2).

    Raises:
      ValueError: more children than the draft vocabulary has tokens.
    """
    logits = head.logits(params, target_params, states)
    if count > logits.shape[-1]:
        raise ValueError(f"top_k is {count}, the draft vocabulary has {logits.shape[-1]} tokens")
    if params.target_ids is not None:
        noise = jnp.take(noise, params.target_ids, axis=1)
    values, ids = top_k_rows(jax.nn.log_softmax(logits + noise[:, None, :]), count)
    tokens = ids if params.target_ids is None else jnp.take(params.target_ids, ids)
    return TopChildren(values=values, tokens=tokens.astype(jnp.int32), logits=logits)


def best_and_drawn(
    head: Head, params: HeadParams, target_params: Params, states: jax.Array, noise: jax.Array
) -> TopChildren:
    """The best child of each node and one drawn from the others, in this order (RheoSampling, arXiv 2609.21827).

    `noise` f32[B, T, V] has a vector for each node. With q the best child's confidence, log_softmax(logits), that of
    the drawn child is min(q, 1 - q), whichever token it is; `logits` are -inf at the best child.

    Raises:
      ValueError: a draft vocabulary of one token.
    """
    logits = head.logits(params, target_params, states)
    if logits.shape[-1] < 2:
        raise ValueError(f"a best and a drawn child need 2 tokens, the draft vocabulary has {logits.shape[-1]}")
    if params.target_ids is not None:
        noise = jnp.take(noise, params.target_ids, axis=2)
    best = first_largest(logits)
    others = jnp.where(jnp.arange(logits.shape[-1])[None, None, :] == best[:, :, None], -jnp.inf, logits)
    ids = jnp.stack([best, first_largest(others + noise)], axis=2)
    total = jax.nn.logsumexp(logits, axis=-1)
    sure, rest = logits.max(-1) - total, jax.nn.logsumexp(others, axis=-1) - total
    tokens = ids if params.target_ids is None else jnp.take(params.target_ids, ids)
    values = jnp.stack([sure, jnp.minimum(sure, rest)], axis=2)
    return TopChildren(values=values, tokens=tokens.astype(jnp.int32), logits=others)
