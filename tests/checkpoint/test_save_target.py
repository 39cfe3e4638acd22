"""A written model reads back as the same model, and a mixture that no config can say is refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from eagle_jax import chat
from eagle_jax.checkpoint.pick_layers import pick_layers
from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.checkpoint.save_target import config_to_hf, save_target
from eagle_jax.models.config import ModelConfig, RopeScaling
from eagle_jax.models.transformer import init_params
from eagle_jax.testing import tiny_transformer
from tests.models.families import FAMILIES

SHAPES = {
    "llama": {"tie_embeddings": True, "bos_id": 1, "eos_ids": (2, 3)},
    "biased llama": {"qkv_bias": True, "output_bias": True, "mlp_bias": True},
    "qwen2": {"qkv_bias": True, "windows": (None, 8, 8)},
    "qwen3": {"qk_norm": True, "rope_scaling": RopeScaling(kind="linear", factor=2.0)},
    "mistral": {"windows": (8, 8, 8), "eos_ids": (2,)},
    "gemma3": {**FAMILIES["gemma3"], "bos_id": 2, "eos_ids": (1, 6)},
    "qwen3_moe": FAMILIES["qwen3_moe"],
}


def tokenizer() -> chat.Tokenizer:
    """Sixty words, fewer than there are rows: Qwen2's tokenizer adds tokens of its own."""
    backend = Backend(WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    backend.pre_tokenizer = Whitespace()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return chat.tokenizer_from_backend(
        backend, stop_ids=(2, 5), chat_template=template, bos_id=1, eos_id=2, origin="test"
    )


@pytest.mark.parametrize("name", list(SHAPES))
def test_a_written_model_reads_back(name: str, tmp_path: Path) -> None:
    """Config, weights, tokenizer and stop ids."""
    config, _, params = tiny_transformer(**SHAPES[name])
    save_target(tmp_path / "model", config, params, tokenizer(), dtype="float32")
    found = load_target(str(tmp_path / "model"))
    assert found.config == config
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)
    if name != "qwen2":  # transformers reads such a tokenizer as Qwen's byte-level BPE, whatever the file says
        assert found.tokenizer.encode("w7 w9") == [7, 9]
    assert found.tokenizer.has_chat_template
    assert set(found.stop_ids) == {2, 5, *config.eos_ids}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A directory with something in it stays as it is."""
    config, _, params = tiny_transformer()
    (tmp_path / "mine").write_text("1")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        save_target(tmp_path, config, params, tokenizer())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_mixture_is_refused() -> None:
    """Query/key norms and biases are of two families."""
    config, _, _ = tiny_transformer()
    mixed = ModelConfig(**{**vars(config), "qk_norm": True, "mlp_bias": True})
    with pytest.raises(ValueError, match=r"no config\.json of type qwen3"):
        config_to_hf(mixed, "float32")
    mixed = ModelConfig(**{**vars(config), "sandwich_norms": True})
    with pytest.raises(ValueError, match=r"no config\.json of type gemma3_text"):
        config_to_hf(mixed, "float32")


def test_layers_are_picked_in_order() -> None:
    """The kept ones are renumbered, and their windows and MLPs go with them."""
    config, _, params = tiny_transformer(windows=(None, 8, 4))
    found, kept = pick_layers(config, params, (0, -1))
    assert (found.num_layers, found.windows) == (2, (None, 4))
    assert kept["layers_1"] is params["layers_2"]
    assert kept["embed_tokens"] is params["embed_tokens"]
    assert "layers_2" not in kept
    assert bool(jnp.array_equal(kept["norm"]["weight"], params["norm"]["weight"]))
    config, _, params = tiny_transformer(**FAMILIES["qwen3_moe"])
    found, kept = pick_layers(config, params, (1, 2))
    assert [found.is_sparse(layer) for layer in (0, 1)] == [False, True]
    assert jax.eval_shape(lambda: kept) == jax.eval_shape(lambda: nn.unbox(init_params(found, jax.random.key(0))))
    for wrong in ((), (1, 0), (0, 3), (-4,), (2, -1)):
        with pytest.raises(ValueError, match="layers must be ascending and among the model's 3"):
            pick_layers(config, params, wrong)
