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
from eagle_jax.checkpoint.draft_vocabulary import Ranking
from eagle_jax.checkpoint.hf import SINGLE_FILE
from eagle_jax.checkpoint.hf_config import config_from_hf, context_to_hf, rope_to_hf
from eagle_jax.checkpoint.names import lookup, target_tensors
from eagle_jax.files import new_directory
from eagle_jax.models.config import Experts, ModelConfig
from eagle_jax.types import Params

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


def config_to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a model.

    Raises:
      ValueError: a mixture of parts that no supported `model_type` has.
    """
    if config.sandwich_norms:
        model_type = "gemma3_text"
    elif config.qk_norm:
        model_type = "qwen3_moe" if config.experts else "qwen3"
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
        **({"hidden_act": "silu"} if model_type != "gemma3_text" else {"hidden_activation": "gelu_pytorch_tanh"}),
        **rope_to_hf(config.rope_theta, config.rope_scaling),
        "attention_bias": config.output_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": list(config.eos_ids) if len(config.eos_ids) > 1 else next(iter(config.eos_ids), None),
        "torch_dtype": dtype,
    }
    windows = {window for window in config.windows if window is not None}
    common: dict[str, Any] = {"sliding_window": next(iter(windows))} if windows else {}
    kinds = ["sliding_attention" if config.window(layer) else "full_attention" for layer in range(config.num_layers)]
    if model_type == "mistral":
        mapping |= common or {"sliding_window": None}
    elif model_type == "gemma3_text":
        mapping |= {**_gemma3_keys(config), **common, "layer_types": kinds}
    elif windows:
        mapping |= {"use_sliding_window": True, **common, "layer_types": kinds}
    if config.experts is not None:
        mapping |= _expert_keys(config.experts)
    # Which layers are tapped is no part of a target's checkpoint.
    if dataclasses.replace(config, tap_layers=()) != config_from_hf(mapping):
        raise ValueError(f"no config.json of type {model_type} says what this model is: {config}")
    return mapping


def _gemma3_keys(config: ModelConfig) -> dict[str, Any]:
    """What Gemma 3 alone has in its config, RoPE in both spellings."""
    scalar = config.query_pre_attn_scalar or config.head_dim
    full = rope_to_hf(config.rope_theta, config.rope_scaling)["rope_parameters"]
    local_theta = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    local = {"rope_type": "default", "rope_theta": local_theta}
    return {
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "rope_local_base_freq": local_theta,
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
    }


def _expert_keys(experts: Experts) -> dict[str, Any]:
    """What Qwen3-MoE alone has in its config."""
    return {
        "num_experts": experts.count,
        "num_experts_per_tok": experts.per_token,
        "moe_intermediate_size": experts.width,
        "norm_topk_prob": experts.renormalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(experts.dense_layers),
    }


def save_target(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    params: Params,
    tokenizer: Tokenizer,
    *,
    dtype: str = "bfloat16",
    ranking: Ranking | None = None,
) -> None:
    """Write a model, all of it or nothing.

    Args:
      directory: must not exist, or be empty.
      config: shape of the model.
      params: its weights.
      tokenizer: stored beside them.
      dtype: of the stored weights.
      ranking: of a draft model, the tokens that it should draft.

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
        if ranking is not None:
            ranking.save(folder, config.vocab_size)
