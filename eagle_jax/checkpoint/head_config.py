"""The `config.json` of a draft head in the flat format, read and written.

The format grew in three places (the EAGLE repository, SGLang, vLLM) and the same key does not always mean the same:
the ids of the tapped layers above all. Absent keys mean here what they mean in the EAGLE repository. Some configs are
copies of the target's: only keys that describe a layer are read, and how many there are is what the tensors say.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from eagle_jax.checkpoint.block_config import TAP_IDS, block_fields, block_keys, with_block_keys
from eagle_jax.checkpoint.draft_vocabulary import DEFAULT_SIZE
from eagle_jax.checkpoint.head_formats import ENGINES, FLAT, HEAD_FORMATS, Engine, count_layers, kind_named, kind_of
from eagle_jax.checkpoint.hf_config import SCALED_LENGTH, config_from_hf, context_to_hf, rope_to_hf
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import NORMS, HeadConfig, head_kind
from eagle_jax.models.taps import layers_of, parts_of

LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
LAST_STATE = "last_hidden_state"
"""Our own key: "normed" where a head reads what comes out of the final norm, which the ids count as a layer more
than there are. Engines have nothing under that id, or the state before the norm."""

OWN_EMBEDDING = "embed_requires_grad"
"""Key of speculators: whether the embedding was trained, and is no copy of the target's."""

QK_NORM = "qk_norm"
"""What the layer's type says in a config of speculators; in a flat one the type may be the target's: tensors decide."""

_LAYER_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("max_position_embeddings", "original_max_position_embeddings", "rms_norm_eps", "hidden_act", "attention_bias"),
    *("mlp_bias", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "bos_token_id"),
    *("eos_token_id", SCALED_LENGTH),
)
"""Keys that describe the layer of a head in words of a model's; all others of a model may be those of its target."""

_ABSENT = {"max_position_embeddings": 2048}
"""What keys that some heads come without mean in `transformers`; SpecJAX leaves this one out."""

_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""Models whose dense layers are one, but for biases and query/key norms; a target's experts are no part of its head."""

_STEPS = "parallel_draft_step"
"""In `eagle_config` of ModelOpt: tokens that are guessed in one pass."""

_COUNTS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"),
    *("max_position_embeddings", "target_hidden_size", "draft_vocab_size", "num_aux_hidden_states", DEFAULT_SIZE),
    "sliding_window",
)


