"""Writing draft heads: read back they say the same, and nothing is written that could not be."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from eagle_jax.checkpoint.head_config import flat_engine
from eagle_jax.checkpoint.head_formats import ENGINES, Engine
from eagle_jax.checkpoint.heads import load_head, save_head
from eagle_jax.models.config import ModelConfig, RopeScaling
from eagle_jax.models.draft_head import NORMS
from eagle_jax.testing import tiny_transformer
from tests.checkpoint.heads import CONFIG, DRAFT_VOCAB, assert_tree_equal, logits, random_head, saved

OTHER_TAPS = tiny_transformer(num_layers=7, tap_layers=(1, 4, 5))[0]

ROUND_TRIPS: dict[str, tuple[str, Engine, ModelConfig, dict[str, Any]]] = {
    "eagle3": ("eagle3", "sglang", CONFIG, {}),
    "eagle3-1": ("eagle3", "vllm", CONFIG, {"fc_norm": True, "norm_output": True}),
    "norms of speculators": ("eagle3", "vllm", CONFIG, {"norm_before_residual": True, "norm_before_fc": True}),
    "other width": ("eagle3", "sglang", CONFIG, {"width": 16}),
    "other taps": ("eagle3", "vllm", OTHER_TAPS, {}),
    "more taps": ("eagle3", "vllm", tiny_transformer(num_layers=7, tap_layers=(1, 3, 4, 5))[0], {"fc_norm": True}),
    "one tap": ("eagle3", "vllm", CONFIG, {"parts": (1,), "fc_norm": True}),
    "last hidden state": ("eagle3", "sglang", CONFIG, {"parts": (3,)}),
    "all of it": ("eagle3", "sglang", OTHER_TAPS, {"parts": (3, 2, 1, 0)}),
    "biases": ("eagle3", "sglang", tiny_transformer(qkv_bias=True, output_bias=True, mlp_bias=True)[0], {}),
    "fc bias of eagle3": ("eagle3", "sglang", CONFIG, {"fc_bias": True}),
    "eagle with bias": ("eagle", "sglang", CONFIG, {"fc_bias": True}),
    "eagle without bias": ("eagle", "vllm", CONFIG, {"fc_bias": False}),
    "llama3": (
        "eagle3",
        "sglang",
        tiny_transformer(
            rope_theta=5e5, rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_max_positions=64)
        )[0],
        {},
    ),
    "linear": ("eagle3", "sglang", tiny_transformer(rope_scaling=RopeScaling(kind="linear", factor=2.0))[0], {}),
    "yarn": (
        "eagle",
        "sglang",
        tiny_transformer(
            rope_scaling=RopeScaling(kind="yarn", factor=4.0, original_max_positions=128, mscale=0.7, truncate=False),
            bos_id=1,
            eos_ids=(2, 5),
        )[0],
        {"fc_bias": True},
    ),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_export_and_reload(case: str, tmp_path: Path) -> None:
    kind, engine, target, flags = ROUND_TRIPS[case]
    config, params = random_head(kind, target, **flags)
    save_head(tmp_path / "head", config, params, target, dtype="float32", engine=engine)
    assert {path.name for path in (tmp_path / "head").iterdir()} == {"config.json", "model.safetensors"}
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "head").iterdir()} == {"0o644"}
    again, reloaded = load_head(tmp_path / "head", target)
    assert again == config
    assert_tree_equal(reloaded, params)
    np.testing.assert_array_equal(logits(again, reloaded), logits(config, params))


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_half_precision_rounds_the_weights_and_nothing_else(kind: str, tmp_path: Path) -> None:
    config, params = random_head(kind, CONFIG, fc_bias=kind == "eagle")
    save_head(tmp_path / "head", config, params, CONFIG)
    assert {value.dtype.name for value in load_file(tmp_path / "head/model.safetensors").values()} <= {
        *("bfloat16", "int64", "bool")
    }
    again, reloaded = load_head(tmp_path / "head", CONFIG)
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32) if leaf.dtype == jnp.float32 else leaf, params
    )
    np.testing.assert_array_equal(logits(again, reloaded), logits(config, rounded))
    assert not (logits(config, rounded) == logits(config, params)).all()


def test_engines_disagree_about_the_bias_of_fc(tmp_path: Path) -> None:
    config, params = random_head("eagle", CONFIG, fc_bias=False)
    save_head(tmp_path / "head", config, params, CONFIG, dtype="float32", engine="sglang")
    again, reloaded = load_head(tmp_path / "head", CONFIG)
    assert again.fc_bias
    assert not reloaded.weights["fc"]["bias"].any()
    np.testing.assert_array_equal(logits(again, reloaded), logits(config, params))
    save_head(tmp_path / "other", again, reloaded, CONFIG, dtype="float32", engine="vllm")
    assert_tree_equal(load_head(tmp_path / "other", CONFIG)[1], params)
    with pytest.raises(ValueError, match="vLLM knows no bias of fc, this head has one of up to "):
        save_head(tmp_path / "third", *random_head("eagle", CONFIG, fc_bias=True), CONFIG, engine="vllm")


def test_written_config(tmp_path: Path) -> None:
    mapping = json.loads((saved(tmp_path) / "config.json").read_text())
    assert mapping["architectures"] == ["LlamaForCausalLMEagle3"]
    assert (mapping["num_hidden_layers"], mapping["tie_word_embeddings"]) == (1, False)
    assert (mapping["vocab_size"], mapping["draft_vocab_size"]) == (64, DRAFT_VOCAB)
    assert mapping["max_position_embeddings"] == CONFIG.max_positions
    assert mapping["rope_parameters"] == {"rope_type": "default", "rope_theta": mapping["rope_theta"]}
    assert not {key for key in mapping if "layer_ids" in key or key in ("eagle_config", "target_hidden_size")}
    config, params = random_head("eagle3", OTHER_TAPS)
    save_head(tmp_path / "taps", config, params, OTHER_TAPS)
    mapping = json.loads((tmp_path / "taps/config.json").read_text())
    assert mapping["eagle_aux_hidden_state_layer_ids"] == [1, 4, 5]
    assert mapping["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 3, 4]


def test_written_mapping(tmp_path: Path) -> None:
    """Offsets in the order of the ids, whatever order the head had them in."""
    config, params = random_head("eagle3", CONFIG)
    order = jnp.asarray(np.random.default_rng(1).permutation(DRAFT_VOCAB))
    shuffled = params.replace(lm_head=params.lm_head[order], target_ids=params.target_ids[order])
    save_head(tmp_path / "head", config, shuffled, CONFIG, dtype="float32")
    tensors = load_file(tmp_path / "head/model.safetensors")
    np.testing.assert_array_equal(np.arange(DRAFT_VOCAB) + tensors["d2t"], params.target_ids)
    np.testing.assert_array_equal(np.flatnonzero(tensors["t2d"]), params.target_ids)
    assert (tensors["d2t"].dtype, tensors["t2d"].dtype) == (np.int64, np.bool_)
    assert_tree_equal(load_head(tmp_path / "head", CONFIG)[1], params)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="is there already and not empty; nothing is overwritten"):
        saved(tmp_path, "eagle")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is there already"):
        save_head(tmp_path / "file", *random_head("eagle3", CONFIG), CONFIG)
    (tmp_path / "empty").mkdir()
    save_head(tmp_path / "empty", *random_head("eagle3", CONFIG), CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "head"]


UNWRITABLE: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "no LM head": ("eagle3", {}, {"lm_head": None}, {}, "has no LM head to store"),
    "LM head of eagle": ("eagle", {}, {"lm_head": jnp.ones((4, 32))}, {}, "are stored without an LM head"),
    "no embedding": ("eagle3", {"width": 16}, {"embedding": None}, {}, "needs an embedding of its own"),
    "an embedding": ("eagle3", {}, {"embedding": jnp.ones((64, 32))}, {}, "needs no embedding of its own"),
    "infinite": ("eagle3", {}, {"lm_head": jnp.full((24, 32), jnp.inf)}, {}, "lm_head.weight holds 768 values"),
    "too large": ("eagle3", {}, {"lm_head": jnp.full((24, 32), 7e4)}, {"dtype": "float16"}, "too large for float16"),
    "type": ("eagle3", {}, {}, {"dtype": "int8"}, "dtype 'int8' is not one of"),
    "ranking": ("eagle3", {}, {}, {"token_ranks": [1]}, "a ranking of tokens belongs to a frozen LM head"),
    "no ranking": (
        "eagle3",
        {},
        {},
        {"frozen_lm_head": True},
        "a draft vocabulary of 24 tokens is stored as a ranking",
    ),
    "other ranking": (
        *("eagle3", {}, {}, {"frozen_lm_head": True, "token_ranks": list(range(64))}),
        "the first 24 of the one given are others",
    ),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_cannot_be_written(case: str, tmp_path: Path) -> None:
    kind, flags, changes, options, message = UNWRITABLE[case]
    config, params = random_head(kind, CONFIG, **flags)
    with pytest.raises(ValueError, match=message):
        save_head(tmp_path / "head", config, params.replace(**changes), CONFIG, **options)
    assert list(tmp_path.iterdir()) == []


PARTS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[Engine, ...]]] = {
    "query/key norms": ({"qk_norm": True}, {}, ("sglang", "vllm")),
    "biases on q, k and v but not on o": ({"qkv_bias": True}, {}, ("sglang", "vllm", "speculators")),
    "norm_before_residual": ({}, {"norm_before_residual": True}, ("sglang",)),
    "norm_before_fc": ({}, {"norm_before_fc": True}, ("sglang",)),
}
"""What a head may have: of its target, flags of its own, and the engines without it."""


@pytest.mark.parametrize("part", PARTS)
def test_parts_that_engines_do_not_have(part: str, tmp_path: Path) -> None:
    shape, flags, engines = PARTS[part]
    target = tiny_transformer(num_layers=7, **shape)[0]
    config, params = random_head("eagle3", target, **flags)
    for engine in engines:
        message = f"a head with {part} cannot be written: the heads of {ENGINES[engine]} have none"
        with pytest.raises(ValueError, match=re.escape(message)):
            save_head(tmp_path / "head", config, params, target, engine=engine, verifier="owner/model")
    if len(engines) == len(ENGINES):
        with pytest.raises(ValueError, match=f"a head with {part} has no flat format"):
            flat_engine(config)
    elif engines == ("sglang",):
        assert flat_engine(config) == "vllm"
    assert list(tmp_path.iterdir()) == []


def test_norms_that_a_kind_does_not_have() -> None:
    for norm in NORMS:
        with pytest.raises(ValueError, match=f"{norm} is set, but EAGLE-1 heads have no such norm"):
            random_head("eagle", CONFIG, **{norm: True})
