"""Reads the shape of a model from a Hugging Face `config.json` (Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE, Gemma 3).

Absent keys mean what they mean in `transformers`, and null is as good as absent; whatever this package does not compute
is an error, never skipped. RoPE comes in two spellings: `rope_theta` and `rope_scaling` side by side, or since
transformers 5 one mapping, `rope_parameters`, for Gemma 3 one for each kind of layers.
"""

from collections.abc import Mapping
from typing import Any

from eagle_jax.models.config import Experts, ModelConfig, RopeScaling

LLAMA_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` values of models whose layers are Llama's but for biases, norms of q and k, and windows."""

MODEL_TYPES = (*LLAMA_TYPES, "qwen3_moe", "gemma3_text", "gemma3")
"""`model_type` values that are read; of `gemma3`, which reads images too, the language model."""

_REASONS = {
    "gemma2": "soft-capped scores and logits",
    "gemma3n": "embeddings of its own for each layer",
    "gemma3n_text": "embeddings of its own for each layer",
    "mixtral": "its experts are stored under other names",
    "qwen2_moe": "shared experts",
    "qwen3_next": "linear attention and shared experts",
    "deepseek_v2": "latent attention and shared experts",
    "deepseek_v3": "latent attention and shared experts",
    "gpt_oss": "attention sinks",
}
"""What this package does not compute of the models whose heads are published most."""

_GEMMA3_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
"""What published configs of Gemma 3 leave out."""

_GEMMA3_PATTERN = 6  # without `layer_types` each sixth layer sees everything
_SET_NOWHERE = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")

SCALED_LENGTH = "max_sequence_length"
"""Key of the Vicuna authors for the context of a model with linear RoPE scaling; transformers does not read it."""

_DEFAULT_WINDOW = 4096  # of Mistral and Qwen, where the key is absent
_DEFAULT_MAX_WINDOW_LAYERS = 28  # Qwen: this many layers see everything
_EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts")

_ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
}
_ROPE_KEYS_OF_ALL = (
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "finetuned",  # a remark in the configs of the YaRN authors
)


def config_from_hf(mapping: Mapping[str, Any]) -> ModelConfig:
    """The shape of the model that a `config.json` describes.

    Raises:
      ValueError: a required key is missing, or a value asks for something that this package does not compute.
    """
    mapping = _text_config(mapping)
    _reject_unsupported(mapping)
    model_type = mapping["model_type"]
    num_heads, width = whole_number(mapping, "num_attention_heads"), whole_number(mapping, "hidden_size")
    head_dim = whole_number(mapping, "head_dim", 128 if model_type == "qwen3" else width // num_heads)
    num_kv_heads = _num_kv_heads(mapping, num_heads)
    if num_heads % num_kv_heads or head_dim % 2 or not head_dim:
        raise ValueError(
            f"{num_heads} query heads, {num_kv_heads} key/value heads and head size {head_dim} do not fit together"
        )
    attention_bias = _switch(mapping, "attention_bias") and model_type not in ("mistral", "qwen2")
    if model_type == "gemma3_text":
        more = _gemma3_fields(mapping)
    else:
        theta, scaling = rope_from_hf(mapping)
        more = {"rope_theta": theta, "rope_scaling": scaling, "experts": _experts(mapping)}
    return ModelConfig(
        vocab_size=whole_number(mapping, "vocab_size"),
        width=width,
        mlp_width=whole_number(mapping, "intermediate_size"),
        num_layers=whole_number(mapping, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=_context(mapping, more["rope_scaling"]),
        norm_eps=_number(mapping, "rms_norm_eps", 1e-6),
        qkv_bias=attention_bias or model_type == "qwen2",
        output_bias=attention_bias,
        mlp_bias=_switch(mapping, "mlp_bias") and model_type == "llama",
        qk_norm=model_type in ("qwen3", "qwen3_moe", "gemma3_text"),
        windows=_windows(mapping),
        tie_embeddings=_switch(mapping, "tie_word_embeddings"),
        bos_id=next(iter(token_ids(mapping, "bos_token_id")), None),
        eos_ids=token_ids(mapping, "eos_token_id"),
        **more,
    )


def reason_against(model_type: Any) -> str:
    """Why models of a type are refused, in brackets after a space; empty where no reason is known."""
    return f" ({_REASONS[model_type]})" if model_type in _REASONS else ""


def _text_config(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model, with what published configs of its type leave out."""
    if mapping.get("model_type") == "gemma3":
        shared = ("eos_token_id", "bos_token_id", "tie_word_embeddings", "quantization_config")
        above = {key: mapping[key] for key in shared if mapping.get(key) is not None}
        text = _object(mapping, "text_config")
        if not text:
            raise ValueError("config.json has no text_config")
        mapping = {**text, **above, "model_type": "gemma3_text"}
    return {**_GEMMA3_DEFAULTS, **mapping} if mapping.get("model_type") == "gemma3_text" else mapping


def _gemma3_fields(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """What of Gemma 3 is not Llama's: constants, norms, and two kinds of RoPE."""
    given = _object(mapping, "rope_parameters")
    if not set(given) <= {"full_attention", "sliding_attention"}:
        raise ValueError(f"rope_parameters {given} must hold those of full_attention and of sliding_attention")
    base, local_base = mapping.get("rope_theta") or 1e6, mapping.get("rope_local_base_freq") or 1e4
    theta, scaling = rope_from_hf({**mapping, "rope_theta": base, "rope_parameters": given.get("full_attention")})
    local = {"rope_scaling": None, "rope_theta": local_base, "rope_parameters": given.get("sliding_attention")}
    local_theta, local_scaling = rope_from_hf({**mapping, **local})
    if local_scaling != RopeScaling():
        raise ValueError(f"RoPE scaling {local_scaling.kind!r} of layers with a window is not supported; default is")
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "local_rope_theta": local_theta,
        "query_pre_attn_scalar": _number(mapping, "query_pre_attn_scalar", 256),
        "embed_scale": whole_number(mapping, "hidden_size") ** 0.5,
        "zero_centered_norms": True,
        "sandwich_norms": True,
        "activation": _activation(mapping),
    }


def _experts(mapping: Mapping[str, Any]) -> Experts | None:
    """Mixtures of experts of Qwen3-MoE; None where every layer has an MLP."""
    count = mapping.get("num_experts", mapping.get("num_local_experts", 128))  # the latter since transformers 5
    if mapping["model_type"] != "qwen3_moe" or count == 0:
        return None
    step, dense = mapping.get("decoder_sparse_step", 1), mapping.get("mlp_only_layers") or ()
    layers = range(whole_number(mapping, "num_hidden_layers"))
    return Experts(
        count=count,
        per_token=mapping.get("num_experts_per_tok", 8),
        width=mapping.get("moe_intermediate_size", 768),
        renormalize=bool(mapping.get("norm_topk_prob", False)),
        dense_layers=tuple(layer for layer in layers if layer in dense or (layer + 1) % step),
    )


def _activation(mapping: Mapping[str, Any]) -> str:
    """The activation of MLPs, which each family has one of."""
    gemma = mapping["model_type"] == "gemma3_text"
    key = "hidden_activation" if gemma else "hidden_act"
    usual = "gelu_pytorch_tanh" if gemma else "silu"
    if mapping.get(key) not in (None, usual):
        raise ValueError(f"{key} {mapping[key]!r} is not supported; {usual} is")
    return usual


def token_ids(mapping: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The tokens that a key names: a number, a list or absent; null and -1 stand for no token, in a list too.

    Raises:
      ValueError: something else.
    """
    declared = mapping.get(key)
    listed = declared if isinstance(declared, list) else [declared]
    ids = [token for token in listed if token is not None]
    if not all(_is_whole(token) for token in ids):
        raise ValueError(f"{key} is {declared!r}, expected token ids")
    return tuple(dict.fromkeys(int(token) for token in ids if token >= 0))


def whole_number(mapping: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive number, 512.0 as well as 512; required where there is no default.

    Raises:
      ValueError: no such key, or another value.
    """
    value = mapping.get(key)
    if value is None:
        if default is None:
            raise ValueError(f"config.json has no {key}")
        return default
    if not _is_whole(value) or value < 1:
        raise ValueError(f"{key} is {value!r}, expected a positive number")
    return int(value)


def _is_whole(value: Any) -> bool:
    return type(value) is int or (type(value) is float and value.is_integer())


def _number(mapping: Mapping[str, Any], key: str, default: float) -> float:
    """A positive number, whole or not."""
    value = mapping.get(key)
    if value is None:
        return default
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ValueError(f"{key} is {value!r}, expected a positive number")
    return float(value)


def _switch(mapping: Mapping[str, Any], key: str) -> bool:
    """Whether something is switched on; absent is off."""
    value = mapping.get(key)
    if value not in (None, True, False):
        raise ValueError(f"{key} is {value!r}, expected true or false")
    return bool(value)


def _object(mapping: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A JSON object; absent is an empty one."""
    value = mapping.get(key)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{key} is {value!r}, expected an object")
    return value or {}


def _reject_unsupported(mapping: Mapping[str, Any]) -> None:
    model_type = mapping.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"model_type {model_type!r} is not supported{reason_against(model_type)}; {', '.join(MODEL_TYPES)} are"
        )
    _activation(mapping)
    for key in _SET_NOWHERE:
        if mapping.get(key):
            raise ValueError(f"{key} is {mapping[key]}, which is not supported")
    for key in _EXPERT_KEYS:
        if mapping.get(key) and model_type != "qwen3_moe":
            raise ValueError(f"{key} is {mapping[key]}: experts are supported for qwen3_moe, not for {model_type}")
    if quantization := _object(mapping, "quantization_config"):
        raise ValueError(
            f"quantization_config asks for {quantization.get('quant_method', 'unknown')!r}: quantised Hugging Face"
            " checkpoints are not supported; float32, bfloat16 and float16 ones are, and quantised GGUF files"
        )


def _num_kv_heads(mapping: Mapping[str, Any], num_heads: int) -> int:
    """Null means one for each query head; an absent key is only clear for Llama."""
    if "num_key_value_heads" not in mapping and mapping["model_type"] != "llama":
        raise ValueError("config.json has no num_key_value_heads")
    return whole_number(mapping, "num_key_value_heads", num_heads)


def _windows(mapping: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Sliding window of each layer; () where no layer has one.

    Mistral's `sliding_window` holds for all layers. Qwen's counts only with `use_sliding_window`, for the layers that
    `layer_types` names or, without it, for those from `max_window_layers` on (Qwen3-MoE: all). Gemma's holds for the
    layers that `layer_types` names or, without it, for all but each sixth.
    """
    num_layers, model_type = whole_number(mapping, "num_hidden_layers"), mapping["model_type"]
    listed = mapping.get("layer_types")
    # Null is no window, as in a model's class.
    is_null = "sliding_window" in mapping and mapping["sliding_window"] is None
    slides = model_type == "mistral" or (model_type != "llama" and _switch(mapping, "use_sliding_window"))
    window = whole_number(mapping, "sliding_window", _DEFAULT_WINDOW) if slides and not is_null else None
    if model_type == "gemma3_text":
        window = whole_number(mapping, "sliding_window")
        pattern = whole_number(mapping, "sliding_window_pattern", _GEMMA3_PATTERN)
        sliding = [window is not None and (layer + 1) % pattern != 0 for layer in range(num_layers)]
    else:
        first = 0 if model_type in ("mistral", "qwen3_moe") else mapping.get("max_window_layers")
        if first is None:
            first = _DEFAULT_MAX_WINDOW_LAYERS
        if not _is_whole(first):
            raise ValueError(f"max_window_layers is {first!r}, expected a number of layers")
        sliding = [window is not None and layer >= first for layer in range(num_layers)]
    if listed is not None:
        kinds = ("sliding_attention", "full_attention")
        if not isinstance(listed, list) or len(listed) != num_layers or not all(kind in kinds for kind in listed):
            raise ValueError(f"layer_types {listed} must name full_attention or sliding_attention {num_layers} times")
        named = [kind == "sliding_attention" for kind in listed]
        if named != sliding and (model_type not in ("qwen2", "qwen3", "gemma3_text") or window is None):
            raise ValueError(f"layer_types {listed} contradicts sliding_window {window} of a {model_type} model")
        sliding = named
    return tuple(window if slide else None for slide in sliding) if any(sliding) else ()


def rope_from_hf(mapping: Mapping[str, Any]) -> tuple[float, RopeScaling]:
    """RoPE base and scaling of a `config.json`.

    Where the original context of yarn or llama3 is not given, it is `max_position_embeddings`; a yarn factor of null is
    the ratio of the two (both as in `transformers`). Where `rope_scaling` is beside `rope_parameters`, one of them
    scales or both say the same, and a base that only one of them has counts; `transformers` would forget it.
    """
    spellings = [_object(mapping, key) for key in ("rope_scaling", "rope_parameters")]
    scalings = [_scaling(mapping, rope) for rope in spellings]
    scaled = list(dict.fromkeys(scaling for scaling in scalings if scaling.kind != "default"))
    if len(scaled) > 1:
        raise ValueError(f"rope_scaling says {scaled[0]}, rope_parameters says {scaled[1]}: leave one of them out")
    bases = [rope for rope in (*spellings, mapping) if rope.get("rope_theta") is not None]
    return _number(bases[0] if bases else {}, "rope_theta", 10000.0), scaled[0] if scaled else RopeScaling()


def _scaling(mapping: Mapping[str, Any], rope: Mapping[str, Any]) -> RopeScaling:
    """The scaling that one of the spellings gives."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if not isinstance(kind, str) or kind not in _ROPE_KEYS:
        raise ValueError(f"RoPE scaling {kind!r} is not supported; {', '.join(_ROPE_KEYS)} are")
    for key in rope:
        if key not in _ROPE_KEYS[kind] and key not in _ROPE_KEYS_OF_ALL:
            raise ValueError(f"RoPE scaling {kind!r} has no parameter {key!r} (value {rope[key]!r})")
    partial = rope.get("partial_rotary_factor") or mapping.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise ValueError(f"partial_rotary_factor {partial} is not supported; 1.0 is")
    if kind == "default":
        return RopeScaling()
    original = _original_length(mapping, rope)
    fields = {key: rope[key] for key in _ROPE_KEYS[kind] if rope.get(key) is not None}
    if kind == "yarn":
        fields.setdefault("factor", whole_number(mapping, "max_position_embeddings") / original)
    for key in _ROPE_KEYS[kind][:3] if kind == "llama3" else ("factor",):
        if key not in fields:
            raise ValueError(f"RoPE scaling {kind!r} needs {key}")
    numbers: dict[str, Any] = {
        key: _switch(fields, key) if key == "truncate" else _number(fields, key, 0.0) for key in fields
    }
    return RopeScaling(kind=kind, original_max_positions=0 if kind == "linear" else original, **numbers)


def _original_length(mapping: Mapping[str, Any], rope: Mapping[str, Any]) -> int:
    """Context of the unscaled model."""
    key = "original_max_position_embeddings"
    places = [place for place in (mapping, rope) if place.get(key)]
    return whole_number(places[0], key) if places else whole_number(mapping, "max_position_embeddings")


def _context(mapping: Mapping[str, Any], scaling: RopeScaling) -> int:
    """Positions that a model is made for, where a scaling stretches those that `max_position_embeddings` has.

    Model cards switch YaRN on by `rope_scaling` alone, so its context is at least the factor times the original length.
    Linear scaling is defined to leave `max_position_embeddings` that of the unscaled model. The configs of llama3
    scaling have the scaled length there, which is not the product; only the original one left there is stretched.
    """
    declared = whole_number(mapping, "max_position_embeddings")
    if scaling.kind == "linear" and mapping["model_type"] != "gemma3_text":  # whose files declare the scaled context
        rope = _object(mapping, "rope_scaling") or _object(mapping, "rope_parameters")
        product = round(scaling.factor * _original_length(mapping, rope))
        return whole_number(mapping, SCALED_LENGTH, max(declared, product))
    return scaled_context(declared, scaling)


def scaled_context(declared: int, scaling: RopeScaling) -> int:
    """Positions that a model with a yarn or llama3 scaling is made for, whose file declares so many."""
    product = round(scaling.factor * scaling.original_max_positions)
    if scaling.kind == "yarn" or (scaling.kind == "llama3" and declared <= scaling.original_max_positions):
        return max(declared, product)
    return declared


def rope_to_hf(theta: float, scaling: RopeScaling) -> dict[str, Any]:
    """Both spellings of a RoPE base and scaling, as keys of a `config.json`; the inverse of `rope_from_hf`."""
    if scaling.kind == "default":
        return {
            "rope_theta": theta,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        }
    fields = {key: getattr(scaling, key) for key in _ROPE_KEYS[scaling.kind]}
    rope = {"rope_type": scaling.kind, **{key: value for key, value in fields.items() if value is not None}}
    if scaling.original_max_positions:
        rope["original_max_position_embeddings"] = scaling.original_max_positions
    return {"rope_theta": theta, "rope_scaling": rope, "rope_parameters": {**rope, "rope_theta": theta}}


def context_to_hf(max_positions: int, scaling: RopeScaling) -> dict[str, int]:
    """The context as keys of a `config.json`, which `config_from_hf` reads as it is."""
    lengths = {"max_position_embeddings": max_positions}
    return lengths | ({SCALED_LENGTH: max_positions} if scaling.kind == "linear" else {})


def context_remark(declared: Any, config: ModelConfig) -> str:
    """What to tell a user whose file declares another context than the scaling gives; empty where it does not."""
    if declared == config.max_positions:
        return ""
    scaling = config.rope_scaling
    how = f"RoPE scaling ({scaling.kind}, {scaling.factor:g} times)"
    return f"the context is {config.max_positions} positions by {how}; the file declares {declared}"
