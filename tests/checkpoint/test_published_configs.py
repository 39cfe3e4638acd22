"""Heads made tiny with the keys of published EAGLE-3 configs: each loads, or is refused by name.

Keys are those of the files or, where only their trainer is public, of what it writes. Sizes are divided until a test
can hold them, and what no loader reads is left out.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from eagle_jax.checkpoint.heads import load_head, save_head
from eagle_jax.checkpoint.hf_config import config_from_hf
from eagle_jax.checkpoint.validate_head import validate
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import NORMS
from eagle_jax.testing import tiny_transformer
from tests.checkpoint.heads import DRAFT_VOCAB, assert_tree_equal, edit_tensors, random_head, rename

LAYER = {
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "initializer_range": 0.02,
    "use_cache": True,
}
LLAMA = {
    **LAYER,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "num_hidden_layers": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "draft_vocab_size": DRAFT_VOCAB,
}
QWEN3 = {
    **LAYER,
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 7,
    "eos_token_id": 9,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "max_window_layers": 48,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "draft_vocab_size": DRAFT_VOCAB,
}


def speculators(layer: dict[str, Any], verifier: str, architecture: str, **beside: Any) -> dict[str, Any]:
    """As the library writes it."""
    proposal = {"proposal_type": "greedy", "speculative_tokens": 3, "verifier_accept_k": 1, "accept_tolerance": 0.0}
    return {
        "architectures": ["Eagle3Speculator"],
        "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
        "draft_vocab_size": DRAFT_VOCAB,
        "has_no_defaults_at_init": False,
        "norm_before_residual": True,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"architectures": [architecture], "name_or_path": verifier},
        },
        "speculators_model_type": "eagle3",
        "speculators_version": "0.1.0.dev42",
        "target_hidden_size": None,
        "torch_dtype": "bfloat16",
        "transformer_layer_config": {
            **LAYER,
            "attention_bias": False,
            "head_dim": 8,
            "max_position_embeddings": 40960,
            "mlp_bias": False,
            "model_type": "llama",
            "num_hidden_layers": 1,
            "rms_norm_eps": 1e-6,
            "rope_scaling": None,
            "rope_theta": 1e6,
            **layer,
        },
        "transformers_version": "4.55.0",
        **beside,
    }


class Published(NamedTuple):
    """A head, as far as its files tell."""

    config: dict[str, Any]
    theta: float
    layer: str = "midlayer."
    flags: tuple[str, ...] = ()  # of `NORMS`
    width: int | None = None  # of the head, where it is not the target's
    embedding: bool = False  # the files have a copy of the target's
    whole: bool = False  # the draft vocabulary is the target's
    target: dict[str, Any] | None = None  # `config.json` of one that is refused


GPT_OSS = {**LAYER, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 32}

PUBLISHED: dict[str, Published] = {
    "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B": Published(LLAMA, 1e4),
    "yuhuili/EAGLE3-LLaMA3.3-Instruct-70B": Published(
        {**LLAMA, "hidden_size": 24, "target_hidden_size": 32, "head_dim": 8}, 1e4, width=24
    ),
    "yuhuili/EAGLE3-Vicuna1.3-13B": Published(
        {**LLAMA, "num_hidden_layers": 40, "draft_vocab_size": 64, "rms_norm_eps": 1e-6}, 1e4, whole=True
    ),
    "lmsys/SGLang-EAGLE3-Llama-3.1-8B-Instruct-SpecForge": Published(
        {**LLAMA, "architectures": ["LlamaForCausalLMEagle3"], "rope_theta": 5e5, "rope_scaling": None}, 5e5
    ),
    "lmsys/SGLang-EAGLE3-Qwen3-30B-A3B-Instruct-2507-SpecForge": Published(QWEN3, 1e6),
    "AngelSlim/Qwen3-1.7B_eagle3": Published(
        {**QWEN3, "architectures": ["Eagle3LlamaForCausalLM"], "tie_word_embeddings": True}, 1e6
    ),
    "Tengyunw/qwen3_8b_eagle3": Published({**QWEN3, "max_position_embeddings": 40960}, 1e6, embedding=True),
    "RedHatAI/Qwen3-8B-speculator.eagle3": Published(
        speculators({}, "Qwen/Qwen3-8B", "Qwen3ForCausalLM"),
        1e6,
        layer="layers.0.",
        flags=("norm_before_residual",),
        embedding=True,
    ),
    "RedHatAI/gpt-oss-20b-speculator.eagle3": Published(
        speculators({"rope_theta": 15e4}, "openai/gpt-oss-20b", "GptOssForCausalLM", norm_before_fc=True),
        15e4,
        layer="layers.0.",
        flags=("norm_before_residual", "norm_before_fc"),
        embedding=True,
        target=GPT_OSS,
    ),
    "thoughtworks/Llama-3.2-3B-Instruct-Eagle3": Published(
        {
            **{name: LLAMA[name] for name in LAYER if name not in ("hidden_act", "initializer_range", "use_cache")},
            **{name: LLAMA[name] for name in ("model_type", "num_hidden_layers", "rms_norm_eps", "draft_vocab_size")},
            **{"architectures": ["LlamaForCausalLM"], "head_dim": 8, "rope_theta": 5e5, "torch_dtype": "bfloat16"},
            "tie_word_embeddings": False,
        },
        5e5,
    ),
    "nvidia/Llama-3.3-70B-Instruct-Eagle3": Published(
        {
            **LLAMA,
            "architectures": ["LlamaForCausalLMEagle3"],
            "rope_theta": 5e5,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "eagle_config": {
                "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
                "next_layer_regular": True,
                "parallel_draft_step": 1,
                "parallel_draft_heads_num_layers": 1,
                "use_aux_hidden_state": True,
                "use_input_layernorm_in_first_layer": True,
                "use_last_layernorm": True,
                "use_mtp_layernorm": False,
            },
        },
        5e5,
        layer="layers.0.",
    ),
}


def published(folder: Path, head: Published) -> tuple[Path, ModelConfig, Any]:
    """The tiny head's directory, its target's shape and its weights."""
    theta = {"rope_theta": head.theta}
    target = tiny_transformer(num_layers=7, norm_eps=1e-6 if head.theta == 1e6 else 1e-5, **theta)[0]
    flags = dict.fromkeys(head.flags, True)
    config, params = random_head("eagle3", target, width=head.width, **flags)
    if head.whole:
        params = params.replace(lm_head=jnp.ones((64, 32)), target_ids=None)
    save_head(folder / "head", config, params, target, dtype="float32", engine="vllm")
    edit_tensors(folder / "head", rename(lambda name: name.replace("midlayer.", head.layer)))
    if head.embedding:
        edit_tensors(folder / "head", lambda tensors: tensors.update({"embed_tokens.weight": np.ones((64, 32), "f")}))
    if head.whole:
        edit_tensors(folder / "head", lambda tensors: tensors.update(d2t=np.zeros(64, int), t2d=np.ones(64, bool)))
    (folder / "head/config.json").write_text(json.dumps(head.config))
    return folder / "head", target, params


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_head(name: str, tmp_path: Path) -> None:
    head = PUBLISHED[name]
    folder, target, params = published(tmp_path, head)
    config, loaded = load_head(folder, target)
    assert_tree_equal(loaded, params)
    assert config.layer.rope_theta == head.theta
    assert {norm for norm in NORMS if getattr(config, norm)} == set(head.flags)
    assert (config.parts, config.layer.num_layers, config.layer.windows) == ((), 1, ())
    if head.target is not None:
        with pytest.raises(ValueError, match=f"model_type {head.target['model_type']!r} is not supported"):
            config_from_hf(head.target)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("RedHatAI/")])
def test_directories_of_speculators_are_what_vllm_serves(name: str, tmp_path: Path) -> None:
    """But for the type of the weights, which is float32 here."""
    folder, _, _ = published(tmp_path, PUBLISHED[name])
    stored = load_file(folder / "model.safetensors")
    assert validate(folder) == [
        f"tensor {tensor} is float32, expected bfloat16" for tensor in stored if tensor not in ("d2t", "t2d")
    ]


OF_THE_TARGET: dict[str, dict[str, Any]] = {
    "13B": {"num_hidden_layers": 40},
    "without a number": {"num_hidden_layers": None},
    "Mistral": {"model_type": "mistral", "sliding_window": 4096},
    "Qwen3": {
        **{"model_type": "qwen3", "num_hidden_layers": 7, "max_window_layers": 7, "tie_word_embeddings": True},
        **{"layer_types": ["full_attention"] * 7, "sliding_window": None, "use_sliding_window": False},
    },
    "sliding": {
        **{"model_type": "qwen3", "num_hidden_layers": 7, "max_window_layers": 3},
        **{"layer_types": ["full_attention"] * 3 + ["sliding_attention"] * 4, "sliding_window": 256},
    },
    "Qwen3-MoE": {
        **{"model_type": "qwen3_moe", "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 48},
        **{"decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True, "num_hidden_layers": 48},
    },
    "quantised": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
    "no ids": {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [], "use_aux_hidden_state": True}},
}
"""What a config has from its target, over tensors of one dense layer."""


@pytest.mark.parametrize("case", OF_THE_TARGET)
def test_keys_that_describe_the_target(case: str, tmp_path: Path) -> None:
    folder, target, params = published(tmp_path, Published({**LLAMA, **OF_THE_TARGET[case]}, 1e4))
    config, loaded = load_head(folder, target)
    assert_tree_equal(loaded, params)
    assert (config.layer.num_layers, config.layer.windows, config.layer.qk_norm) == (1, (), False)
