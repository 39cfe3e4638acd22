"""How a `config.json` describes the block of a one-pass head, read and written.

The keys are those of DFlash (z-lab/dflash) and DSpark (deepseek-ai/DeepSpec); either project nests some of them in
`dflash_config`. A config says which of the published variants it is in four places:

    key                  where it is absent              what it says
    is_causal            true for layers with a window   slots see earlier slots only; else all of their block
    sample_from_anchor   DSpark true, DFlash false       slot i predicts the token after its own position
    mask_token_id        there is a tensor `mask`        whose embedding the slots after the anchor hold
    markov_rank          no edges                        rank of the edges; of "vanilla" `markov_head_type` alone

Our own key `joins_context` says that slots start with the newest context too; the tensors `join` and `embed_norm` are
there then. The head of DSpark that guesses how much of a chain will be accepted proposes nothing, so its tensors are
passed over.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from eagle_jax.models.draft_head import HeadConfig

NESTED = "dflash_config"
TAP_IDS = "target_layer_ids"
"""Layers whose *outputs* the head reads, from 0 on."""

ARCHITECTURE = "OnePassDraftModel"
"""Of the heads that are written here; no engine loads them."""

MASK, EDGES_BEFORE, EDGES_AFTER = "mask.weight", "markov_head.markov_w1.weight", "markov_head.markov_w2.weight"
CONFIDENCE = "confidence_head."
JOINS = "joins_context"

_SHIFTED = {"dspark": True, "dflash": False}
"""Whether slots predict the token after their own, by what `architectures` contains."""

_COUNTS = ("block_size", "mask_token_id", "markov_rank")


def with_block_keys(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config with what it nests in `dflash_config` beside the rest.

    Raises:
      ValueError: `dflash_config` is no object.
    """
    nested = mapping.get(NESTED) or {}
    if not isinstance(nested, dict):
        raise ValueError(f"{NESTED} is {nested!r}, expected an object")
    return {**mapping, **{key: value for key, value in nested.items() if value is not None}}


def block_fields(mapping: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], num_layers: int) -> dict[str, Any]:
    """The fields of `HeadConfig` that describe a block.

    Args:
      mapping: of `with_block_keys`.
      shapes: of the tensors, by their flat names.
      num_layers: decoder layers among them.

    Raises:
      ValueError: a key is missing, asks for something that is not computed, or contradicts the tensors.
    """
    _check_types(mapping)
    names = [name.lower() for name in mapping.get("architectures") or ()]
    if any("dflash2" in name for name in names):
        raise ValueError(
            f"architectures is {mapping['architectures']}: DFlash 2 (convolutions, a selector) is not known"
        )
    if mapping.get("block_size") is None or mapping.get(TAP_IDS) is None:
        missing = "block_size" if mapping.get("block_size") is None else TAP_IDS
        raise ValueError(f"config.json has no {missing}, without which it is not clear what the head computes")
    if mapping.get("input_embedding_scale", 1.0) != 1.0:
        raise ValueError(
            f"input_embedding_scale is {mapping['input_embedding_scale']}: embeddings are read as they are"
        )
    kinds = mapping.get("layer_types") or []
    if mapping.get("use_sliding_window") and len(kinds) != num_layers:
        raise ValueError(f"use_sliding_window is true, and layer_types {kinds} does not say for which of {num_layers}")
    windowed = "sliding_attention" in kinds
    return {
        "num_layers": num_layers,
        "block": mapping["block_size"],
        "shifted": _shifted(mapping, names),
        "bidirectional": not mapping.get("is_causal", windowed),
        "mask_token": _mask_token(mapping, MASK in shapes),
        "edge_rank": _edge_rank(mapping, tuple(shapes.get(EDGES_BEFORE, (0, 0)))[-1]),
        JOINS: bool(mapping.get(JOINS)),
    }


def _check_types(mapping: Mapping[str, Any]) -> None:
    for key in _COUNTS:
        value = mapping.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ValueError(f"{key} is {value!r}, expected a number from 0 on")
    for key in ("is_causal", "sample_from_anchor", JOINS):
        if not isinstance(mapping.get(key), bool | None):
            raise ValueError(f"{key} is {mapping[key]!r}, expected true or false")
    ids = mapping.get(TAP_IDS)
    if ids is not None and not (isinstance(ids, list) and ids and all(isinstance(index, int) for index in ids)):
        raise ValueError(f"{TAP_IDS} is {ids!r}, expected a list of layers")


def _shifted(mapping: Mapping[str, Any], names: Sequence[str]) -> bool:
    stated = mapping.get("sample_from_anchor")
    if stated is not None:
        return stated
    known = [shifted for part, shifted in _SHIFTED.items() if any(part in name for name in names)]
    if len(known) != 1:
        raise ValueError(
            f"config.json has no sample_from_anchor, and architectures {mapping.get('architectures')} does not tell"
            " whether slot i predicts the token at its own position (DFlash) or the one after it (DSpark)"
        )
    return known[0]


def _mask_token(mapping: Mapping[str, Any], stored: bool) -> int | None:
    token = mapping.get("mask_token_id")
    if stored == (token is not None):
        holds = "a tensor" if stored else "no tensor"
        raise ValueError(f"mask_token_id is {token}, and the file holds {holds} {MASK}: a head has one of the two")
    if token is not None and token >= mapping["vocab_size"]:
        raise ValueError(f"mask_token_id is {token}, vocab_size {mapping['vocab_size']}")
    return token


def _edge_rank(mapping: Mapping[str, Any], stored: int) -> int:
    rank = mapping.get("markov_rank") or 0
    if rank != stored:
        raise ValueError(f"markov_rank is {rank}, {EDGES_BEFORE} has rank {stored}")
    if rank and mapping.get("markov_head_type") != "vanilla":
        raise ValueError(f"markov_head_type is {mapping.get('markov_head_type')!r}: only 'vanilla' ones are computed")
    return rank


def block_keys(config: HeadConfig, layers: Sequence[int]) -> dict[str, Any]:
    """What a config says of a block; `layers` are those whose inputs the head reads."""
    return {
        "block_size": config.block,
        "is_causal": not config.bidirectional,
        "sample_from_anchor": config.shifted,
        "mask_token_id": config.mask_token,
        "markov_rank": config.edge_rank,
        "markov_head_type": "vanilla",
        TAP_IDS: [layer - 1 for layer in layers],
        **({"qkv_bias": True} if config.layer.qkv_bias else {}),
        **({JOINS: True} if config.joins_context else {}),
    }
