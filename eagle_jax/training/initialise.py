"""The head before its first step: shape, draft vocabulary, weights.

The LM head is made of the target's own rows for the tokens that answers use most; the embedding is the target's. Both
stay frozen by default, so a head of this kind stores neither, and what is trained is one layer and what fuses features.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

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
) -> HeadConfig:
    """A head shaped like one layer of its target, but a layer of Llama, as engines load it.

    Args:
      target: the model that the head drafts for.
      kind: one of `draft_head.HEAD_KINDS`.
      mlp_width, num_heads, num_kv_heads: the target's where left out.
      fc_bias: left out, as published heads of this kind have it.
      fc_norm, norm_output: EAGLE-3.1.
      norm_before_residual, norm_before_fc: speculators.
      taps: the layers whose inputs a head fuses, as `taps.parts_of` takes them: the target's taps where left out.
        The last hidden state may be called -1, the others from there.

    Raises:
      ValueError: no such kind, norms that it does not have, taps that the target does not give, or any for a head that
        reads none.
    """
    what = head_kind(kind)
    if len(taps) and not what.reads_taps:
        raise ValueError(f"an {kind} head reads the last hidden state, got taps {list(taps)}")
    layer = dataclasses.replace(
        target.llama_layer(),
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
    head: Head,
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
        where negative; None: random ones. What reads embeddings beside the state is random either way.
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
    if layer is not None:
        name = head_kind(head.config.kind).layer
        weights = {**weights, name: _like_layer(weights[name], target, target_params, layer)}
    return weights


def _like_layer(weights: Params, target: ModelConfig, target_params: Params, index: int) -> Params:
    """The weights of a head's layer, taken from a layer of the target as far as that has them."""
    num_layers = target.num_layers
    if not -num_layers <= index < num_layers:
        raise ValueError(f"the target has {num_layers} layers, none of index {index}")
    parts = {"experts": target.is_sparse(index % num_layers), "norms after attention and MLP": target.sandwich_norms}
    for part, there in parts.items():
        if there:
            raise ValueError(f"layer {index} of the target has {part}, the head's layer has none: start it at random")
    source = jax.tree.map(lambda x: jnp.array(x, jnp.float32), target_params[f"layers_{index % num_layers}"])
    attention = {"o_proj": source["self_attn"]["o_proj"]}
    for name in ("q_proj", "k_proj", "v_proj"):
        kernel, own = source["self_attn"][name]["kernel"], weights["self_attn"][name]["kernel"]
        if "hidden_norm" not in weights:  # no norm in front of it: its scale goes into the matrix
            kernel = source["input_layernorm"]["weight"][:, None, None] * kernel
        if own.shape[1:] != kernel.shape[1:]:
            raise ValueError(f"{name} of the head is {own.shape}, of the target's layer {index} {kernel.shape}")
        attention[name] = {"kernel": own.at[-kernel.shape[0] :].set(kernel)}
    copied = {**weights, "self_attn": attention}
    for name in ("mlp", "post_attention_layernorm"):
        own, theirs = ([x.shape for x in jax.tree.leaves(tree[name])] for tree in (weights, source))
        if own != theirs:
            raise ValueError(f"{name} of the head is {own}, of the target's layer {index} {theirs}")
        copied[name] = source[name]
    if "hidden_norm" in weights:
        copied["hidden_norm"] = source["input_layernorm"]
    return copied


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
