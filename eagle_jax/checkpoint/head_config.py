"""The `config.json` of a draft head in the flat format, read and written.

The format grew in three places (the EAGLE repository, SGLang, vLLM) and the same key does not always mean the same:
the ids of the tapped layers above all. Absent keys mean here what they mean in the EAGLE repository.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from eagle_jax.checkpoint.head_formats import HEAD_FORMATS, Engine, kind_named, kind_of
from eagle_jax.checkpoint.hf_config import MODEL_TYPES, config_from_hf, context_to_hf, rope_to_hf
from eagle_jax.files import read_json
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadConfig, head_kind, layers_of, parts_of

LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
DEFAULT_SIZE = "default_draft_vocab_size"
"""Our own key, read by no engine: the draft vocabulary taken of the target's LM head where no other is given."""

LAST_STATE = "last_hidden_state"
"""Our own key too: "normed" where a head reads what comes out of the final norm, which the ids count as a layer more
than there are. Engines have nothing under that id, or the state before the norm."""

_UNSUPPORTED = ("norm_before_residual", "norm_before_fc", "parallel_drafting", "speculators_model_type")
"""Keys that, where set, ask for another forward pass or another format."""

_COUNTS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("max_position_embeddings", "target_hidden_size", "draft_vocab_size", "num_aux_hidden_states", DEFAULT_SIZE),
)


def read_head_config(directory: pathlib.Path) -> dict[str, Any]:
    """The `config.json` of a head without its nulls but that of `draft_vocab_size`, which stands for the target's.

    Numbers such as 512.0 become whole.
    """
    mapping = read_json(directory / "config.json")
    stated = {key: value for key, value in mapping.items() if value is not None or key == "draft_vocab_size"}
    floats = {key: value for key in _COUNTS if isinstance(value := stated.get(key), float)}
    return {**stated, **{key: int(value) for key, value in floats.items() if value.is_integer()}}


def config_from_flat(mapping: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> HeadConfig:
    """The shape of the head that a `config.json` and the tensors beside it describe.

    Args:
      mapping: the `config.json`.
      shapes: of the tensors, by their names in the flat format.

    Raises:
      ValueError: a key is missing, asks for something that this package does not compute, or contradicts the tensors.
    """
    kind = kind_of(shapes)
    what = head_kind(kind)
    _check_types(mapping)
    _reject_unsupported(mapping, kind)
    layer = config_from_hf({**mapping, "model_type": "llama", "tie_word_embeddings": False})
    layer = dataclasses.replace(layer, qkv_bias=layer.qkv_bias or bool(mapping.get("qkv_bias", False)))
    target_width = mapping.get("target_hidden_size") or layer.width
    if what.reads_taps:
        feature_width = tuple(shapes.get("fc.weight", (0, 3 * target_width)))[-1]
        num_taps = mapping.get("num_aux_hidden_states") or feature_width // target_width
        if feature_width != num_taps * target_width:
            raise ValueError(f"fc.weight reads {feature_width} features, not {num_taps} taps of width {target_width}")
    else:
        feature_width, num_taps = target_width, 3
        if target_width != layer.width:
            raise ValueError(f"target_hidden_size is {target_width}, but an {what.title} head is as wide as its target")
    return HeadConfig(
        kind=kind,
        layer=layer,
        feature_width=feature_width,
        fc_bias=_fc_bias(mapping, kind, "fc.bias" in shapes),
        fc_norm=bool(mapping.get("fc_norm") or mapping.get("use_fc_norm")),
        norm_output=bool(mapping.get("norm_output")),
        num_taps=num_taps,
    )


def _check_types(mapping: Mapping[str, Any]) -> None:
    """Refuse values that are no numbers, or no lists of such, where these are expected; null is as good as absent."""
    for key in _COUNTS:
        value = mapping.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{key} is {value!r}, expected a positive number")
    aux = mapping.get("eagle_config") or {}
    if not isinstance(aux, dict):
        raise ValueError(f"eagle_config is {aux!r}, expected an object")
    for ids in (mapping.get(LAYER_IDS), aux.get(LAYER_IDS)):
        if ids is not None and not (isinstance(ids, list) and all(isinstance(index, int) for index in ids)):
            raise ValueError(f"{LAYER_IDS} is {ids!r}, expected a list of layers")
    names = mapping.get("architectures") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"architectures is {names!r}, expected a list of names")


def _reject_unsupported(mapping: Mapping[str, Any], kind: str) -> None:
    for key in _UNSUPPORTED:
        if mapping.get(key):
            raise ValueError(f"{key} is {mapping[key]!r}: heads of this kind are not supported")
    aux = mapping.get("eagle_config") or {}
    if aux.get("use_aux_hidden_state") not in (None, True):
        raise ValueError("eagle_config.use_aux_hidden_state is false: heads without tapped layers are not supported")
    if mapping.get("model_type", "llama") not in MODEL_TYPES:
        raise ValueError(f"model_type {mapping['model_type']!r} is not supported; {', '.join(MODEL_TYPES)} are")
    if mapping.get("num_hidden_layers") != 1:
        raise ValueError(f"num_hidden_layers is {mapping.get('num_hidden_layers')}; heads of 1 layer are supported")
    for name in mapping.get("architectures") or ():
        if kind_named(name) not in (kind, None):
            raise ValueError(f"architectures says {name}, but the tensors are those of an {kind} head")


