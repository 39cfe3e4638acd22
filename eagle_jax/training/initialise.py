"""The head before its first step: shape, draft vocabulary, weights.

The LM head is made of the target's own rows for the tokens that answers use most; the embedding is the target's. Both
stay frozen by default, so a head of this kind stores neither, and what is trained is its layers and what fuses
features.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from eagle_jax.models.block_head import BlockHead
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import Head, HeadConfig, head_kind
from eagle_jax.models.taps import parts_of
from eagle_jax.models.transformer import lm_head_rows
from eagle_jax.sharding import to_host
from eagle_jax.training.conversations import Example
from eagle_jax.training.records import Vocabulary
from eagle_jax.types import Params


def head_config(
    target: ModelConfig,
    kind: str,
    *,
    mlp_width: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    fc_bias: bool | None = None,
    fc_norm: bool = False,
    norm_output: bool = False,
    norm_before_residual: bool = False,
    norm_before_fc: bool = False,
    taps: Sequence[int] = (),
    joins_context: bool = False,
    **sizes: Any,
) -> HeadConfig:
    """A head shaped like one layer of its target, but a layer of Llama, as engines load it.

    No engine loads one-pass heads: their layers have biases and query/key norms where those of the target do.

    Args:
      target: the model that the head drafts for.
      kind: one of `draft_head.HEAD_KINDS`.
      mlp_width, num_heads, num_kv_heads: the target's where left out.
      fc_bias: left out, as published heads of this kind have it.
      fc_norm, norm_output: EAGLE-3.1.
      norm_before_residual, norm_before_fc: speculators.
      taps: the layers whose inputs a head fuses, as `taps.parts_of` takes them: the target's taps where left out.
        The last hidden state may be called -1, the others from there.
      joins_context: slots of a one-pass head start with the newest context too.
      **sizes: `num_layers`, `block` and `edge_rank` of a one-pass head; left out, those of its kind.

    Raises:
      ValueError: no such kind, sizes or norms that it does not have, taps that the target does not give, or any for a
        head that reads none.
    """
    what = head_kind(kind)
    if len(taps) and not what.reads_taps:
        raise ValueError(f"an {kind} head reads the last hidden state, got taps {list(taps)}")
    unknown = sorted(sizes.keys() - what.sizes.keys())
    if unknown:
        raise ValueError(f"an {kind} head has no {unknown[0]}, got {sizes[unknown[0]]}")
    extra = ("qkv_bias", "output_bias", "mlp_bias", "qk_norm") if what.drafts_blocks else ()
    layer = dataclasses.replace(
        target.llama_layer(),
        **{name: getattr(target, name) for name in extra},
        mlp_width=mlp_width or target.mlp_width,
        num_heads=num_heads or target.num_heads,
        num_kv_heads=num_kv_heads or target.num_kv_heads,
    )
    parts = parts_of(target, [tap + target.num_layers + 1 if tap < 0 else tap for tap in taps])
    num_taps = len(parts or target.taps)
    return HeadConfig(
        kind=kind,
        layer=layer,
        feature_width=what.feature_width(target.width, num_taps),
        fc_bias=what.fc_bias if fc_bias is None else fc_bias,
        fc_norm=fc_norm,
        norm_output=norm_output,
        norm_before_residual=norm_before_residual,
        norm_before_fc=norm_before_fc,
        num_taps=num_taps,
        parts=parts,
        joins_context=joins_context,
        **{**what.sizes, **sizes},
    )


def count_tokens(examples: Sequence[Example], vocab_size: int) -> np.ndarray:
    """How often each token is supervised, i64[V]."""
    counts = np.zeros(vocab_size, np.int64)
    for example in examples:
        counts += np.bincount(example.tokens[example.supervised], minlength=vocab_size)
    return counts


def rank_tokens(counts: np.ndarray, always: Sequence[int] = ()) -> np.ndarray:
    """All tokens, the most frequent first: i32[V]; ties go to the lower id.

    Args:
      counts: i64[V] of `count_tokens`.
      always: tokens that stand first whatever their count: those that end an answer.
    """
    counts = counts.copy()
    counts[list(always)] = counts.max() + 1
    return np.argsort(-counts, kind="stable").astype(np.int32)


def make_vocabulary(
    target: ModelConfig, target_params: Params, ranks: np.ndarray, size: int, dtype: str = "float32"
) -> Vocabulary:
    """The target's LM-head rows of its `size` most frequent tokens, in the order of their ids.

    Args:
      target, target_params: the target.
      ranks: i32[V] of `rank_tokens`.
      size: U; 0 or V is the target's full vocabulary.
      dtype: of the rows.

    Raises:
      ValueError: a size below 0 or above V.
    """
    if not 0 <= size <= len(ranks):
        raise ValueError(f"the draft vocabulary must have at most {len(ranks)} tokens, got {size}")
    rows = lm_head_rows(target, target_params)
    if size in (0, len(ranks)):
        return Vocabulary(rows.astype(dtype))
    ids = jnp.asarray(np.sort(ranks[:size]))
    return Vocabulary(jnp.take(rows, ids, axis=0).astype(dtype), ids)


def initial_weights(
    head: Head | BlockHead,
    target: ModelConfig,
    target_params: Params,
    seed: int,
    *,
    layer: int | None = None,
    feature_sizes: Sequence[float] | None = None,
) -> Params:
    """Float32 weights before the first step, unboxed; a head's final norm, where it has one, starts as the target's.

    The rows of its LM head are the target's, and were trained on the output of that norm.

    Args:
      head: the head.
      target, target_params: its target.
      seed: of everything random.
      layer: the layer of the target whose attention, MLP and norms the head's layer starts with, counted from the end
        where negative; None: random ones. What reads embeddings beside the state is random either way. Of a head with
        several layers it is the last, and those before it start with the layers before that.
      feature_sizes: typical sizes of what `fc` reads beside the embedding, equal parts of its input, as
        `typical_sizes` gives them; `fc` then starts as if each had size 1. None: as if they had.

    Raises:
      ValueError: no such layer, or one that is shaped otherwise than the head's or computes something else.
    """
    weights = nn.unbox(head.init(jax.random.key(seed, impl="threefry2x32")))
    if "norm" in weights:
        norm = jnp.array(target_params["norm"]["weight"], jnp.float32)  # a copy: training donates its state
        weights = {**weights, "norm": {"weight": norm + 1.0 if target.zero_centered_norms else norm}}
    if feature_sizes is not None:
        kernel = weights["fc"]["kernel"]
        features = jnp.split(kernel[-head.config.feature_width :], len(feature_sizes))
        scaled = [part / size for part, size in zip(features, feature_sizes, strict=True)]
        kernel = jnp.concatenate([kernel[: -head.config.feature_width], *scaled])
        weights = {**weights, "fc": {**weights["fc"], "kernel": kernel}}
    if "join" in weights:  # the sum of both
        weights = {**weights, "join": {"kernel": jnp.tile(jnp.eye(weights["join"]["kernel"].shape[1]), (2, 1))}}
    if "mask" in weights:  # as large as the embeddings that other slots start with
        size = jnp.sqrt(jnp.mean(jnp.square(jnp.asarray(target_params["embed_tokens"], jnp.float32))))
        weights = {**weights, "mask": size * weights["mask"]}
    if layer is not None:
        names = head.config.layer_names
        first = layer - len(names) + 1
        if not -target.num_layers <= first <= layer < target.num_layers or first < 0 <= layer:
            before = f" with {len(names) - 1} before it" if len(names) > 1 else ""
            raise ValueError(f"the target has {target.num_layers} layers, none of index {layer}{before}")
        for index, name in enumerate(names, first):
            weights = {**weights, name: _like_layer(weights[name], target, target_params, index)}
        if head_kind(head.config.kind).drafts_blocks:
            weights = _with_context(weights, head.config, feature_sizes[-1] if feature_sizes else 1.0)
    return weights


OTHER_FEATURES = 0.1
"""Size of what other features add to the context of a one-pass head before its first step."""


def _with_context(weights: Params, config: HeadConfig, size: float) -> Params:
    """Let the context start as what the first of the copied layers read of the target.

    That is the last of the fused features, of this size, through the layer's own norm: with the target's default taps
    and its last three layers, the first layer of the head starts with the very keys and values that the target has
    there. The other features start small beside it.
    """
    kernel = OTHER_FEATURES * weights["fc"]["kernel"]
    width = config.feature_width // config.num_taps
    kernel = kernel.at[-width:].set(jnp.eye(width, kernel.shape[1]) / size)
    norm = jax.tree.map(jnp.array, weights[config.layer_names[0]]["input_layernorm"])  # training donates its state
    return {**weights, "fc": {**weights["fc"], "kernel": kernel}, "hidden_norm": norm}


def _like_layer(weights: Params, target: ModelConfig, target_params: Params, index: int) -> Params:
    """The weights of a head's layer, taken from a layer of the target as far as that has them."""
    place = index % target.num_layers
    parts = {"experts": target.is_sparse(place), "norms after attention and MLP": target.sandwich_norms}
    for part, there in parts.items():
        if there:
            raise ValueError(f"layer {index} of the target has {part}, the head's layer has none: start it at random")
    source = jax.tree.map(lambda x: jnp.array(x, jnp.float32), target_params[f"layers_{place}"])
    norm = next((name for name in ("hidden_norm", "input_layernorm") if name in weights), None)
    own = weights["self_attn"]
    attention = {
        name: part for name, part in source["self_attn"].items() if name in own
    }  # not all have query/key norms
    for name in ("q_proj", "k_proj", "v_proj"):
        kernel, rows = attention[name]["kernel"], own[name]["kernel"]
        if norm is None:  # none in front of it: its scale goes into the matrix
            kernel = source["input_layernorm"]["weight"][:, None, None] * kernel
        if rows.shape[1:] != kernel.shape[1:]:
            raise ValueError(f"{name} of the head is {rows.shape}, of the target's layer {index} {kernel.shape}")
        biases = {part: value for part, value in attention[name].items() if part in own[name]}
        attention[name] = {**biases, "kernel": rows.at[-kernel.shape[0] :].set(kernel)}
    copied = {**weights, "self_attn": attention}
    for name in ("mlp", "post_attention_layernorm"):
        here, theirs = ([x.shape for x in jax.tree.leaves(tree[name])] for tree in (weights, source))
        if here != theirs:
            raise ValueError(f"{name} of the head is {here}, of the target's layer {index} {theirs}")
        copied[name] = source[name]
    return copied if norm is None else {**copied, norm: source["input_layernorm"]}


def typical_sizes(features: jax.Array, num_parts: int, segments: jax.Array) -> list[float]:
    """Root mean square of each part of features [B, T, E], the median over tokens.

    A median, because the first token of a text often carries features a hundred times as large as all others.

    Args:
      features: [B, T, E].
      num_parts: equal parts of E.
      segments: i32[B, T], 0 where there is no text.
    """
    rows = to_host(features).astype(np.float32)[np.asarray(segments) > 0]
    parts = rows.reshape(len(rows), num_parts, -1)
    return [float(size) for size in np.median(np.sqrt((parts**2).mean(-1)), axis=0)]


def normed_sizes(sizes: Sequence[float], *, together: bool) -> list[float]:
    """What `typical_sizes` become after a norm whose weights are 1.

    Args:
      sizes: of parts of equal width.
      together: one norm on all parts side by side, which leaves their proportions; else one on each.
    """
    if not together:
        return [1.0] * len(sizes)
    size = float(np.sqrt(np.mean(np.square(sizes))))
    return [part / size for part in sizes]
