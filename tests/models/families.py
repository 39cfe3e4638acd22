"""Fields of `ModelConfig` of families that are not Llama's, for `testing.tiny_transformer`."""

from typing import Any

from eagle_jax.models.config import Experts, RopeScaling

WINDOW = 5
"""Far smaller than the texts of the tests."""

FAMILIES: dict[str, dict[str, Any]] = {
    "gemma3": {
        "qk_norm": True,
        "windows": (WINDOW, None, WINDOW),
        "rope_theta": 1e5,
        "rope_scaling": RopeScaling(kind="linear", factor=8.0),
        "local_rope_theta": 1e4,
        "query_pre_attn_scalar": 12.0,
        "embed_scale": 32**0.5,
        "zero_centered_norms": True,
        "sandwich_norms": True,
        "activation": "gelu_pytorch_tanh",
        "tie_embeddings": True,
    },
    "qwen3_moe": {
        "qk_norm": True,
        "experts": Experts(count=8, per_token=3, width=24, renormalize=True, dense_layers=(1,)),
    },
}
