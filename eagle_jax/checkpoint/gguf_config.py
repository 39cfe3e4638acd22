"""Reads the shape of a model from GGUF metadata (keys as the GGUF specification and llama.cpp define them).

Every key in the namespace of the architecture must be known: one that is not may change the arithmetic, so it is an
error and not skipped.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from eagle_jax.checkpoint.gguf import ROPE_FACTORS, GGUFFile, token_id
from eagle_jax.checkpoint.hf_config import MODEL_TYPES, context_remark, reason_against, scaled_context
from eagle_jax.models.config import ModelConfig, RopeScaling
from eagle_jax.models.rope import frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""`general.architecture` values that are read; Mistral files say `llama`."""

_MODEL_TYPES = {
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3n": "gemma3n",
    "qwen2moe": "qwen2_moe",
    "qwen3moe": "qwen3_moe",
    "qwen3next": "qwen3_next",
    "deepseek2": "deepseek_v3",
    "gpt-oss": "gpt_oss",
}
"""Hugging Face's `model_type` of other architectures, some of which are read from a directory."""

_LLAMA3 = RopeScaling(kind="llama3", original_max_positions=8192, low_freq_factor=1.0, high_freq_factor=4.0)
"""The scaling of every published Llama 3.1 to 3.3 model, but for its factor."""

_NEUTRAL = {
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "attention.sliding_window": 0,
    "attention.causal": True,
    "expert_used_count": 0,
}
"""Keys that are read only to make sure that they change nothing."""

_LOG = logging.getLogger(__name__)
_IGNORED = ("rope.scaling.finetuned", "tensor_data_layout")


class _Keys:
    """The metadata of one architecture; remembers which keys were read."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self._prefix = f"{architecture}."
        self._origin = str(file.path)
        self._values = {
            key.removeprefix(self._prefix): value
            for key, value in file.metadata.items()
            if key.startswith(self._prefix)
        }
        self._read_keys: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self._read_keys.add(key)
        return self._values.get(key, default)

    def need(self, key: str) -> Any:
        if key not in self._values:
            raise self.error(key, "is missing")
        return self.get(key)

    def count(self, key: str, default: int | None = None) -> int:
        """A positive number; required where no default is given."""
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, int) or value < 1:
            raise self.error(key, f"is {str(value)[:60]}, expected one positive number for all layers")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, whole or not; required where no default is given."""
        value = self.need(key) if default is None else self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.error(key, f"is {str(value)[:60]}, expected one positive number")
        return float(value)

    def error(self, key: str, what: str) -> ValueError:
        return ValueError(f"{self._origin}: metadata key {self._prefix}{key} {what}")

    def reject_the_rest(self) -> None:
        """Raise unless every key was read or is known to change nothing."""
        for key, value in self._values.items():
            if key in _NEUTRAL and value != _NEUTRAL[key]:
                raise self.error(key, f"is {value!r}, and only {_NEUTRAL[key]!r} is supported")
            if key not in self._read_keys and key not in _NEUTRAL and key not in _IGNORED:
                raise self.error(key, f"(value {str(value)[:60]}) is not known")


