"""The records that travel between drafter, target, verifier and decoder.

Every array that crosses a module boundary sits in one of these frozen dataclasses. They hold what its producer knows;
depths, masks and position ids are derived in `tree.py` and never stored.

Axis letters, used in every shape comment of the package:

    B batch row        N tree node          T query token       S cache slot       L layer
    H query head       K key/value head     D head size         E model width      F MLP width
    V vocabulary       U draft vocabulary   P path position (max_depth + 1)        C prompt chunk
    X expert
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

Params = Any
"""A pytree of weights. Weights are always arguments, so another checkpoint of the same shape never recompiles."""

NO_PARENT = -1
"""Parent of the root and of unused tree slots."""

NO_NODE = -1
"""Padding of a path after its last accepted node."""

NO_TOKEN = -1
"""Padding of a list of token ids; matches no token."""


@struct.dataclass
class KVCache:
    """Keys and values of the tokens that one model has read; one pair of arrays a layer (DESIGN 4.3).

    With `heads_first` arrays are [B, K, S, D], as products on GPUs take them (`cache.HEADS_FIRST`). `reach` is how many
    slots a pass reads at most, where that is known when compiling; None is all (`cache.reach_of`).
    """

    keys: tuple[jax.Array, ...]  # L x [B, S, K, D], after RoPE; slots from `length` on are garbage
    values: tuple[jax.Array, ...]  # L x [B, S, K, D]
    length: jax.Array  # i32[B], tokens held by each row; slot s holds the token at position s
    heads_first: bool = struct.field(pytree_node=False, default=False)
    reach: int | None = struct.field(pytree_node=False, default=None)

    @property
    def capacity(self) -> int:
        """Number of slots S."""
        return self.keys[0].shape[2 if self.heads_first else 1]

    def layer(self, index: int) -> tuple[jax.Array, jax.Array]:
        """What a pass reads of one layer: keys and values, [B, S or `reach`, K, D] each, however they are stored.

        XLA for GPUs makes neither a transposed nor a shorter array: its products read the stored one.
        """

        def read(stored: jax.Array) -> jax.Array:
            array = stored.swapaxes(1, 2) if self.heads_first else stored
            return array[:, : self.reach]

        return read(self.keys[index]), read(self.values[index])


@struct.dataclass
class DraftTree:
    """A draft: the tokens that one target pass verifies.

    Node 0 is the root: the newest token, already chosen but not yet in the target cache. A parent has a lower index
    than its children, and candidate siblings differ in token.
    """

    tokens: jax.Array  # i32[B, N]
    parents: jax.Array  # i32[B, N], NO_PARENT for the root and for unused slots
    candidate: jax.Array  # bool[B, N], False: unused, or computed but not to be accepted; the root is a candidate
    log_values: jax.Array  # f32[B, N], the drafter's log-confidence in the path from the root to the node; root 0
    draft_logits: jax.Array | None = None  # f32[B, N, V], what the children *of* each node were drawn from
    fixed: jax.Array | None = None  # bool[B, N], nodes that were not drawn, beside siblings that were; None: none
    max_depth: int = struct.field(pytree_node=False, default=0)  # bound on the depth of every node, root 0


@struct.dataclass
class TargetOutput:
    """What one pass of a transformer returns; its cache is read, never written."""

    hidden: jax.Array  # [B, T, E], after the final norm: what `unembed` takes
    taps: jax.Array  # [B, T, E * number of taps], inputs of the tapped layers side by side, lowest layer first
    keys: tuple[jax.Array, ...]  # L x [B, T, K, D], for `cache.commit`
    values: tuple[jax.Array, ...]  # L x [B, T, K, D]


@struct.dataclass
class Verdict:
    """Result of verifying one tree per row."""

    path: jax.Array  # i32[B, P], node 0 and the accepted nodes below it, then NO_NODE
    num_accepted: jax.Array  # i32[B], accepted drafted tokens; neither the root nor `next_token` counts
    next_token: jax.Array  # i32[B], the target's own token after the last accepted node


@struct.dataclass
class Penalties:
    """On tokens that a text has already (`penalties`)."""

    repetition: jax.Array  # f32[B], 1 is off
    presence: jax.Array  # f32[B], 0 is off


@struct.dataclass
class Sampling:
    """Sampling settings of each row. All are arrays, so that other values do not recompile."""

    temperature: jax.Array  # f32[B], 0 is greedy
    top_k: jax.Array  # i32[B], 0 is off
    top_p: jax.Array  # f32[B], 1 is off
    min_p: jax.Array  # f32[B], 0 is off
    seed: jax.Array  # u32[B]
    sequence: jax.Array  # u32[B], stable id of the request: with seed and position it keys the noise
    stop_ids: jax.Array  # i32[B, number of stop ids], padded with NO_TOKEN
    max_new_tokens: jax.Array  # i32[B], the first token counts
    penalties: Penalties | None = None  # None where no row has any: programs without them are compiled apart


def any_weights(params: Params) -> None:
    """Default `check` of a model or drafter: accepts every weight."""
    del params


class Target(NamedTuple):
    """A causal language model as pure functions of its weights; it knows masks, not trees."""

    forward: Callable[..., TargetOutput]
    """(params, tokens i32[B,T], positions i32[B,T], cache, block_mask bool[B,T,T]) -> TargetOutput. Every query sees
    the whole prefix `cache.length` (bounded by a sliding window where the model has one) and, among the T new tokens,
    those that its row of `block_mask` names."""
    embed: Callable[[Params, jax.Array], jax.Array]
    """(params, tokens i32[...]) -> [..., E], rows of the embedding as they are stored"""
    unembed: Callable[[Params, jax.Array], jax.Array]
    """(params, hidden [..., E]) -> f32[..., V]"""
    init_cache: Callable[..., KVCache]
    """(batch, capacity, dtype = float32) -> an empty cache; the dtype is that of activations"""
    vocab_size: int
    max_positions: int
    """Longest text that the model was made for, in tokens."""
    check: Callable[[Params], None] = any_weights
    """(params) -> nothing; ValueError for weights of another model"""

    def activation_dtype(self, params: Params) -> jnp.dtype:
        """What `embed` gives with these weights: the dtype of hidden states and caches."""
        return jax.eval_shape(self.embed, params, jax.ShapeDtypeStruct((1,), jnp.int32)).dtype
