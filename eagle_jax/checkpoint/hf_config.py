"""Reads the shape of a model from a Hugging Face `config.json` (Llama, Mistral, Qwen2, Qwen3).

Absent keys mean what they mean in `transformers`; whatever this package does not compute is an error, never skipped.
RoPE comes in two spellings: `rope_theta` and `rope_scaling` side by side, or since transformers 5 one mapping,
`rope_parameters`.
"""

from collections.abc import Mapping
from typing import Any

from eagle_jax.models.config import ModelConfig, RopeScaling

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` values that are read."""

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
    _reject_unsupported(mapping)
    model_type = mapping["model_type"]
    num_heads, width = _need(mapping, "num_attention_heads"), _need(mapping, "hidden_size")
    head_dim = mapping.get("head_dim") or (128 if model_type == "qwen3" else width // num_heads)
    theta, scaling = rope_from_hf(mapping)
    attention_bias = bool(mapping.get("attention_bias", False)) and model_type in ("llama", "qwen3")
    eos = mapping.get("eos_token_id")
    return ModelConfig(
        vocab_size=_need(mapping, "vocab_size"),
        width=width,
        mlp_width=_need(mapping, "intermediate_size"),
        num_layers=_need(mapping, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(mapping, num_heads),
        head_dim=head_dim,
        max_positions=_need(mapping, "max_position_embeddings"),
        norm_eps=float(mapping.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=attention_bias or model_type == "qwen2",
        output_bias=attention_bias,
        mlp_bias=bool(mapping.get("mlp_bias", False)) and model_type == "llama",
        qk_norm=model_type == "qwen3",
        windows=_windows(mapping),
        tie_embeddings=bool(mapping.get("tie_word_embeddings", False)),
        bos_id=mapping.get("bos_token_id"),
        eos_ids=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
    )


def _need(mapping: Mapping[str, Any], key: str) -> Any:
    if mapping.get(key) is None:
        raise ValueError(f"config.json has no {key}")
    return mapping[key]


def _reject_unsupported(mapping: Mapping[str, Any]) -> None:
    if mapping.get("model_type") not in MODEL_TYPES:
        raise ValueError(f"model_type {mapping.get('model_type')!r} is not supported; {', '.join(MODEL_TYPES)} are")
    if mapping.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act {mapping['hidden_act']!r} is not supported; silu is")
    for key in _EXPERT_KEYS:
        if mapping.get(key):
            raise ValueError(f"{key} is {mapping[key]}: mixtures of experts are not supported, only dense models are")
    if mapping.get("quantization_config"):
        method = mapping["quantization_config"].get("quant_method", "unknown")
        raise ValueError(
            f"quantization_config asks for {method!r}: quantised Hugging Face checkpoints are not supported; float32,"
            " bfloat16 and float16 ones are, and quantised GGUF files"
        )


def _num_kv_heads(mapping: Mapping[str, Any], num_heads: int) -> int:
    """Null means one for each query head; an absent key is only clear for Llama."""
    if "num_key_value_heads" not in mapping and mapping["model_type"] != "llama":
        raise ValueError("config.json has no num_key_value_heads")
    return mapping.get("num_key_value_heads") or num_heads


def _windows(mapping: Mapping[str, Any]) -> tuple[int | None, ...]:
    """Sliding window of each layer; () where no layer has one.

    Mistral's `sliding_window` holds for all layers. Qwen's counts only with `use_sliding_window`, for the layers that
    `layer_types` names or, without it, for those from `max_window_layers` on.
    """
    num_layers, model_type = _need(mapping, "num_hidden_layers"), mapping["model_type"]
    listed = mapping.get("layer_types")
    if model_type == "llama":
        window, sliding = None, [False] * num_layers
    elif model_type == "mistral":
        window = mapping.get("sliding_window", _DEFAULT_WINDOW)
        sliding = [window is not None] * num_layers
    else:
        window = mapping.get("sliding_window", _DEFAULT_WINDOW) if mapping.get("use_sliding_window") else None
        first = mapping.get("max_window_layers", _DEFAULT_MAX_WINDOW_LAYERS)
        sliding = [window is not None and layer >= first for layer in range(num_layers)]
    if listed is not None:
        named = [kind == "sliding_attention" for kind in listed]
        if len(listed) != num_layers or not set(listed) <= {"sliding_attention", "full_attention"}:
            raise ValueError(f"layer_types {listed} must name full_attention or sliding_attention {num_layers} times")
        if named != sliding and (model_type not in ("qwen2", "qwen3") or window is None):
            raise ValueError(f"layer_types {listed} contradicts sliding_window {window} of a {model_type} model")
        sliding = named
    return tuple(window if slides else None for slides in sliding) if any(sliding) else ()


def rope_from_hf(mapping: Mapping[str, Any]) -> tuple[float, RopeScaling]:
    """RoPE base and scaling of a `config.json`.

    Where the original context of yarn or llama3 is not given, it is `max_position_embeddings`; a yarn factor of null is
    the ratio of the two (both as in `transformers`).
    """
    rope = dict(mapping.get("rope_scaling") or mapping.get("rope_parameters") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_KEYS:
        raise ValueError(f"RoPE scaling {kind!r} is not supported; {', '.join(_ROPE_KEYS)} are")
    for key in rope:
        if key not in _ROPE_KEYS[kind] and key not in _ROPE_KEYS_OF_ALL:
            raise ValueError(f"RoPE scaling {kind!r} has no parameter {key!r} (value {rope[key]!r})")
    theta = rope.get("rope_theta") or mapping.get("rope_theta") or 10000.0
    partial = rope.get("partial_rotary_factor") or mapping.get("partial_rotary_factor") or 1.0
    if partial != 1.0:
        raise ValueError(f"partial_rotary_factor {partial} is not supported; 1.0 is")
    if kind == "default":
        return float(theta), RopeScaling()
    max_positions = _need(mapping, "max_position_embeddings")
    original = mapping.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    original = int(original or max_positions)
    fields = {key: rope[key] for key in _ROPE_KEYS[kind] if rope.get(key) is not None}
    if kind == "yarn":
        fields.setdefault("factor", max_positions / original)
    for key in _ROPE_KEYS[kind][:3] if kind == "llama3" else ("factor",):
        if key not in fields:
            raise ValueError(f"RoPE scaling {kind!r} needs {key}")
    numbers: dict[str, Any] = {key: value if key == "truncate" else float(value) for key, value in fields.items()}
    return float(theta), RopeScaling(kind=kind, original_max_positions=0 if kind == "linear" else original, **numbers)


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
