"""Tiny random models of every supported kind, saved by transformers and read back here: same logits."""

import json
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eagle_jax.checkpoint.hf import load_config, load_params
from eagle_jax.checkpoint.pick_layers import truncate_layers
from eagle_jax.checkpoint.save_target import config_to_hf
from eagle_jax.drafters import make_ouroboros
from eagle_jax.generator import Generator
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


GEMMA3: dict[str, Any] = {"head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 5}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
EXPERTS: dict[str, Any] = {"head_dim": 16, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}


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
            "layer_types": MIXED,
        },
    ),
    "qwen3_moe": ("Qwen3Moe", EXPERTS),
    "qwen3_moe_renormalized": ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True}),
    "qwen3_moe_some_layers": ("Qwen3Moe", {**EXPERTS, "mlp_only_layers": [1], "attention_bias": True}),
    "qwen3_moe_each_second_layer": ("Qwen3Moe", {**EXPERTS, "decoder_sparse_step": 2, "tie_word_embeddings": True}),
    "qwen3_moe_window": ("Qwen3Moe", {**EXPERTS, "use_sliding_window": True, "sliding_window": 5}),
    "gemma3": ("Gemma3", {**GEMMA3, "layer_types": MIXED}),
    "gemma3_each_sixth_layer": ("Gemma3", {**GEMMA3, "num_hidden_layers": 6}),
    "gemma3_rope": (
        "Gemma3",
        {
            **GEMMA3,
            "layer_types": MIXED,
            **rope(
                full_attention={"rope_type": "linear", "rope_theta": 2e4, "factor": 8.0},
                sliding_attention={"rope_type": "default", "rope_theta": 5e3},
            ),
        },
    ),
    "gemma3_untied": ("Gemma3", {**GEMMA3, "layer_types": MIXED, "tie_word_embeddings": False, "attention_bias": True}),
}


def random_model(family: str, changes: dict[str, Any]) -> Any:
    """A model whose biases and norms are not what they are initialised to, so that dropping one shows."""
    torch.manual_seed(0)
    kind = getattr(transformers, f"{family}ForCausalLM")
    return randomize(kind(kind.config_class(**{**SIZES, **changes})))


def randomize(model: Any) -> Any:
    """The same model with other weights."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = 0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5
            centre = 1.0 if "norm" in name else 0.0
            weight.copy_(centre + scale * torch.randn_like(weight))
    return model.eval()


def assert_same_logits(wanted: Any, folder: Path, tokens: np.ndarray) -> None:
    """Those of PyTorch are those of the model in a folder."""
    config = load_config(folder)
    _, logits = whole_pass(make_target(config), load_params(folder, config), jnp.asarray(tokens, jnp.int32))
    assert_close(logits, wanted.numpy(), pass_terms(config, tokens.shape[1]))
    assert np.abs(logits - wanted.numpy()).max() < 1e-4


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_logits(case: str, tmp_path: Path) -> None:
    model = random_model(*CASES[case])
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (2, 40))
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)).logits
    assert_same_logits(wanted, tmp_path, tokens)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", ["gemma3_rope", "qwen3_moe_some_layers"])
def test_text_through_trees(case: str, tmp_path: Path) -> None:
    """What a chain and its cache write, the chain a layer of the target, is what PyTorch would write next each time.

    PyTorch reads the text anew, with a config that was written here.
    """
    random_model(*CASES[case]).save_pretrained(tmp_path)
    config = load_config(tmp_path)
    params = load_params(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config, "float32")))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    draft, weights = truncate_layers(config, params, 1)
    drafter = make_ouroboros(make_target(draft), 3, phrases=2, phrase_length=3, pool_size=50)
    writer = Generator(make_target(config), params, drafter, weights, capacity=64, prefill_chunk=16)
    prompt = np.random.default_rng(1).integers(0, SIZES["vocab_size"], 15).tolist()
    result = writer.generate([prompt], max_new_tokens=30)
    assert result.accepted[:, 1:].sum() > 0
    with torch.no_grad():
        logits = model(torch.tensor([prompt + result.tokens[0]])).logits[0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == result.tokens[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_language_model_of_a_model_that_reads_images(tmp_path: Path) -> None:
    """Gemma 3 with an image encoder: both spellings of its names."""
    text = {**SIZES, **GEMMA3, "layer_types": MIXED}
    image = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    image |= {"image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config=text, vision_config={"model_type": "siglip_vision_model", **image}, mm_tokens_per_image=4
    )
    model = randomize(transformers.Gemma3ForConditionalGeneration(config))
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(1).integers(0, 90, (2, 30))
    with torch.no_grad():
        wanted = model(torch.from_numpy(tokens)).logits
    assert_same_logits(wanted, tmp_path, tokens)
    tensors = load_file(tmp_path / "model.safetensors")
    assert any("vision_tower" in name for name in tensors)
    older = any(name.startswith("language_model.model.") for name in tensors)
    names = [("language_model.model.", "model.language_model."), ("vision_tower.", "model.vision_tower.")]
    names.append(("multi_modal_projector.", "model.multi_modal_projector."))

    def other(name: str) -> str:
        for one, two in names if older else [pair[::-1] for pair in names]:
            if name.startswith(one):
                return two + name.removeprefix(one)
        raise AssertionError(name)

    save_file({other(name): value for name, value in tensors.items()}, tmp_path / "model.safetensors")
    assert_same_logits(wanted, tmp_path, tokens)


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
