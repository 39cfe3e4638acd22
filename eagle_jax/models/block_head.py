"""One-pass heads as pure functions: a block of tokens is predicted at once from the target's features.

The anchor is the newest token of a text, whose target features do not exist yet; it stands at position a. Slot i of its
block stands at a + i and predicts the token at a + i + 1 (DSpark's "shifted" slots, arXiv 2607.05147); slots after the
anchor hold a learned vector. Every layer sees the context, keys and values of the target's features at positions below
a, and the slots of the block up to its own (the causal mask of JetSpec, arXiv 2606.18394):

    context  0 .. a-1   |  slot 0   slot 1   slot 2          a shorter block gives the same states
    keys of features    |  anchor   mask     mask            for the slots that it has
                           > a+1    > a+2    > a+3

Logits of a slot do not depend on the tokens of other slots; `edges` adds scores of a token given the one before it.
DFlash (arXiv 2602.06036) differs in three fields of `HeadConfig`: slots that see later ones, the embedding of a token
as mask, and slot i > 0 predicting the token at its own position; the states of its slot 0, which predicts none, are
left out, so that the i-th state that `block` returns is about the token at a + i + 1 in any case.

With `joins_context` slots start with the newest context, that of position a - 1, joined to their embedding: what EAGLE
reads, and no attention has to find first. Published one-pass heads do not have that.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from eagle_jax.kernels.packed import is_packed
from eagle_jax.models.attention import Prefix, attend
from eagle_jax.models.draft_head import Head, HeadConfig, HeadParams, head_kind, make_head, make_parts
from eagle_jax.models.layers import AttendFn, in_full_precision
from eagle_jax.models.rope import angles
from eagle_jax.types import KVCache, Params, Target

LayerTuple = tuple[jax.Array, ...]
"""An array for each layer."""

EdgesFn = Callable[[HeadParams, jax.Array, jax.Array], jax.Array]
EdgeVectorsFn = Callable[[HeadParams, jax.Array], tuple[jax.Array, jax.Array]]


class BlockHead(NamedTuple):
    """A one-pass head as pure functions of its weights: those of `draft_head.HeadParts`, and what is its own."""

    config: HeadConfig
    init: Callable[[jax.Array], Params]
    fuse: Callable[[HeadParams, jax.Array], jax.Array]
    """(params, the target's features [B, T, feature_width]) -> context [B, T, E]"""
    embed: Callable[[HeadParams, Params, jax.Array], jax.Array]
    readout: Callable[[HeadParams, jax.Array], jax.Array]
    logits: Callable[[HeadParams, Params, jax.Array], jax.Array]
    check: Callable[[HeadParams], None]
    context: Callable[[HeadParams, jax.Array, jax.Array], tuple[LayerTuple, LayerTuple]]
    """(params, context [B,T,E], positions i32[B,T]) -> keys and values of each layer, L x [B,T,K,D], as a cache has
    them: a feature's position is that of its token"""
    inputs: Callable[[HeadParams, Params, jax.Array, jax.Array | None], jax.Array]
    """(params, target_params, anchors i32[...], newest context [..., E]) -> what a block's slots hold at first, [...,
    block, E]. The context of the last token before each anchor, None for heads that do not join it."""
    layers: Callable[[HeadParams, jax.Array, jax.Array, Sequence[AttendFn]], jax.Array]
    """(params, slots [B,T,E], positions i32[B,T], an attend_fn for each layer) -> states [B,T,E] before the final norm;
    the attend_fns add the context and say who sees whom"""
    block: Callable[[HeadParams, Params, jax.Array, jax.Array, KVCache, jax.Array | None], jax.Array]
    """(params, target_params, anchors i32[B], positions i32[B], cache, newest context [B, E]) -> states [B, drafted
    tokens, E] before the final norm: state i is about the token at positions + i + 1. The cache has the context below
    the anchor; the newest as for `inputs`."""
    edges: EdgesFn
    """(params, previous i32[..., m], rows i32[..., k]) -> f32[..., m, k], added to the logits: of draft token `rows`
    after the target's token `previous`; zeros for a head without edges"""
    edge_vectors: EdgeVectorsFn
    """(params, previous i32[...]) -> [..., rank] and, for the draft vocabulary, [U, rank], whose products edges are; of
    width 0 for a head without edges"""


def tokens_of_rows(params: HeadParams, rows: jax.Array) -> jax.Array:
    """The target's tokens i32[...] that rows i32[...] of the draft vocabulary stand for."""
    return rows if params.target_ids is None else jnp.take(params.target_ids, rows)


@functools.cache
def make_block_head(config: HeadConfig, target: Target) -> BlockHead:
    """The head as pure functions; equal arguments give the same object, so nothing is compiled twice.

    Raises:
      ValueError: a head that drafts token by token.
    """
    what = head_kind(config.kind)
    if not what.drafts_blocks:
        raise ValueError(f"{what.title} heads draft token by token, not blocks: they are made by make_head")
    module, size = what.module(config), config.block
    parts = make_parts(config, target, functools.partial(_run_once, config))
    edges, edge_vectors = _make_edges(config, module)

    def context(params: HeadParams, fused: jax.Array, positions: jax.Array) -> tuple[LayerTuple, LayerTuple]:
        pairs = module.apply({"params": params.weights}, fused, angles(config.layer, positions), method="context")
        return tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs)

    def inputs(
        params: HeadParams, target_params: Params, anchors: jax.Array, newest: jax.Array | None = None
    ) -> jax.Array:
        if (newest is not None) != config.joins_context:
            given = "no newest context" if newest is None else "a newest context"
            raise ValueError(f"joins_context is {config.joins_context}, and the head got {given}")
        first = parts.embed(params, target_params, anchors)[..., None, :]
        if config.mask_token is None:
            mask = module.apply({"params": params.weights}, method="mask_vector").astype(first.dtype)
        else:
            mask = parts.embed(params, target_params, jnp.int32(config.mask_token))
        mask = jnp.broadcast_to(mask, (*anchors.shape, size - 1, first.shape[-1]))
        slots = jnp.concatenate([first, mask], axis=-2)
        if newest is None:
            return slots
        return module.apply({"params": params.weights}, slots, newest[..., None, :], method="joined")

    def layers(params: HeadParams, slots: jax.Array, positions: jax.Array, attend_fns: Sequence[AttendFn]) -> jax.Array:
        return module.apply({"params": params.weights}, slots, angles(config.layer, positions), attend_fns)

    def block(
        params: HeadParams,
        target_params: Params,
        anchors: jax.Array,
        positions: jax.Array,
        cache: KVCache,
        newest: jax.Array | None = None,
    ) -> jax.Array:
        places = positions[:, None] + jnp.arange(size)[None, :]
        attend_fns = _attend_fns(config, cache, places, kernel=is_packed(params.weights))
        states = layers(params, inputs(params, target_params, anchors, newest), places, attend_fns)
        return states[:, size - config.num_drafted :]

    return BlockHead(
        context=in_full_precision(context),
        inputs=in_full_precision(inputs),
        layers=in_full_precision(layers),
        block=in_full_precision(block),
        edges=in_full_precision(edges),
        edge_vectors=edge_vectors,
        **parts._asdict(),
    )