def config_from_gguf(file: GGUFFile) -> ModelConfig:
    """The shape of the model in a GGUF file.

    Biases, a separate LM head and Llama 3 RoPE factors are recognised by their tensors, as llama.cpp does it.

    Raises:
      ValueError: another architecture, a missing key, or one that is unknown or not supported; the message names it.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"{file.path}: {_why_refused(architecture)}")
    keys = _Keys(file, architecture)
    if experts := keys.get("expert_count", 0):
        raise keys.error("expert_count", f"is {str(experts)[:60]}, and only 0 is supported: no experts, as Mixtral has")
    num_heads, width = keys.count("attention.head_count"), keys.count("embedding_length")
    head_dim = keys.count("attention.key_length", width // num_heads)
    num_layers = keys.count("block_count")
    if f"blk.{num_layers - 1}.attn_norm.weight" not in file.tensors:
        raise keys.error("block_count", f"is {num_layers}, but the last layer has no tensors")
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.get(key, head_dim) != head_dim:
            raise keys.error(key, f"is {keys.get(key)}, but the head size is {head_dim}")
    vocab_size = keys.count("vocab_size", _num_tokens(file))
    theta = keys.number("rope.freq_base", 10000.0)
    scaling = _rope_scaling(keys)
    if ROPE_FACTORS in file.tensors:
        scaling = _llama3_scaling(file, head_dim, theta, scaling)
    config = ModelConfig(
        vocab_size=vocab_size,
        width=width,
        mlp_width=keys.count("feed_forward_length"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=keys.count("attention.head_count_kv", num_heads),
        head_dim=head_dim,
        max_positions=_context(keys, scaling),
        norm_eps=_shortest(keys.number("attention.layer_norm_rms_epsilon")),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=architecture == "qwen2" or "blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in file.tensors,
        qk_norm=architecture == "qwen3",
        tie_embeddings="output.weight" not in file.tensors,
        bos_id=token_id(file.metadata, "bos"),
        eos_ids=eos_ids(file.metadata),
    )
    keys.reject_the_rest()
    if remark := context_remark(keys.count("context_length"), config):
        _LOG.warning("%s: %s", file.path, remark)
    return config


def _why_refused(architecture: Any) -> str:
    """What to tell a user whose file has another architecture, and where else its model is read from."""
    model_type = _MODEL_TYPES.get(architecture) if isinstance(architecture, str) else None
    name = f"general.architecture is {str(architecture)[:60]!r}{reason_against(model_type)}"
    refused = f"{name}; supported in GGUF are {', '.join(ARCHITECTURES)}"
    if model_type not in MODEL_TYPES:
        return refused
    return f"{refused}, and this model as a Hugging Face directory (safetensors, model_type {model_type})"


def _num_tokens(file: GGUFFile) -> int:
    """Tokens that the file lists."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    return len(tokens) if isinstance(tokens, list) else 0


def eos_ids(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Tokens that end an answer: end of text, of turn and of message, as far as the file declares them."""
    ids = (token_id(metadata, name) for name in ("eos", "eot", "eom"))
    return tuple(dict.fromkeys(token for token in ids if token is not None))


def _shortest(value: float) -> float:
    """A float32 from the file as the decimal that was meant: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _rope_scaling(keys: _Keys) -> RopeScaling:
    """Linear and yarn; llama.cpp takes a factor without a type for linear."""
    given = [key for key in ("rope.scaling.factor", "rope.scale_linear") if keys.get(key) is not None]
    kind = keys.get("rope.scaling.type", "linear" if given else "none")
    keys.get("rope.scaling.original_context_length")
    if kind == "none":
        return RopeScaling()
    if kind not in ("linear", "yarn"):
        raise keys.error("rope.scaling.type", f"is {kind!r}; supported are none, linear, yarn")
    if not given:
        raise keys.error("rope.scaling.factor", f"is missing, and RoPE scaling {kind} needs it")
    factor = keys.number(given[0])
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor)
    if keys.get("rope.scaling.yarn_log_multiplier", 0.0):
        raise keys.error("rope.scaling.yarn_log_multiplier", "is not supported for this architecture")
    original = keys.count("rope.scaling.original_context_length", keys.count("context_length"))
    return RopeScaling(kind="yarn", factor=factor, original_max_positions=original)


def _context(keys: _Keys, scaling: RopeScaling) -> int:
    """Positions that the model is made for: `context_length` is that of its `config.json`."""
    declared = keys.count("context_length")
    if scaling.kind == "linear":
        return max(declared, round(scaling.factor * keys.count("rope.scaling.original_context_length", declared)))
    return scaled_context(declared, scaling)


def _llama3_scaling(file: GGUFFile, head_dim: int, theta: float, declared: RopeScaling) -> RopeScaling:
    """The llama3 scaling whose divisors a file holds as a tensor; only their largest is a free number."""
    if declared.kind != "default":
        raise ValueError(f"{file.path}: both RoPE scaling {declared.kind} and tensor {ROPE_FACTORS}; one is supported")
    divisors = file.read(ROPE_FACTORS)
    if divisors.shape != (head_dim // 2,):
        raise ValueError(f"{file.path}: tensor {ROPE_FACTORS} has shape {divisors.shape}, expected {(head_dim // 2,)}")
    plain, _ = frequencies(head_dim, theta, RopeScaling())
    factor = float(divisors.max())
    scaling = RopeScaling(**{**vars(_LLAMA3), "factor": factor})
    scaled, _ = frequencies(head_dim, theta, scaling)
    worst = float(np.abs(plain / divisors / scaled - 1).max())
    if not math.isfinite(worst) or worst > 1e-4:
        raise ValueError(
            f"{file.path}: tensor {ROPE_FACTORS} (largest {factor:g}) is off by {worst:.2g} from the llama3 scaling"
            f" with original length {_LLAMA3.original_max_positions}, low 1 and high 4, the only one read from GGUF"
        )
    return scaling
