"""Writes tiny checkpoints for the tests: Hugging Face directories and GGUF files."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import save_file

from eagle_jax.checkpoint.names import gguf_name, lookup, target_tensors
from eagle_jax.models.config import ModelConfig
from eagle_jax.types import Params

Quantize = Callable[[str, np.ndarray], gguf.GGMLQuantizationType]

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""The `config.json` of `eagle_jax.testing.tiny_transformer`."""


def stored_tensors(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """A parameter tree under its Hugging Face names and shapes."""
    return {
        name: spec.to_stored(np.asarray(lookup(params, spec.path))) for name, spec in target_tensors(config).items()
    }


def write_hf(folder: Path, tensors: Mapping[str, np.ndarray], num_shards: int = 1, **config: Any) -> Path:
    """A directory with `config.json` and the tensors, dealt out to shards by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if num_shards == 1:
        save_file(dict(tensors), folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(num_shards):
        name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::num_shards])
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, np.ndarray],
    *,
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """A file as llama.cpp's converter lays it out: matrices of type `kind`, vectors in float32.

    Args:
      path: of the file.
      config: of the model.
      tensors: under their Hugging Face names; q and k in rotate-half order.
      architecture: `llama` interleaves the rows of q and k.
      kind: type of the matrices.
      metadata: further keys, or None values for keys to leave out.
      extra_tensors: written as they are.
    """
    writer = gguf.GGUFWriter(path, architecture)
    prefix = architecture
    values: dict[str, Any] = {
        f"{prefix}.block_count": config.num_layers,
        f"{prefix}.context_length": config.max_positions,
        f"{prefix}.embedding_length": config.width,
        f"{prefix}.feed_forward_length": config.mlp_width,
        f"{prefix}.attention.head_count": config.num_heads,
        f"{prefix}.attention.head_count_kv": config.num_kv_heads,
        f"{prefix}.attention.key_length": config.head_dim,
        f"{prefix}.attention.value_length": config.head_dim,
        f"{prefix}.attention.layer_norm_rms_epsilon": config.norm_eps,
        f"{prefix}.rope.freq_base": config.rope_theta,
        f"{prefix}.vocab_size": config.vocab_size,
        "tokenizer.ggml.eos_token_id": 2,
        **(metadata or {}),
    }
    for key, value in values.items():
        add_value(writer, key, value)
    for name, value in tensors.items():
        module = name.split(".")[-2]
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(module)
        stored = interleave(value, heads) if heads and architecture == "llama" else value
        stored = stored.astype(np.float32)
        quantized = kind if stored.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), gguf.quants.quantize(stored, quantized), raw_dtype=quantized)
    for name, value in (extra_tensors or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """One metadata entry, typed after its Python value."""
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def interleave(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Row i of the result is the one that llama.cpp puts there: 0, D/2, 1, D/2+1, ... within each head."""
    head_dim = rows.shape[0] // num_heads
    order = [plane + half * head_dim // 2 for plane in range(head_dim // 2) for half in (0, 1)]
    return np.concatenate([rows[head * head_dim + np.array(order)] for head in range(num_heads)])
