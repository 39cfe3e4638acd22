"""Reading `config.json`: every supported spelling, and a refusal for everything else."""

import dataclasses
from typing import Any

import pytest

from configs.targets.shapes import get_target
from eagle_jax.checkpoint.hf_config import config_from_hf, rope_from_hf
from eagle_jax.models.config import ModelConfig, RopeScaling
from tests.checkpoint.files import CONFIG


def read(model_type: str = "llama", **changes: Any) -> ModelConfig:
    mapping = {**CONFIG, "model_type": model_type, **changes}
    return config_from_hf({key: value for key, value in mapping.items() if value != "absent"})


def test_plain_llama() -> None:
    assert read() == ModelConfig(
        vocab_size=64,
        width=32,
        mlp_width=64,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        max_positions=512,
        norm_eps=1e-5,
        rope_theta=1e4,
        bos_id=1,
        eos_ids=(2,),
    )


@pytest.mark.parametrize(("value", "wanted"), [(7, (7,)), ([7, 9], (7, 9)), (None, ()), ("absent", ())])
def test_eos_ids(value: Any, wanted: tuple[int, ...]) -> None:
    assert read(eos_token_id=value).eos_ids == wanted


@pytest.mark.parametrize(
    ("model_type", "value", "wanted"),
    [("llama", "absent", 8), ("llama", None, 8), ("mistral", None, 8), ("llama", 16, 16), ("qwen3", "absent", 128)],
)
def test_head_dim(model_type: str, value: Any, wanted: int) -> None:
    assert read(model_type, head_dim=value, sliding_window=None).head_dim == wanted


@pytest.mark.parametrize("value", ["absent", None])
def test_llama_without_grouped_queries(value: Any) -> None:
    assert read(num_key_value_heads=value).num_kv_heads == 4


def test_biases_and_norms() -> None:
    def flags(config: ModelConfig) -> tuple[bool, bool, bool, bool]:
        return config.qkv_bias, config.output_bias, config.mlp_bias, config.qk_norm

    assert flags(read()) == (False, False, False, False)
    assert flags(read(attention_bias=True, mlp_bias=True)) == (True, True, True, False)
    assert flags(read("mistral", attention_bias=True)) == (False, False, False, False)
    assert flags(read("qwen2")) == (True, False, False, False)
    assert flags(read("qwen3")) == (False, False, False, True)
    assert flags(read("qwen3", attention_bias=True)) == (True, True, False, True)


QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    ("model_type", "changes", "wanted"),
    [
        ("llama", {"sliding_window": 9}, ()),
        ("mistral", {"sliding_window": 9}, (9, 9, 9)),
        ("mistral", {"sliding_window": None}, ()),
        ("mistral", {}, (4096, 4096, 4096)),
        ("qwen2", {"sliding_window": 9}, ()),
        ("qwen2", QWEN_WINDOW, (None, 9, 9)),
        ("qwen2", {**QWEN_WINDOW, "max_window_layers": 3}, ()),
        ("qwen3", {**QWEN_WINDOW, "layer_types": MIXED}, (9, None, 9)),
        ("qwen3", {"layer_types": ["full_attention"] * 3}, ()),
        ("qwen3_moe", QWEN_WINDOW, (9, 9, 9)),
        ("gemma3_text", {"sliding_window": 9}, (9, 9, 9)),
        ("gemma3_text", {"sliding_window": 9, "sliding_window_pattern": 3}, (9, 9, None)),
        ("gemma3_text", {"sliding_window": 9, "layer_types": MIXED}, (9, None, 9)),
        ("gemma3_text", {"layer_types": ["full_attention"] * 3}, ()),
    ],
)
def test_windows(model_type: str, changes: dict[str, Any], wanted: tuple[int | None, ...]) -> None:
    assert read(model_type, **changes).windows == wanted


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "theta", "wanted"),
    [
        ({"rope_theta": "absent"}, 1e4, RopeScaling()),
        ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, RopeScaling()),
        ({"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, RopeScaling()),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 1e4, RopeScaling(kind="linear", factor=2.0)),
        (
            {"rope_scaling": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 32}},
            1e4,
            RopeScaling(kind="llama3", original_max_positions=32, **LLAMA3),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
            1e4,
            RopeScaling(kind="yarn", factor=4.0, original_max_positions=128),
        ),
        # No original length: the model's own; a null factor: the ratio of the two lengths.
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            1e4,
            RopeScaling(kind="yarn", factor=4.0, original_max_positions=512),
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": None, "original_max_position_embeddings": 128}},
            1e4,
            RopeScaling(kind="yarn", factor=4.0, original_max_positions=128),
        ),
        # A length beside the scaling counts before one inside it.
        (
            {
                "original_max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
            },
            1e4,
            RopeScaling(kind="yarn", factor=4.0, original_max_positions=64),
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 2e4,
                    "factor": 2.0,
                    "beta_fast": 16,
                    "beta_slow": 2,
                    "attention_factor": 0.5,
                    "mscale": 1.0,
                    "mscale_all_dim": 0.5,
                    "truncate": False,
                    "finetuned": True,
                }
            },
            2e4,
            RopeScaling(
                kind="yarn",
                factor=2.0,
                original_max_positions=512,
                beta_fast=16.0,
                beta_slow=2.0,
                attention_factor=0.5,
                mscale=1.0,
                mscale_all_dim=0.5,
                truncate=False,
            ),
        ),
    ],
)
def test_rope(changes: dict[str, Any], theta: float, wanted: RopeScaling) -> None:
    config = read(**changes)
    assert (config.rope_theta, config.rope_scaling) == (theta, wanted)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LINEAR = {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"rope_scaling": YARN}, 2048),  # as the cards of Qwen2.5 switch it on
        ({"rope_scaling": YARN, "max_position_embeddings": 640}, 2048),  # Qwen3
        ({"rope_scaling": YARN, "max_position_embeddings": 2048}, 2048),
        ({"rope_parameters": {**YARN, "rope_theta": 1e6}}, 2048),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 2048),
        ({"rope_scaling": {**YARN, "factor": None}, "max_position_embeddings": 1024}, 1024),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": None}, "max_position_embeddings": 2048}, 8192),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 256}, 1024),
        # Llama 3.2: the factor is not the ratio of the lengths.
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 128}}, 512),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 512}}, 4096),
        ({"rope_scaling": LINEAR}, 2048),
        ({"rope_scaling": LINEAR, "max_sequence_length": 1024}, 1024),  # Vicuna-16k
        ({"rope_scaling": {**LINEAR, "original_max_position_embeddings": 128}}, 512),
        ({"max_sequence_length": 1024}, 512),
    ],
)
def test_context(changes: dict[str, Any], wanted: int) -> None:
    assert read(**changes).max_positions == wanted


