"""Writes a target as a Hugging Face directory: config, safetensors, tokenizer. The inverse of `hf` and `hf_config`.

What is written loads in `transformers`, and here as a target or as the draft model of another one.
"""

import dataclasses
import json
import os
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from eagle_jax.chat import Tokenizer
from eagle_jax.checkpoint.assemble import check_dtype, convert
from eagle_jax.checkpoint.hf import SINGLE_FILE
from eagle_jax.checkpoint.hf_config import config_from_hf, context_to_hf, rope_to_hf
from eagle_jax.checkpoint.names import lookup, target_tensors
from eagle_jax.files import new_directory
from eagle_jax.models.config import ModelConfig
from eagle_jax.types import Params

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def config_to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a model.

    Raises:
      ValueError: a mixture of parts that no supported `model_type` has.
    """
    if config.qk_norm:
        model_type = "qwen3"
    elif config.qkv_bias and not config.output_bias:
        model_type = "qwen2"
    else:
        model_type = "mistral" if config.windows else "llama"
    mapping: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        **context_to_hf(config.max_positions, config.rope_scaling),
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        **rope_to_hf(config.rope_theta, config.rope_scaling),
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_ids) if len(config.eos_ids) > 1 else next(iter(config.eos_ids), None),
        "torch_dtype": dtype,
    }
    windows = {window for window in config.windows if window is not None}
    if model_type == "mistral":
        mapping["sliding_window"] = next(iter(windows), None)
    elif windows:
        kinds = ["full_attention" if window is None else "sliding_attention" for window in config.windows]
        mapping |= {"use_sliding_window": True, "sliding_window": next(iter(windows)), "layer_types": kinds}
    # Which layers are tapped is no part of a target's checkpoint.
    if dataclasses.replace(config, tap_layers=()) != config_from_hf(mapping):
        raise ValueError(f"no config.json of type {model_type} says what this model is: {config}")
    return mapping


def save_target(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    dtype: str = "bfloat16",
) -> None:
    """Write a model, all of it or nothing.

    Args:
      directory: must not exist, or be empty.
      config: shape of the model.
      params: its weights.
      tokenizer: stored beside them.
      dtype: of the stored weights.

    Raises:
      ValueError: something is there already, or no `model_type` fits the model.
    """
    mapping = config_to_hf(config, dtype)
    wanted = check_dtype(dtype)
    tensors = {
        name: convert(spec.to_stored(np.asarray(lookup(params, spec.path))), wanted, name, str(directory))
        for name, spec in target_tensors(config).items()
    }
    with new_directory(directory) as folder:
        save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(mapping, indent=2) + "\n", encoding="utf-8")
        tokenizer.save(folder)
