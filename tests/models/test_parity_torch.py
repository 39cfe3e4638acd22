"""Tiny random models of every supported kind, saved by transformers and read back here: same logits."""

import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.checkpoint.hf import load_config, load_params
from eagle_jax.models.transformer import make_target
from tests.models.passes import whole_pass
from tests.tolerance import assert_close, pass_terms

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # whatever importing torch has to say is not ours
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}


def rope(**changes: Any) -> dict[str, Any]:
    return {"rope_parameters": changes}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_one_kv_head": ("Llama", {"num_key_value_heads": 1}),
    "llama_head_dim": ("Llama", {"head_dim": 16}),
    "llama_biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "llama_linear": ("Llama", rope(rope_type="linear", rope_theta=1e4, factor=4.0)),
    "llama_llama3": ("Llama", rope(**LLAMA3)),
    "llama_yarn": ("Llama", rope(**YARN)),
    "llama_yarn_betas": ("Llama", rope(**YARN, beta_fast=8.0, beta_slow=0.5)),
    "llama_yarn_untruncated": ("Llama", rope(**YARN, truncate=False)),
    "llama_yarn_attention_factor": ("Llama", rope(**YARN, attention_factor=0.7)),
    "llama_yarn_mscale": ("Llama", rope(**YARN, mscale=1.2, mscale_all_dim=0.8)),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral_window": ("Mistral", {"sliding_window": 7}),
    "mistral_default_window": ("Mistral", {}),
    "qwen2": ("Qwen2", {}),
    "qwen2_mixed_windows": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "qwen2_yarn": ("Qwen2", rope(**YARN)),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_biases": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "qwen3_layer_types": (
        "Qwen3",
        {
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def random_model(family: str, changes: dict[str, Any]) -> Any:
    """A model whose biases and norms are not what they are initialised to, so that dropping one shows."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5
            centre = 1.0 if "norm" in name else 0.0
            weight.copy_(centre + scale * torch.randn_like(weight))
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_logits(case: str, tmp_path: Path) -> None:
    model = random_model(*CASES[case])
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (2, 40))
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)).logits.numpy()
    config = load_config(tmp_path)
    params = load_params(tmp_path, config)
    _, logits = whole_pass(make_target(config), params, jnp.asarray(tokens, jnp.int32))
    assert_close(logits, wanted, pass_terms(config, tokens.shape[1]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sharded_half_precision(dtype: str, tmp_path: Path) -> None:
    model = random_model("Qwen2", {}).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="16KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    config = load_config(tmp_path)
    params = load_params(tmp_path, config, dtype=dtype)
    stored = model.state_dict()["model.layers.1.mlp.up_proj.weight"]
    kernel = params["layers_1"]["mlp"]["up_proj"]["kernel"]
    assert kernel.dtype.name == dtype
    np.testing.assert_array_equal(kernel.astype(np.float32), stored.float().numpy().T)
    tokens = np.arange(12)[None]
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        wanted = reference(torch.from_numpy(tokens)).logits.numpy()
    _, logits = whole_pass(make_target(config), load_params(tmp_path, config), jnp.asarray(tokens, jnp.int32))
    assert_close(logits, wanted, pass_terms(config, tokens.shape[1]))