def test_rope_scaling_beside_rope_parameters() -> None:
    """A card's `rope_scaling` in a file of transformers 5: the base stays the model's own."""
    plain = {"rope_type": "default", "rope_theta": 1e6}
    config = read(rope_theta="absent", rope_scaling=YARN, rope_parameters=plain)
    assert (config.rope_theta, config.rope_scaling.kind) == (1e6, "yarn")
    assert read(rope_scaling={"rope_type": "default"}, rope_parameters={**YARN, "rope_theta": 1e6}) == config
    assert read(rope_scaling=YARN, rope_parameters={**YARN, "rope_theta": 1e6}) == config
    with pytest.raises(ValueError, match=r"rope_scaling says .*'linear'.* rope_parameters says .*'yarn'"):
        read(rope_scaling=LINEAR, rope_parameters=YARN)


@pytest.mark.parametrize(
    "changes",
    [
        {"initializer_range": 1},
        {"use_cache": None},
        {"attention_bias": None, "mlp_bias": None, "tie_word_embeddings": None},
        {"max_position_embeddings": 512.0, "hidden_size": 32.0, "eos_token_id": 2.0},
        {"rms_norm_eps": 1e-5, "rope_theta": 10000, "hidden_act": None},
        {"eos_token_id": [2, -1, None]},
        {"bos_token_id": [1]},
        {"rope_scaling": {}, "rope_parameters": {"rope_type": None, "type": None}},
        {"layer_types": None, "max_window_layers": None, "quantization_config": None, "head_dim": 8.0},
    ],
)
def test_values_of_another_type_that_mean_the_same(changes: dict[str, Any]) -> None:
    assert read(**changes) == read()


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings"])
def test_missing_key(key: str) -> None:
    with pytest.raises(ValueError, match=f"config.json has no {key}"):
        read(**{key: "absent"})