def _run_once(config: HeadConfig, module: nn.Module) -> object:
    """Run everything of the head's module, so that it declares its weights."""
    fused = module.fuse(jnp.zeros((1, 1, config.feature_width)))
    rope = angles(config.layer, jnp.zeros((1, 1), jnp.int32))
    states = module(fused, rope, [lambda q, k, v: q] * config.num_layers)
    return (
        module.readout(states),
        module.joined(fused, fused) if config.joins_context else None,
        module.mask_vector() if config.mask_token is None else None,
        module.edge_tables() if config.edge_rank else None,
    )


def _attend_fns(config: HeadConfig, cache: KVCache, positions: jax.Array, *, kernel: bool) -> list[AttendFn]:
    """For each layer: slots of a block at `positions` i32[B, block] see the cache and each other."""
    mask = jnp.broadcast_to(seen_in_block(config), (len(positions), config.block, config.block))
    return [
        functools.partial(
            attend,
            mask=mask,
            prefix=Prefix(*cache.layer(index), cache.length),
            positions=positions,
            window=config.layer.window(0),
            kernel=kernel,
        )
        for index in range(config.num_layers)
    ]


def _make_edges(config: HeadConfig, module: nn.Module) -> tuple[EdgesFn, EdgeVectorsFn]:
    """`edges` and `edge_vectors` of a `BlockHead`."""

    def edges(params: HeadParams, previous: jax.Array, rows: jax.Array) -> jax.Array:
        if not config.edge_rank:
            return jnp.zeros((*previous.shape, rows.shape[-1]))
        first, second = module.apply({"params": params.weights}, method="edge_tables")
        before, after = jnp.take(first, previous, axis=0), jnp.take(second, tokens_of_rows(params, rows), axis=0)
        return jnp.einsum("...mr,...kr->...mk", before, after, preferred_element_type=jnp.float32)

    def edge_vectors(params: HeadParams, previous: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not config.edge_rank:
            size = config.layer.vocab_size if params.target_ids is None else len(params.target_ids)
            return jnp.zeros((*previous.shape, 0)), jnp.zeros((size, 0))
        first, second = module.apply({"params": params.weights}, method="edge_tables")
        second = second if params.target_ids is None else jnp.take(second, params.target_ids, axis=0)
        return jnp.take(first, previous, axis=0), second

    return edges, edge_vectors


def seen_in_block(config: HeadConfig) -> jax.Array:
    """Which slots of its block each slot sees: bool[block, block]."""
    all_slots = jnp.ones((config.block, config.block), bool)
    return all_slots if config.bidirectional else jnp.tril(all_slots)


def make_any_head(config: HeadConfig, target: Target) -> Head | BlockHead:
    """A head of any kind as pure functions."""
    return make_block_head(config, target) if head_kind(config.kind).drafts_blocks else make_head(config, target)
