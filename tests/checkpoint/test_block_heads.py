"""Files of one-pass heads: written and read back, published configs of DFlash and DSpark, and what is refused by name.

Published configs are made tiny: sizes are divided until a test can hold them, and what no loader reads is left out.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.checkpoint.head_config import flat_engine
from eagle_jax.checkpoint.heads import load_head, save_head
from eagle_jax.checkpoint.validate_head import validate
from eagle_jax.models.block_head import make_block_head
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadConfig, HeadParams
from eagle_jax.models.taps import layers_of
from eagle_jax.testing import tiny_transformer
from tests.checkpoint.heads import CONFIG, TARGET, assert_tree_equal, edit_config, edit_tensors, random_block_head
from tests.checkpoint.heads import rename as renamed

ROUND_TRIPS: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "two layers": (CONFIG, {}),
    "three layers, norms": (CONFIG, {"num_layers": 3, "fc_norm": True}),
    "no edges": (CONFIG, {"edge_rank": 0}),
    "context joined": (CONFIG, {"joins_context": True}),
    "own taps": (CONFIG, {"parts": (2, 0)}),
    "taps of the target": (tiny_transformer(num_layers=7, tap_layers=(1, 4, 5))[0], {}),
    "DSpark": (CONFIG, {"bidirectional": True, "mask_token": 5, "qk_norm": True}),
    "DFlash": (CONFIG, {"bidirectional": True, "shifted": False, "mask_token": 0, "edge_rank": 0}),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_write_and_read(case: str, tmp_path: Path) -> None:
    target, flags = ROUND_TRIPS[case]
    config, params = random_block_head(target, **flags)
    assert flat_engine(config) is None
    save_head(tmp_path / "head", config, params, target, dtype="float32", engine=None)
    again, reloaded = load_head(tmp_path / "head", target)
    assert again == config
    assert_tree_equal(reloaded, params)
    make_block_head(again, TARGET).check(reloaded)
    wanted = ["model_type is 'qwen3': the heads of both engines are llama"] if config.layer.qk_norm else []
    assert validate(tmp_path / "head", target=target) == wanted


def test_a_window_and_a_frozen_lm_head(tmp_path: Path) -> None:
    config, params = random_block_head(CONFIG)
    config = dataclasses.replace(config, layer=dataclasses.replace(config.layer, windows=(16,)))
    ranks = np.random.default_rng(0).permutation(CONFIG.vocab_size).astype(np.int32)
    params = params.replace(lm_head=None, target_ids=jnp.sort(jnp.asarray(ranks[:20])))
    save_head(
        tmp_path / "head",
        config,
        params,
        CONFIG,
        dtype="float32",
        engine=None,
        frozen_lm_head=True,
        token_ranks=ranks,
    )
    again, reloaded = load_head(tmp_path / "head", CONFIG)
    assert again == config
    assert_tree_equal(reloaded, params.replace(target_ids=None))


def test_no_engine_has_such_heads(tmp_path: Path) -> None:
    config, params = random_block_head(CONFIG)
    for engine, name in (("sglang", "SGLang"), ("vllm", "vLLM"), ("speculators", "speculators")):
        with pytest.raises(ValueError, match=f"{name} has no one-pass heads"):
            save_head(tmp_path / "head", config, params, CONFIG, engine=engine, verifier="owner/model")
    save_head(tmp_path / "head", config, params, CONFIG, dtype="float32", engine=None)
    assert validate(tmp_path / "head", engines=["vllm"]) == ["vLLM: has no one-pass heads"]


QWEN3 = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 51,
    "dtype": "bfloat16",
    "eos_token_id": 53,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_types": ["full_attention"] * 5,
    "max_position_embeddings": 40960,
    "max_window_layers": 5,
    "model_type": "qwen3",
    "num_attention_heads": 4,
    "num_hidden_layers": 5,
    "num_key_value_heads": 2,
    "num_target_layers": 7,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 64,
}
DFLASH = {
    **QWEN3,
    "architectures": ["DFlashDraftModel"],
    "auto_map": {"AutoModel": "dflash.DFlashDraftModel"},
    "block_size": 16,
    "dflash_config": {"mask_token_id": 63, "target_layer_ids": [1, 2, 4]},
}
DSPARK = {
    **QWEN3,
    "architectures": ["Qwen3DSparkModel"],
    "block_size": 7,
    "confidence_head_with_markov": True,
    "enable_confidence_head": True,
    "markov_head_type": "vanilla",
    "markov_rank": 3,
    "mask_token_id": 63,
    "num_anchors": 512,
    "target_layer_ids": [1, 2, 4],
}
AS_DFLASH = {"block": 16, "shifted": False, "edge_rank": 0}
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "z-lab/Qwen3-4B-DFlash-b16": (DFLASH, AS_DFLASH),
    "z-lab/Qwen3-8B-DFlash-b16": ({**DFLASH, "dtype": "float32"}, AS_DFLASH),
    "z-lab/LLaMA3.1-8B-Instruct-DFlash-UltraChat": (
        {**DFLASH, "block_size": 10, "rope_theta": 5e5, "rms_norm_eps": 1e-5},
        {**AS_DFLASH, "block": 10},
    ),
    "deepseek-ai/dspark_qwen3_4b_block7": (DSPARK, {"block": 7}),
    "of vLLM's older DSpark": (
        {
            **QWEN3,
            "architectures": ["DSparkDraftModel"],
            "block_size": 7,
            "dflash_config": {
                **{name: DSPARK[name] for name in ("markov_rank", "markov_head_type", "enable_confidence_head")},
                **{"projector_type": "dspark", "mask_token_id": 63, "target_layer_ids": [1, 2, 4]},
            },
        },
        {"block": 7},
    ),
    "JetSpec": ({**DFLASH, "is_causal": True}, {**AS_DFLASH, "bidirectional": False}),
}
"""A config, and what its head is in our words."""


def published(
    folder: Path, mapping: dict[str, Any], flags: dict[str, Any]
) -> tuple[ModelConfig, HeadConfig, HeadParams]:
    """Files with the keys and tensors of a published head; the target's shape, and the head that is in them."""
    shape = {"norm_eps": mapping["rms_norm_eps"], "rope_theta": float(mapping["rope_theta"]), "max_positions": 40960}
    target = tiny_transformer(num_layers=7, tap_layers=(2, 3, 5), bos_id=51, eos_ids=(53,), **shape)[0]
    flags = {"num_layers": 5, "qk_norm": True, "bidirectional": True, "mask_token": 63, **flags}
    config, params = random_block_head(target, **flags)
    params = params.replace(lm_head=None, target_ids=None)
    save_head(folder, config, params, target, dtype="float32", engine=None, frozen_lm_head=True)
    (folder / "config.json").write_text(json.dumps(mapping))
    if config.edge_rank:
        extra = {"confidence_head.proj.weight": np.ones((1, 35), "f"), "confidence_head.proj.bias": np.ones(1, "f")}
        edit_tensors(folder, lambda tensors: tensors.update(extra))
    return target, config, params


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_head(name: str, tmp_path: Path) -> None:
    target, wanted, params = published(tmp_path / "head", *PUBLISHED[name])
    config, loaded = load_head(tmp_path / "head", target)
    assert config == wanted
    assert_tree_equal(loaded, params)
    assert layers_of(config, target) == (2, 3, 5)