def test_missing_kv_heads_of_qwen() -> None:
    with pytest.raises(ValueError, match=r"config\.json has no num_key_value_heads"):
        read("qwen2", num_key_value_heads="absent")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gemma"},
            "model_type 'gemma' is not supported; llama, mistral, qwen2, qwen3, qwen3_moe, gemma3",
        ),
        ({"model_type": "gemma2"}, r"model_type 'gemma2' is not supported \(soft-capped scores and logits\); llama"),
        ({"model_type": "qwen2_moe"}, r"model_type 'qwen2_moe' is not supported \(shared experts\); llama"),
        ({"model_type": "deepseek_v3"}, r"'deepseek_v3' is not supported \(latent attention and shared experts\)"),
        (
            {"model_type": "gemma3_text", "hidden_activation": "gelu"},
            "hidden_activation 'gelu' is not supported; gelu_py",
        ),
        (
            {"model_type": "gemma3_text", "final_logit_softcapping": 30.0},
            "final_logit_softcapping is 30.0, which is not",
        ),
        (
            {"model_type": "gemma3_text", "use_bidirectional_attention": True},
            "use_bidirectional_attention is True, which",
        ),
        (
            {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default"}},
            "must hold those of full_attention",
        ),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}},
            },
            "RoPE scaling 'linear' of layers with a window is not supported; default is",
        ),
        ({"model_type": "gemma3_text", "sliding_window": None}, "config.json has no sliding_window"),
        ({"model_type": "gemma3"}, "config.json has no text_config"),
        ({"model_type": "qwen3_moe", "num_experts": 4}, "a token goes through 1 to 4 experts, got 8"),
        ({"model_type": "absent"}, "model_type None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; silu is"),
        ({"num_local_experts": 8}, "num_local_experts is 8: experts are supported for qwen3_moe, not for llama"),
        ({"quantization_config": {"quant_method": "awq"}}, "asks for 'awq': quantised Hugging Face"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "'dynamic' is not supported; default, linear, llama3, yarn",
        ),
        ({"rope_scaling": {"rope_type": "longrope"}}, "RoPE scaling 'longrope' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "RoPE scaling 'linear' needs factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "RoPE scaling 'llama3' needs low_freq_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "mscale": 1.0}}, "'linear' has no parameter 'mscale'"),
        ({"layer_types": MIXED}, "contradicts sliding_window None of a llama model"),
        ({"model_type": "qwen3", "layer_types": MIXED}, "contradicts sliding_window None of a qwen3 model"),
        ({"model_type": "qwen3", "layer_types": MIXED[:2]}, "3 times"),
        ({"hidden_size": "32"}, "hidden_size is '32', expected a positive number"),
        ({"hidden_size": True}, "hidden_size is True, expected a positive number"),
        ({"max_position_embeddings": 512.5}, r"max_position_embeddings is 512\.5, expected a positive number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected a positive number"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small', expected a positive number"),
        ({"rope_theta": -1}, "rope_theta is -1, expected a positive number"),
        ({"attention_bias": "no"}, "attention_bias is 'no', expected true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>', expected token ids"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn', expected an object"),
        ({"rope_scaling": {"type": ["yarn"]}}, r"RoPE scaling \['yarn'\] is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": "4"}}, "factor is '4', expected a positive number"),
        ({"quantization_config": "awq"}, "quantization_config is 'awq', expected an object"),
        ({"num_key_value_heads": 3}, "4 query heads, 3 key/value heads and head size 8 do not fit together"),
        ({"head_dim": 7}, "head size 7 do not fit together"),
        ({"model_type": "qwen3", "layer_types": [{}] * 3}, "must name full_attention or sliding"),
        ({"model_type": "mistral", "sliding_window": "4k"}, "sliding_window is '4k', expected a positive number"),
        ({"model_type": "qwen3", "layer_types": ["chunked_attention"] * 3}, "must name full_attention or sliding"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**{"model_type": "llama", **changes})


GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "eos_token_id": [1, 106],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
QWEN3_30B = {
    "attention_bias": False,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


@pytest.mark.parametrize(
    ("mapping", "name", "bos_id", "eos_ids"),
    [
        (GEMMA3_1B, "gemma3-1b", 2, (1, 106)),
        (GEMMA3_4B, "gemma3-4b", 2, (1, 106)),
        (QWEN3_30B, "qwen3-30b-a3b", 151643, (151645,)),
    ],
)
def test_published(mapping: dict[str, Any], name: str, bos_id: int, eos_ids: tuple[int, ...]) -> None:
    """The table of shapes says the same."""
    assert config_from_hf(mapping) == dataclasses.replace(get_target(name), bos_id=bos_id, eos_ids=eos_ids)


def test_layers_without_experts() -> None:
    """Those that are listed, and those that a step leaves out."""

    def dense(**changes: Any) -> tuple[int, ...]:
        experts = read("qwen3_moe", num_hidden_layers=4, **changes).experts
        assert experts is not None
        return experts.dense_layers

    assert dense() == ()
    assert dense(mlp_only_layers=[3]) == (3,)
    assert dense(mlp_only_layers=[3], decoder_sparse_step=2) == (0, 2, 3)
    assert read("qwen3_moe", num_experts=0).experts is None
    assert read("qwen3_moe", num_local_experts=16).experts == read("qwen3_moe", num_experts=16).experts


def test_rope_of_a_config_that_names_no_model() -> None:
    assert rope_from_hf({"rope_theta": 5e5}) == (5e5, RopeScaling())
