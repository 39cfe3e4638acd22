"""Directories of the library speculators: written, read back, validated, and refused by name."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from eagle_jax.checkpoint.heads import load_head, save_head
from eagle_jax.checkpoint.validate_head import validate
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.testing import tiny_transformer
from tests.checkpoint.heads import CONFIG, DRAFT_VOCAB, assert_tree_equal, edit_tensors, logits, random_head, rename
from tests.checkpoint.heads import saved as saved_flat

OTHER_TAPS = tiny_transformer(num_layers=7, tap_layers=(1, 4, 5))[0]
QWEN3 = tiny_transformer(num_layers=7, qk_norm=True)[0]
FLAGS = {"norm_before_residual": True, "norm_before_fc": True, "norm_output": True}
IDS = "eagle_aux_hidden_state_layer_ids"


def saved(folder: Path, target: ModelConfig = CONFIG, *, dtype: str = "float32", **flags: Any) -> tuple[Path, Any, Any]:
    """A directory with a random head, and what was written."""
    config, params = random_head("eagle3", target, **flags)
    write(folder / "head", config, params, target, dtype=dtype)
    return folder / "head", config, params


def write(folder: Path, config: Any, params: HeadParams, target: ModelConfig = CONFIG, **options: Any) -> None:
    save_head(folder, config, params, target, **{"engine": "speculators", "verifier": "owner/model", **options})


ROUND_TRIPS: dict[str, tuple[ModelConfig, dict[str, Any]]] = {
    "plain": (CONFIG, {}),
    "residual": (CONFIG, {"norm_before_residual": True}),
    "the library's default": (CONFIG, FLAGS),
    "3.1": (CONFIG, {"fc_norm": True, "norm_output": True}),
    "Qwen3's layer": (QWEN3, {"norm_before_residual": True}),
    "other width": (CONFIG, {"width": 16}),
    "other taps": (OTHER_TAPS, FLAGS),
    "last hidden state": (CONFIG, {"parts": (2, 3)}),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_written_and_read_back(case: str, tmp_path: Path) -> None:
    target, flags = ROUND_TRIPS[case]
    folder, config, params = saved(tmp_path, target, **flags)
    again, reloaded = load_head(folder, target)
    assert again == config
    assert_tree_equal(reloaded, params)
    np.testing.assert_array_equal(logits(again, reloaded), logits(config, params))


@pytest.mark.parametrize("case", [case for case in ROUND_TRIPS if case != "last hidden state"])
def test_what_is_written_is_what_vllm_serves(case: str, tmp_path: Path) -> None:
    target, flags = ROUND_TRIPS[case]
    folder, _, _ = saved(tmp_path, target, dtype="bfloat16", **flags)
    assert validate(folder, target=target) == validate(folder) == validate(folder, engines=["speculators"]) == []
    assert validate(folder, engines=["sglang", "vllm"]) == [
        "SGLang: does not read this format: config.json has speculators_model_type",
        "vLLM: does not read this format: config.json has speculators_model_type",
    ]


def test_written_config(tmp_path: Path) -> None:
    folder, _, _ = saved(tmp_path, QWEN3, **FLAGS)
    config = json.loads((folder / "config.json").read_text())
    layer = config.pop("transformer_layer_config")
    serving = config.pop("speculators_config")
    assert config == {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.9.0",
        "draft_vocab_size": DRAFT_VOCAB,
        "target_hidden_size": None,
        "norm_before_residual": True,
        "norm_before_fc": True,
        "norm_output": True,
        "fc_norm": False,
        "embed_requires_grad": False,
        IDS: [2, 3, 4],
        "torch_dtype": "float32",
        "tie_word_embeddings": False,
    }
    assert (layer["model_type"], layer["num_hidden_layers"], layer["vocab_size"]) == ("qwen3", 1, 64)
    assert (layer["hidden_size"], layer["head_dim"], layer["rope_theta"]) == (32, 8, 1e4)
    assert not {"draft_vocab_size", "architectures", "bias", "eagle_config", IDS} & set(layer)
    assert (serving["algorithm"], serving["default_proposal_method"]) == ("eagle3", "greedy")
    assert serving["proposal_methods"][0]["speculative_tokens"] == 3
    assert serving["verifier"] == {"name_or_path": "owner/model", "architectures": ["Qwen3ForCausalLM"]}
    names = set(load_file(folder / "model.safetensors"))
    assert {"layers.0.hidden_norm.weight", "layers.0.self_attn.q_norm.weight", "input_norm.weight", "d2t"} <= names
    assert not any(name.startswith("midlayer") for name in names)


def test_an_embedding_of_its_own_is_kept(tmp_path: Path) -> None:
    """Where it was trained; else it is a copy of the target's."""
    config, params = random_head("eagle3", CONFIG)
    params = params.replace(embedding=jnp.asarray(np.random.default_rng(1).normal(size=(64, 32)), jnp.float32))
    write(tmp_path / "head", config, params, dtype="float32")
    assert_tree_equal(load_head(tmp_path / "head", CONFIG)[1], params)
    change_config(tmp_path / "head", lambda mapping: mapping.update(embed_requires_grad=False))
    assert load_head(tmp_path / "head", CONFIG)[1].embedding is None
    change_config(tmp_path / "head", lambda mapping: mapping.update(embed_requires_grad=True))
    edit_tensors(tmp_path / "head", lambda tensors: tensors.pop("embed_tokens.weight"))
    assert "tensor embed_tokens.weight is missing" in validate(tmp_path / "head")
    with pytest.raises(ValueError, match=r"embed_tokens.weight is missing"):
        load_head(tmp_path / "head", CONFIG)