def tidied(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config without its nulls but that of `draft_vocab_size`, which stands for the target's.

    Numbers such as 512.0 become whole.
    """
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
    kind, num_layers = kind_of(shapes), count_layers(shapes)
    what = head_kind(kind)
    mapping = with_block_keys(mapping) if what.drafts_blocks else mapping
    _check_types(mapping)
    _reject_unsupported(mapping, kind, num_layers)
    described = {key: mapping[key] for key in _LAYER_KEYS if key in mapping}
    layer = dataclasses.replace(
        config_from_hf({**_ABSENT, **described, "model_type": "llama", "num_hidden_layers": 1}),
        qkv_bias=bool(mapping.get("attention_bias") or mapping.get("qkv_bias")),
        qk_norm=mapping.get(QK_NORM, f"{HEAD_FORMATS[kind].layer}self_attn.q_norm.weight" in shapes),
        windows=_windows(mapping, num_layers),
    )
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
    norms: dict[str, Any] = {name: bool(mapping.get(name)) for name in NORMS}
    norms["fc_norm"] |= bool(mapping.get("use_fc_norm"))
    return HeadConfig(
        kind=kind,
        layer=layer,
        feature_width=feature_width,
        fc_bias=_fc_bias(mapping, kind, "fc.bias" in shapes),
        **norms,
        num_taps=num_taps,
        **(block_fields(mapping, shapes, num_layers) if what.drafts_blocks else {}),
    )


def _check_types(mapping: Mapping[str, Any]) -> None:
    """Refuse values of other types than are expected; null is as good as absent."""
    aux = mapping.get("eagle_config") or {}
    if not isinstance(aux, dict):
        raise ValueError(f"eagle_config is {aux!r}, expected an object")
    counts = {key: mapping.get(key) for key in _COUNTS} | {_STEPS: aux.get(_STEPS)}
    for key, value in counts.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{key} is {value!r}, expected a positive number")
    for key in (*NORMS, OWN_EMBEDDING):
        if not isinstance(mapping.get(key), bool | None):
            raise ValueError(f"{key} is {mapping[key]!r}, expected true or false")
    kinds = mapping.get("layer_types") or []
    if not isinstance(kinds, list):
        raise ValueError(f"layer_types is {kinds!r}, expected a list of names")
    for ids in (mapping.get(LAYER_IDS), aux.get(LAYER_IDS)):
        if ids is not None and not (isinstance(ids, list) and all(isinstance(index, int) for index in ids)):
            raise ValueError(f"{LAYER_IDS} is {ids!r}, expected a list of layers")
    names = mapping.get("architectures") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"architectures is {names!r}, expected a list of names")


def _windows(mapping: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    """Sliding window of the head's layers, () where they have none; a list of another length is the target's."""
    kinds = mapping.get("layer_types") or []
    if len(kinds) != num_layers or set(kinds) == {"full_attention"}:
        return ()
    if set(kinds) != {"sliding_attention"} or not mapping.get("sliding_window"):
        raise ValueError(f"layer_types {kinds} with sliding_window {mapping.get('sliding_window')} is not supported")
    return (mapping["sliding_window"],)


def _reject_unsupported(mapping: Mapping[str, Any], kind: str, num_layers: int) -> None:
    if num_layers > 1 and not head_kind(kind).drafts_blocks:
        raise ValueError(
            f"the file holds {num_layers} layers; heads of 1 are computed: their cache and their training have no more"
        )
    aux = mapping.get("eagle_config") or {}
    if mapping.get("parallel_drafting") or (aux.get(_STEPS) or 1) > 1:
        raise ValueError("parallel drafting is on: heads that guess several tokens in one pass are not supported")
    if aux.get("use_aux_hidden_state") not in (None, True):
        raise ValueError("eagle_config.use_aux_hidden_state is false: heads without tapped layers are not supported")
    if mapping.get("model_type", "llama") not in _MODEL_TYPES:
        raise ValueError(f"model_type {mapping['model_type']!r} is not supported; {', '.join(_MODEL_TYPES)} are")
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
    `eagle_config` alone they are clear only where one of the two readings is the default. An empty list names none.

    Raises:
      ValueError: two lists that contradict each other, or one that is not clear.
    """
    if ids := with_block_keys(mapping).get(TAP_IDS):
        return tuple(index + 1 for index in ids)
    inputs, outputs = mapping.get(LAYER_IDS), (mapping.get("eagle_config") or {}).get(LAYER_IDS)
    if not outputs:
        return tuple(inputs or default)
    above = tuple(index + 1 for index in outputs)
    if not inputs:
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


def missing_parts(config: HeadConfig, engine: Engine) -> dict[str, bool]:
    """Parts that heads may have here and not everywhere, and whether this one has them while the engine has not."""
    layer, norms = config.layer, HEAD_FORMATS[config.kind].norms.get(engine, ())
    return {
        "query/key norms": layer.qk_norm and engine != "speculators",
        "biases on q, k and v but not on o": layer.qkv_bias and not layer.output_bias,
        **{name: getattr(config, name) and name not in norms for name in NORMS},
    }


def flat_engine(config: HeadConfig) -> Engine | None:
    """The first engine whose flat format holds all parts of this head; None where no engine has heads of its kind.

    Raises:
      ValueError: engines have such heads, but none has all parts of this one.
    """
    if not HEAD_FORMATS[config.kind].architectures:
        return None
    for engine in FLAT:
        if not any(missing_parts(config, engine).values()):
            return engine
    parts = ", ".join(part for part, given in missing_parts(config, FLAT[-1]).items() if given)
    raise ValueError(f"a head with {parts} has no flat format: neither SGLang nor vLLM has such heads")


def _architecture(config: HeadConfig, engine: Engine | None) -> str:
    """The name under which an engine, or none, knows a head.

    Raises:
      ValueError: a kind of head, or parts of one, that the engine does not have.
    """
    form, title = HEAD_FORMATS[config.kind], head_kind(config.kind).title
    if engine is None:
        if not form.architecture:
            raise ValueError(
                f"{title} heads are written for one of the engines {', '.join(ENGINES.values())}, got none"
            )
        return form.architecture
    if engine not in form.architectures:
        raise ValueError(f"{ENGINES[engine]} has no {title} heads")
    for part, given in missing_parts(config, engine).items():
        if given:
            raise ValueError(f"a head with {part} cannot be written: the heads of {ENGINES[engine]} have none")
    return form.architectures[engine][0]


def config_to_flat(
    config: HeadConfig, target: ModelConfig, *, engine: Engine | None, dtype: str, draft_vocab_size: int | None
) -> dict[str, Any]:
    """The `config.json` of a head, for one engine; `draft_vocab_size` None says that the target's LM head is used.

    For speculators it is still to be nested (`speculators`). Engine None: for this package alone, where no engine has
    heads of this kind.

    Raises:
      ValueError: a kind of head, or parts of one, that the engine does not have.
    """
    layer, what = config.layer, head_kind(config.kind)
    mapping: dict[str, Any] = {
        "architectures": [_architecture(config, engine)],
        "model_type": "qwen3" if layer.qk_norm else "llama",
        "hidden_size": layer.width,
        "intermediate_size": layer.mlp_width,
        "num_hidden_layers": config.num_layers,
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
    if layer.window(0) is not None:
        kinds = ["sliding_attention"] * config.num_layers
        mapping |= {"layer_types": kinds, "sliding_window": layer.window(0), "use_sliding_window": True}
    if HEAD_FORMATS[config.kind].own_lm_head:
        mapping["draft_vocab_size"] = draft_vocab_size
    if not what.reads_taps:
        return mapping
    if layer.width != target.width:
        mapping["target_hidden_size"] = target.width
    mapping |= {name: True for name in NORMS if getattr(config, name)}
    layers = layers_of(config, target)
    if what.drafts_blocks:
        mapping |= block_keys(config, layers)
    elif layers != default_taps(target) or engine == "speculators":
        mapping[LAYER_IDS] = list(layers)
        mapping["eagle_config"] = {"use_aux_hidden_state": True, LAYER_IDS: [layer - 1 for layer in layers]}
    if target.num_layers in layers:
        mapping[LAST_STATE] = "normed"
    return mapping
