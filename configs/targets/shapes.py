"""Shapes of published targets and of their draft heads, to compile programs without weights.

Sizes are those of each model's public `config.json`; `parameters` is the number of its published weights, against which
the tests check the row. Chat and instruct variants have the shape of their base; the rows of Qwen2.5 are those of the
Instruct models, since some of the bases have more positions. Of Gemma 3 from 4B on it is the language model alone.
"""

import dataclasses
from typing import Any, NamedTuple

from eagle_jax.models.config import Experts, ModelConfig, RopeScaling
from eagle_jax.models.draft_head import HeadConfig, head_kind

DRAFT_VOCAB = 32000
"""Rows of a published EAGLE-3 head's own LM head."""


class Published(NamedTuple):
    """One model."""

    config: ModelConfig
    parameters: int


def _row(width: int, mlp_width: int, layers: int, heads: int, kv_heads: int, parameters: int, **more: Any) -> Published:
    sizes = {"num_layers": layers, "num_heads": heads, "num_kv_heads": kv_heads, "head_dim": width // heads}
    return Published(ModelConfig(width=width, mlp_width=mlp_width, **{**sizes, **more}), parameters)


_LLAMA2 = {"vocab_size": 32000, "max_positions": 4096, "norm_eps": 1e-5, "rope_theta": 10000.0}
_VICUNA = {"vocab_size": 32000, "max_positions": 2048, "norm_eps": 1e-6, "rope_theta": 10000.0}
_LLAMA3 = {"vocab_size": 128256, "max_positions": 8192, "norm_eps": 1e-5, "rope_theta": 500000.0}
_SCALING = RopeScaling(
    kind="llama3", factor=8.0, original_max_positions=8192, low_freq_factor=1.0, high_freq_factor=4.0
)
_LLAMA31 = {**_LLAMA3, "max_positions": 131072, "rope_scaling": _SCALING}
_QWEN2 = {"vocab_size": 152064, "max_positions": 32768, "norm_eps": 1e-6, "rope_theta": 1e6, "qkv_bias": True}
_QWEN2_SMALL = {**_QWEN2, "vocab_size": 151936, "tie_embeddings": True}
_QWEN3 = {"vocab_size": 151936, "max_positions": 40960, "norm_eps": 1e-6, "rope_theta": 1e6, "qk_norm": True}
_QWEN3 |= {"head_dim": 128}


def _experts(count: int, per_token: int, width: int) -> dict[str, Any]:
    return {"experts": Experts(count=count, per_token=per_token, width=width, renormalize=True)}


def _gemma3(
    width: int, mlp_width: int, layers: int, heads: int, kv_heads: int, parameters: int, **more: Any
) -> Published:
    """A language model of Gemma 3: a layer without a window after every five with one."""
    window = more.pop("window", 1024)
    fields: dict[str, Any] = {"vocab_size": 262208, "max_positions": 131072, "norm_eps": 1e-6, "head_dim": 256}
    fields |= {"rope_theta": 1e6, "local_rope_theta": 1e4, "query_pre_attn_scalar": 256.0, "embed_scale": width**0.5}
    fields |= {"rope_scaling": RopeScaling(kind="linear", factor=8.0), "activation": "gelu_pytorch_tanh"}
    fields |= {"windows": tuple(window if (layer + 1) % 6 else None for layer in range(layers))}
    fields |= {"qk_norm": True, "zero_centered_norms": True, "sandwich_norms": True, "tie_embeddings": True}
    return _row(width, mlp_width, layers, heads, kv_heads, parameters, **(fields | more))


_SMOLLM2 = {"vocab_size": 49152, "max_positions": 8192, "norm_eps": 1e-5, "rope_theta": 1e5, "tie_embeddings": True}
_GEMMA3_1B = {"vocab_size": 262144, "max_positions": 32768, "rope_scaling": RopeScaling(), "window": 512}
_GEMMA3_27B = {"head_dim": 128, "query_pre_attn_scalar": 168.0}

TARGETS: dict[str, Published] = {
    #                    width    mlp  L   H   K      parameters
    "smollm2-135m": _row(576, 1536, 30, 9, 3, 134_515_008, **_SMOLLM2),
    "llama2-7b": _row(4096, 11008, 32, 32, 32, 6_738_415_616, **_LLAMA2),
    "llama2-13b": _row(5120, 13824, 40, 40, 40, 13_015_864_320, **_LLAMA2),
    "llama2-70b": _row(8192, 28672, 80, 64, 8, 68_976_648_192, **_LLAMA2),
    "vicuna-7b": _row(4096, 11008, 32, 32, 32, 6_738_415_616, **_VICUNA),
    "vicuna-13b": _row(5120, 13824, 40, 40, 40, 13_015_864_320, **_VICUNA),
    "vicuna-33b": _row(6656, 17920, 60, 52, 52, 32_528_943_616, **_VICUNA),
    "llama3-8b": _row(4096, 14336, 32, 32, 8, 8_030_261_248, **_LLAMA3),
    "llama3-70b": _row(8192, 28672, 80, 64, 8, 70_553_706_496, **_LLAMA3),
    "llama3.1-8b": _row(4096, 14336, 32, 32, 8, 8_030_261_248, **_LLAMA31),
    "llama3.1-70b": _row(8192, 28672, 80, 64, 8, 70_553_706_496, **_LLAMA31),
    "qwen2.5-0.5b": _row(896, 4864, 24, 14, 2, 494_032_768, **_QWEN2_SMALL),
    "qwen2.5-1.5b": _row(1536, 8960, 28, 12, 2, 1_543_714_304, **_QWEN2_SMALL),
    "qwen2.5-3b": _row(2048, 11008, 36, 16, 2, 3_085_938_688, **_QWEN2_SMALL),
    "qwen2.5-7b": _row(3584, 18944, 28, 28, 4, 7_615_616_512, **_QWEN2),
    "qwen2.5-14b": _row(5120, 13824, 48, 40, 8, 14_770_033_664, **_QWEN2),
    "qwen2.5-32b": _row(5120, 27648, 64, 40, 8, 32_763_876_352, **_QWEN2),
    "qwen2.5-72b": _row(8192, 29568, 80, 64, 8, 72_706_203_648, **_QWEN2),
    "qwen3-0.6b": _row(1024, 3072, 28, 16, 8, 596_049_920, **_QWEN3, tie_embeddings=True),
    "qwen3-1.7b": _row(2048, 6144, 28, 16, 8, 1_720_574_976, **_QWEN3, tie_embeddings=True),
    "qwen3-4b": _row(2560, 9728, 36, 32, 8, 4_022_468_096, **_QWEN3, tie_embeddings=True),
    "qwen3-8b": _row(4096, 12288, 36, 32, 8, 8_190_735_360, **_QWEN3),
    "qwen3-14b": _row(5120, 17408, 40, 40, 8, 14_768_307_200, **_QWEN3),
    "qwen3-32b": _row(5120, 25600, 64, 64, 8, 32_762_123_264, **_QWEN3),
    "qwen3-30b-a3b": _row(2048, 6144, 48, 32, 4, 30_532_122_624, **_QWEN3, **_experts(128, 8, 768)),
    "qwen3-235b-a22b": _row(4096, 12288, 94, 64, 4, 235_093_634_560, **_QWEN3, **_experts(128, 8, 1536)),
    "gemma3-1b": _gemma3(1152, 6912, 26, 4, 1, 999_885_952, **_GEMMA3_1B),
    "gemma3-4b": _gemma3(2560, 10240, 34, 8, 4, 3_880_263_168),
    "gemma3-12b": _gemma3(3840, 15360, 48, 16, 8, 11_766_034_176),
    "gemma3-27b": _gemma3(5376, 21504, 62, 32, 16, 27_009_346_304, **_GEMMA3_27B),
}


def get_target(name: str) -> ModelConfig:
    """The shape of a target.

    Raises:
      ValueError: no such row.
    """
    if name not in TARGETS:
        raise ValueError(f"target config {name!r} is not one of {', '.join(TARGETS)}")
    return TARGETS[name].config


def head_of(kind: str, target: ModelConfig) -> HeadConfig:
    """The head that the EAGLE repository and SpecForge train for a target: one Llama layer in the target's sizes.

    A one-pass head has the sizes of those that are trained here. Published ones have five layers and edges of rank 256
    (DSpark).

    The layer is Llama's whatever the target's are, and its head size is width over heads, also where the target's is
    another (80 instead of 128 for Qwen3-32B).

    Raises:
      ValueError: no such kind.
    """
    layer = dataclasses.replace(target.llama_layer(), head_dim=target.width // target.num_heads)
    what = head_kind(kind)
    return HeadConfig(
        kind=kind,
        layer=layer,
        feature_width=what.feature_width(target.width, len(target.taps)),
        **what.sizes,
    )