def test_a_window_is_read_from_the_kind_of_the_layer(tmp_path: Path) -> None:
    config, params = random_head("eagle3", CONFIG)
    config = dataclasses.replace(config, layer=dataclasses.replace(config.layer, windows=(5,)))
    write(tmp_path / "head", config, params)
    assert validate(tmp_path / "head") == []
    assert load_head(tmp_path / "head", CONFIG)[0].layer.windows == (5,)
    change_config(tmp_path / "head", layer(layer_types=["full_attention"]))
    assert load_head(tmp_path / "head", CONFIG)[0].layer.windows == ()


UNWRITABLE: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "kind": ("eagle", {"fc_bias": False}, {}, "speculators has no EAGLE-1 heads"),
    "no name": ("eagle3", {}, {"verifier": ""}, "stored with the name of its target (verifier), got none"),
    "frozen": ("eagle3", {}, {"frozen_lm_head": True, "token_ranks": range(64)}, "stored with an LM head, got none"),
    "bias": ("eagle3", {"fc_bias": True}, {}, "speculators knows no bias of fc, this head has one of up to"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_cannot_be_written(case: str, tmp_path: Path) -> None:
    kind, flags, options, message = UNWRITABLE[case]
    config, params = random_head(kind, CONFIG, **flags)
    if case == "frozen":
        params = params.replace(target_ids=jnp.arange(DRAFT_VOCAB))
    with pytest.raises(ValueError, match=re.escape(message)):
        write(tmp_path / "head", config, params, **options)
    assert list(tmp_path.iterdir()) == []


def change_config(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite `config.json`."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def top(*dropped: str, **keys: Any) -> Callable[[dict[str, Any]], None]:
    """Change keys beside the nested ones."""

    def change(config: dict[str, Any]) -> None:
        config.update(keys)
        for key in dropped:
            del config[key]

    return change


def layer(**keys: Any) -> Callable[[dict[str, Any]], None]:
    """Change keys of the layer."""
    return lambda config: config["transformer_layer_config"].update(keys)


def serving(**keys: Any) -> Callable[[dict[str, Any]], None]:
    """Change keys of `speculators_config`."""
    return lambda config: config["speculators_config"].update(keys)


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "DFlash": (top(speculators_model_type="dflash"), "speculators_model_type is 'dflash': such drafters are not"),
    "no layer": (top("transformer_layer_config"), "transformer_layer_config is None, expected an object"),
    "another layer": (layer(model_type="gemma3"), "transformer_layer_config.model_type is 'gemma3'; llama, qwen3 are"),
    "Qwen3's layer": (layer(model_type="qwen3"), "self_attn.q_norm.weight is missing"),
    "not clear": (top("norm_before_residual"), "no norm_before_residual, which is true to vLLM then and false to spec"),
    "both norms": (top(fc_norm=True, norm_before_fc=True), "fc_norm and norm_before_fc are both set"),
    "norm": (top(norm_before_fc=True), "tensor input_norm.weight is missing"),
    "no truth value": (top(norm_before_residual="yes"), "norm_before_residual is 'yes', expected true or false"),
    "no number": (layer(sliding_window="2048"), "sliding_window is '2048', expected a positive number"),
    "taps": (top(**{IDS: [2, 3, 6]}), "inputs of layers [2, 3, 6], the target gives"),
    "last state": (top(**{IDS: [2, 3, 7]}), "what comes out of layer 6, the last one"),
    "four taps": (top(**{IDS: [2, 3, 4, 6]}), "reads 3 tapped layers, config.json gives 4"),
    "no vocabulary": (layer(vocab_size=None), "config.json has no vocab_size"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path) -> None:
    """By the loader, and by the validator in the same words."""
    folder, _, _ = saved(tmp_path)
    change, message = REFUSED[case]
    change_config(folder, change)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_head(folder, CONFIG)
    assert str(caught.value).count(str(folder)) >= 1
    assert any(message in problem for problem in validate(folder, target=CONFIG))


NOT_SERVED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "nothing": (top("speculators_config"), "speculators_config is None, expected an object"),
    "no tokens": (serving(proposal_methods=[]), "speculative_tokens of the first of proposal_methods is None"),
    "no target": (serving(verifier={}), "speculators_config names no target: verifier.name_or_path is not there"),
    "no draft vocabulary": (top("draft_vocab_size"), "config.json has no draft_vocab_size"),
    "name": (top(architectures=["LlamaForCausalLM"]), "speculators: architectures is ['LlamaForCausalLM'], expected ["),
    "layers": (layer(num_hidden_layers=2), "num_hidden_layers is 2, as many layers as engines make; the file holds 1"),
    "type": (top(torch_dtype="float16"), "is bfloat16, expected float16"),
}


@pytest.mark.parametrize("case", NOT_SERVED)
def test_what_vllm_would_stumble_over(case: str, tmp_path: Path) -> None:
    folder, _, _ = saved(tmp_path, dtype="bfloat16")
    change, message = NOT_SERVED[case]
    change_config(folder, change)
    assert any(message in problem for problem in validate(folder)), validate(folder)


def test_names_of_the_other_format(tmp_path: Path) -> None:
    folder, *_ = saved(tmp_path, dtype="bfloat16")
    edit_tensors(folder, rename(lambda name: name.replace("layers.0.", "midlayer.")))
    (problem,) = validate(folder)
    assert re.fullmatch(r"speculators: tensor midlayer\.\S+: the layer's tensors are called layers\.0\.\*", problem)
    load_head(folder, CONFIG)
    flat = saved_flat(tmp_path / "flat")
    assert validate(flat, engines=["speculators"]) == [
        "speculators: does not read this format: config.json has no speculators_model_type",
        *(problem for problem in validate(flat) if "float32" in problem),
    ]