def _fc_bias(mapping: Mapping[str, Any], kind: str, stored: bool) -> bool:
    """Whether fc has a bias; config and file must agree."""
    declared = bool(mapping.get("bias", head_kind(kind).fc_bias))
    if declared != stored:
        meaning = "" if "bias" in mapping else ", which is the meaning of no such key"
        holds = "a tensor" if stored else "no tensor"
        raise ValueError(f"config.json says bias: {str(declared).lower()}{meaning}, but the file holds {holds} fc.bias")
    return declared


def default_taps(target: ModelConfig) -> tuple[int, ...]:
    """Layers whose inputs a head reads where its config names none."""
    return dataclasses.replace(target, tap_layers=()).taps


def taps_from_flat(mapping: Mapping[str, Any], default: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Layers whose *inputs* the head reads: `default` where the config names none.

    vLLM reads the ids at the top level, or else those in `eagle_config`, as inputs of layers; SGLang reads those in
    `eagle_config` alone, as outputs of layers: one less. Given twice they must differ by exactly that. Given in
    `eagle_config` alone they are clear only where one of the two readings is the default.

    Raises:
      ValueError: two lists that contradict each other, or one that is not clear.
    """
    inputs, outputs = mapping.get(LAYER_IDS), (mapping.get("eagle_config") or {}).get(LAYER_IDS)
    if outputs is None:
        return default if inputs is None else tuple(inputs)
    above = tuple(index + 1 for index in outputs)
    if inputs is None:
        if default not in (above, tuple(outputs)):
            raise ValueError(
                f"eagle_config.{LAYER_IDS} is {list(outputs)}: SGLang takes that for the inputs of layers "
                f"{list(above)}, vLLM for those of {list(outputs)}; say which by {LAYER_IDS} beside eagle_config"
            )
        return default
    if tuple(inputs) != above:
        raise ValueError(
            f"{LAYER_IDS} is {list(inputs)} (inputs of layers, for vLLM), which eagle_config.{LAYER_IDS} must repeat "
            f"less one (outputs, for SGLang), but there it is {list(outputs)}"
        )
    return above


def fit_to_target(mapping: Mapping[str, Any], config: HeadConfig, target: ModelConfig) -> HeadConfig:
    """The shape of a head as it reads this target; refuses one that was made for another.

    Raises:
      ValueError: another vocabulary, width, or other tapped layers; both values are in the message.
    """
    if config.layer.vocab_size != target.vocab_size:
        raise ValueError(
            f"the head is for a vocabulary of {config.layer.vocab_size}, the target has {target.vocab_size} tokens"
        )
    if config.target_width != target.width:
        raise ValueError(f"the head is for a target of width {config.target_width}, this one has {target.width}")
    if not head_kind(config.kind).reads_taps:
        return config
    layers = taps_from_flat(mapping, default_taps(target))
    if config.num_taps != len(layers):
        raise ValueError(
            f"fc.weight reads {config.num_taps} tapped layers, config.json gives {len(layers)}: {list(layers)}"
        )
    if target.num_layers in layers and mapping.get(LAST_STATE) != "normed":
        raise ValueError(
            f"the head reads what comes out of layer {target.num_layers - 1}, the last one, which the target gives"
            f" after its final norm alone; {LAST_STATE} is {mapping.get(LAST_STATE)!r}, not 'normed'"
        )
    return dataclasses.replace(config, parts=parts_of(target, layers))


def config_to_flat(
    config: HeadConfig, target: ModelConfig, *, engine: Engine, dtype: str, draft_vocab_size: int | None
) -> dict[str, Any]:
    """The `config.json` of a head, for one engine; `draft_vocab_size` None says that the target's LM head is used.

    Raises:
      ValueError: parts that the engines' heads do not have.
    """
    layer = config.layer
    for part, given in (
        ("query/key norms", layer.qk_norm),
        ("biases on q, k and v but not on o", layer.qkv_bias and not layer.output_bias),
    ):
        if given:
            raise ValueError(f"a head with {part} cannot be written: the heads of SGLang and vLLM have none")
    mapping: dict[str, Any] = {
        "architectures": [HEAD_FORMATS[config.kind].architectures[engine][0]],
        "model_type": "llama",
        "hidden_size": layer.width,
        "intermediate_size": layer.mlp_width,
        "num_hidden_layers": 1,
        "num_attention_heads": layer.num_heads,
        "num_key_value_heads": layer.num_kv_heads,
        "head_dim": layer.head_dim,
        "vocab_size": target.vocab_size,
        "rms_norm_eps": layer.norm_eps,
        "hidden_act": "silu",
        **rope_to_hf(layer.rope_theta, layer.rope_scaling),
        **context_to_hf(target.max_positions, layer.rope_scaling),
        "tie_word_embeddings": False,
        "attention_bias": layer.output_bias,
        "mlp_bias": layer.mlp_bias,
        "bos_token_id": target.bos_id,
        "eos_token_id": list(target.eos_ids) if len(target.eos_ids) > 1 else next(iter(target.eos_ids), None),
        "pad_token_id": None,
        "torch_dtype": dtype,
        "bias": config.fc_bias,
    }
    if HEAD_FORMATS[config.kind].own_lm_head:
        mapping["draft_vocab_size"] = draft_vocab_size
    if not head_kind(config.kind).reads_taps:
        return mapping
    if layer.width != target.width:
        mapping["target_hidden_size"] = target.width
    mapping |= {key: True for key in ("fc_norm", "norm_output") if getattr(config, key)}
    layers = layers_of(config, target)
    if layers != default_taps(target):
        mapping[LAYER_IDS] = list(layers)
        mapping["eagle_config"] = {"use_aux_hidden_state": True, LAYER_IDS: [layer - 1 for layer in layers]}
    if target.num_layers in layers:
        mapping[LAST_STATE] = "normed"
    return mapping