def with_keys(**changed: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, **changed)


def without(*dropped: str) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, *dropped)


def with_tensor(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({name: np.ones(shape, "f")}))


REFUSED: dict[str, tuple[dict[str, Any], Callable[[Path], None], str]] = {
    "DFlash 2": (DFLASH, with_keys(architectures=["DFlash2DraftModel"]), "DFlash 2 (convolutions, a selector) is not"),
    "its tensors": (
        DFLASH,
        with_tensor("layers.0.attn_conv.weight", 3),
        "tensor layers.0.attn_conv.weight (3,) has no",
    ),
    "gated edges": (DSPARK, with_keys(markov_head_type="gated"), "markov_head_type is 'gated': only 'vanilla'"),
    "rank": (DSPARK, with_keys(markov_rank=4), "markov_rank is 4, markov_head.markov_w1.weight has rank 3"),
    "edges without a key": (
        DSPARK,
        without("markov_rank"),
        "markov_rank is 0, markov_head.markov_w1.weight has rank 3",
    ),
    "no taps": (DSPARK, without("target_layer_ids"), "config.json has no target_layer_ids"),
    "no size": (DSPARK, without("block_size"), "config.json has no block_size"),
    "which slots": (DSPARK, with_keys(architectures=["DraftModel"]), "config.json has no sample_from_anchor"),
    "mask": (DSPARK, without("mask_token_id"), "mask_token_id is None, and the file holds no tensor mask.weight"),
    "two masks": (DSPARK, with_tensor("mask.weight", 32), "mask_token_id is 63, and the file holds a tensor mask"),
    "mask beyond the vocabulary": (DSPARK, with_keys(mask_token_id=64), "mask_token_id is 64, vocab_size 64"),
    "scale": (DSPARK, with_keys(input_embedding_scale=2.0), "input_embedding_scale is 2.0"),
    "mixed windows": (
        DFLASH,
        with_keys(layer_types=["sliding_attention"] * 4 + ["full_attention"], sliding_window=2048),
        "with sliding_window 2048 is not supported",
    ),
    "windows nowhere": (
        DFLASH,
        lambda folder: edit_config(folder, "layer_types", use_sliding_window=True, sliding_window=4096),
        "use_sliding_window is true, and layer_types [] does not say for which of 5",
    ),
    "last layer": (DSPARK, with_keys(target_layer_ids=[1, 2, 6]), "the head reads what comes out of layer 6, the last"),
    "layers": (DSPARK, with_keys(target_layer_ids=[1, 2, 3]), "the head reads the inputs of layers [2, 3, 4]"),
    "number of taps": (
        DSPARK,
        with_keys(target_layer_ids=[1, 2]),
        "fc.weight reads 3 tapped layers, config.json gives 2",
    ),
    "type of a key": (DSPARK, with_keys(is_causal=1), "is_causal is 1, expected true or false"),
    "type of a number": (DSPARK, with_keys(block_size="7"), "block_size is '7', expected a number from 0 on"),
    "nested": (DSPARK, with_keys(dflash_config=[7]), "dflash_config is [7], expected an object"),
    "another kind": (DSPARK, with_keys(architectures=["LlamaForCausalLMEagle3"]), "those of an one_pass head"),
    "Gemma": (DSPARK, with_keys(model_type="gemma4"), "model_type 'gemma4' is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str, tmp_path: Path) -> None:
    mapping, change, message = REFUSED[case]
    flags = AS_DFLASH if mapping is DFLASH else {"block": 7}
    target, _, _ = published(tmp_path / "head", mapping, flags)
    change(tmp_path / "head")
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        load_head(tmp_path / "head", target)
    assert "\n" not in str(refusal.value)


def test_more_layers_of_an_eagle_head_are_still_refused(tmp_path: Path) -> None:
    """The tensors of several layers belong to a one-pass head alone."""
    config, params = random_block_head(CONFIG)
    save_head(tmp_path / "head", config, params, CONFIG, dtype="float32", engine=None)
    edit_tensors(tmp_path / "head", renamed(lambda name: name.replace("hidden_norm", "layers.0.hidden_norm")))
    edit_config(tmp_path / "head", architectures=["LlamaForCausalLMEagle3"])
    with pytest.raises(ValueError, match="the file holds 2 layers; heads of 1 are computed"):
        load_head(tmp_path / "head", CONFIG)
