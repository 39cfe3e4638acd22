"""Draft heads in the flat format: what is right comes through exactly, what is wrong is named."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eagle_jax.checkpoint.heads import load_head, save_head
from eagle_jax.testing import tiny_transformer
from tests.checkpoint.heads import (
    CONFIG,
    DRAFT_VOCAB,
    PARAMS,
    assert_tree_equal,
    edit_config,
    edit_tensors,
    logits,
    random_head,
    rename,
    saved,
)

OTHER_TAPS = tiny_transformer(num_layers=7, tap_layers=(1, 4, 5))[0]
UP = "midlayer.mlp.up_proj.weight"


@pytest.mark.parametrize(
    "names",
    [
        lambda name: f"model.{name}",
        lambda name: name.replace("midlayer.", "layers.0."),
        lambda name: name.replace("midlayer.", "model.layers.0."),
        lambda name: name.replace("fc_norm.0", "aux_norm_low").replace("fc_norm.2", "aux_norm_high"),
    ],
    ids=["model", "layers", "both", "norms"],
)
def test_other_names(names: Callable[[str], str], tmp_path: Path) -> None:
    config, params = random_head("eagle3", CONFIG, fc_norm=True)
    save_head(tmp_path / "head", config, params, CONFIG, dtype="float32")
    edit_tensors(tmp_path / "head", rename(names))
    assert_tree_equal(load_head(tmp_path / "head", CONFIG)[1], params)


def test_shards(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"{index % 2}.safetensors" for index, name in enumerate(tensors)}
    for shard in ("0.safetensors", "1.safetensors"):
        save_file({name: tensors[name] for name in tensors if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_tree_equal(load_head(folder, CONFIG), random_head("eagle3", CONFIG))


def test_types_and_place(tmp_path: Path) -> None:
    seen: list[str] = []

    def place(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
        seen.append("/".join(path))
        return value

    _, params = load_head(saved(tmp_path), CONFIG, dtype="bfloat16", place=place)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params.weights, params.lm_head))} == {"bfloat16"}
    assert params.target_ids.dtype == np.int32
    assert {"midlayer/mlp/up_proj/kernel", "lm_head", "target_ids"} <= set(seen)
    assert len(seen) == len(jax.tree.leaves(params))


def test_what_published_files_leave_out_or_bring_along(tmp_path: Path) -> None:
    """No rope_theta is 10000, and a copy of the target's embedding is dropped."""
    folder = saved(tmp_path)
    edit_config(folder, "rope_theta", "rope_parameters", "head_dim", "attention_bias", "mlp_bias")
    edit_tensors(folder, lambda tensors: tensors.update({"embed_tokens.weight": np.zeros((64, 32), np.float32)}))
    config, params = load_head(folder, tiny_transformer(rope_theta=5e5)[0])
    assert config.layer.rope_theta == 1e4
    assert params.embedding is None


def test_null_is_absent_and_numbers_may_be_written_with_a_point(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    wanted = load_head(folder, CONFIG)
    edit_config(
        folder,
        **{"hidden_size": 32.0, "max_position_embeddings": 512.0, "vocab_size": 64.0, "num_hidden_layers": 1.0},
        **{"bias": None, "model_type": None, "attention_bias": None, "rope_scaling": None, "initializer_range": 1},
        eagle_config={"use_aux_hidden_state": None},
    )
    config, params = load_head(folder, CONFIG)
    assert config == wanted[0]
    assert_tree_equal(params, wanted[1])


def test_whole_vocabulary(tmp_path: Path) -> None:
    """d2t and t2d are not looked at, and a head without an LM head has the target's."""
    config, params = random_head("eagle3", CONFIG)
    whole = params.replace(lm_head=jnp.ones((64, 32)), target_ids=None)
    save_head(tmp_path / "head", config, whole, CONFIG, dtype="float32")
    assert "d2t" not in load_file(tmp_path / "head/model.safetensors")
    edit_tensors(tmp_path / "head", lambda tensors: tensors.update(d2t=np.full(64, 99), t2d=np.zeros(64, bool)))
    assert_tree_equal(load_head(tmp_path / "head", CONFIG)[1], whole)
    edit_config(tmp_path / "head", draft_vocab_size=None)
    edit_tensors(tmp_path / "head", lambda tensors: [tensors.pop(name) for name in ("lm_head.weight", "d2t", "t2d")])
    borrowed = load_head(tmp_path / "head", CONFIG)[1]
    assert borrowed.lm_head is borrowed.target_ids is None
    np.testing.assert_array_equal(logits(config, borrowed), logits(config, borrowed.replace(lm_head=PARAMS["lm_head"])))


def test_layer_ids_of_either_engine(tmp_path: Path) -> None:
    """In eagle_config alone they are clear where one reading is the default, inputs of layers 2, 3 and 4."""
    folder, key = saved(tmp_path), "eagle_aux_hidden_state_layer_ids"
    for ids in ([1, 2, 3], [2, 3, 4]):
        edit_config(folder, eagle_config={key: ids})
        load_head(folder, CONFIG)
    edit_config(folder, eagle_config={key: [0, 3, 4]})
    with pytest.raises(ValueError, match=r"SGLang takes that for the inputs of layers \[1, 4, 5\], vLLM for those of"):
        load_head(folder, OTHER_TAPS)
    edit_config(folder, **{key: [1, 4, 5]})
    load_head(folder, OTHER_TAPS)
    with pytest.raises(ValueError, match=r"inputs of layers \[1, 4, 5\], the target gives \[2, 3, 4\]"):
        load_head(folder, CONFIG)
    edit_config(folder, **{key: [0, 3, 4]})
    with pytest.raises(ValueError, match="must repeat less one"):
        load_head(folder, OTHER_TAPS)


def put(**tensors: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda stored: stored.update(tensors))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda stored: stored.pop(name))


def set_keys(*dropped: str, **changed: Any) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, *dropped, **changed)


def shift_offsets(folder: Path) -> None:
    """Ids in place of offsets."""
    edit_tensors(folder, lambda stored: stored.update(d2t=np.arange(DRAFT_VOCAB) + stored["d2t"]))


def only_torch(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


WRONG: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "vocabulary": (set_keys(vocab_size=65), ("vocabulary of 65", "64 tokens")),
    "width": (set_keys(target_hidden_size=48), ("for a target of width 48", "this one has 32")),
    "no whole taps": (set_keys(target_hidden_size=40), ("reads 96 features", "2 taps of width 40")),
    "taps": (put(**{"fc.weight": np.zeros((32, 64), np.float32)}), ("2 tapped layers", "gives 3")),
    "missing": (drop(UP), (UP, "missing")),
    "unknown": (put(extra=np.zeros(3, np.float32)), ("extra", "(3,)", "no place")),
    "unknown whole numbers": (put(extra=np.zeros(3, np.int64)), ("extra", "I64")),
    "misshapen": (put(**{UP: np.zeros((32, 64), np.float32)}), (UP, "(32, 64)", "(64, 32)")),
    "not finite": (put(**{UP: np.full((64, 32), np.nan, np.float32)}), (UP, "2048 values of 2048")),
    "twice": (
        put(**{"model.norm.weight": np.zeros(32, np.float32)}),
        ("model.norm.weight and norm.weight are both norm.weight",),
    ),
    "embedding": (
        put(**{"embed_tokens.weight": np.zeros((9, 32), np.float32)}),
        ("embed_tokens", "(9, 32)", "(64, 32)"),
    ),
    "no d2t": (drop("d2t"), ("d2t is missing", "draft_vocab_size is 24", "vocab_size 64")),
    "short d2t": (put(d2t=np.zeros(23, np.int64)), ("d2t has shape (23,)", "(24,)")),
    "d2t of ids": (shift_offsets, ("d2t sends draft token", "of a vocabulary of 64", "offsets")),
    "negative": (put(d2t=np.full(24, -1)), ("d2t sends draft token 0 to token -1",)),
    "d2t twice": (put(d2t=-np.arange(24)), ("d2t sends two draft tokens to token 0",)),
    "d2t of floats": (put(d2t=np.zeros(24, np.float32)), ("d2t holds float32",)),
    "t2d": (put(t2d=np.zeros(64, bool)), ("in the draft vocabulary of d2t, but not in that of t2d",)),
    "fuller t2d": (put(t2d=np.ones(64, bool)), ("in the draft vocabulary of t2d, but not in that of d2t",)),
    "no LM head": (drop("lm_head.weight"), ("lm_head.weight is missing",)),
    "LM head": (set_keys(draft_vocab_size=40), ("(24,)", "(40,)")),
    "fc bias": (put(**{"fc.bias": np.zeros(32, np.float32)}), ("says bias: false", "a tensor fc.bias")),
    "no fc bias": (set_keys(bias=True), ("says bias: true", "no tensor fc.bias")),
    "layers": (
        put(**{"layers.1.mlp.up_proj.weight": np.zeros((64, 32), np.float32)}),
        ("the file holds 2 layers; heads of 1 are computed",),
    ),
    "activation": (set_keys(hidden_act="gelu"), ("hidden_act 'gelu'",)),
    "quantised": (put(**{UP: np.zeros((64, 32), np.int8)}), (UP, "has type I8")),
    "experts": (
        put(**{"midlayer.mlp.experts.0.up_proj.weight": np.zeros((64, 32), np.float32)}),
        ("midlayer.mlp.experts.0.up_proj.weight", "no place"),
    ),
    "model type": (set_keys(model_type="eagle"), ("model_type 'eagle'",)),
    "architecture": (set_keys(architectures=["LlamaForCausalLMEagle"]), ("LlamaForCausalLMEagle", "an eagle3 head")),
    "norm before fc": (set_keys(norm_before_fc=True), ("input_norm.weight is missing",)),
    "unknown norm": (put(**{"input_norm.weight": np.ones(96, np.float32)}), ("input_norm.weight", "no place")),
    "two norms": (set_keys(norm_before_fc=True, fc_norm=True), ("fc_norm and norm_before_fc are both set",)),
    "no truth value": (set_keys(norm_output="yes"), ("norm_output is 'yes', expected true or false",)),
    "window": (
        set_keys(layer_types=["sliding_attention"]),
        ("layer_types ['sliding_attention'] with sliding_window None",),
    ),
    "kinds": (set_keys(layer_types="sliding_attention"), ("layer_types is 'sliding_attention', expected a list",)),
    "parallel drafting": (set_keys(parallel_drafting=True), ("parallel drafting is on", "not supported")),
    "parallel steps": (set_keys(eagle_config={"parallel_draft_step": 4}), ("parallel drafting is on",)),
    "no number": (set_keys(draft_vocab_size="24"), ("draft_vocab_size is '24', expected a positive number",)),
    "ids": (set_keys(eagle_aux_hidden_state_layer_ids=3), ("layer_ids is 3, expected a list of layers",)),
    "eagle_config": (set_keys(eagle_config=[3]), ("eagle_config is [3], expected an object",)),
    "names": (set_keys(architectures="Llama"), ("architectures is 'Llama', expected a list of names",)),
    "no taps": (set_keys(eagle_config={"use_aux_hidden_state": False}), ("use_aux_hidden_state is false",)),
    "no hidden_size": (set_keys("hidden_size"), ("no hidden_size",)),
    "torch": (only_torch, ("pytorch_model.bin", "python -m experiments.convert --head=")),
    "nothing": (lambda folder: (folder / "model.safetensors").unlink(), ("has neither model.safetensors",)),
    "no config": (lambda folder: (folder / "config.json").unlink(), ("has no config.json",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str, tmp_path: Path) -> None:
    spoil, parts = WRONG[case]
    folder = saved(tmp_path)
    spoil(folder)
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        load_head(folder, CONFIG)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert message.count(str(folder)) >= 1
    assert "\n" not in message


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        ("eagle", {"width": 16}, "for a target of width 32, this one has 16"),
        ("eagle3", {"width": 16}, "for a target of width 32, this one has 16"),
        ("eagle3", {"vocab_size": 32}, "for a vocabulary of 64, the target has 32 tokens"),
        ("eagle3", {"tap_layers": (2,)}, "inputs of layers [2, 3, 4], the target gives [2] and 7, its last"),
        ("eagle3", {"tap_layers": (1, 2, 3)}, r"inputs of layers [2, 3, 4], the target gives [1, 2, 3]"),
    ],
)
def test_another_target(kind: str, target: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_head(saved(tmp_path, kind), tiny_transformer(**{"num_layers": 7, **target})[0])


def test_the_last_hidden_state_must_be_said_to_be_normed(tmp_path: Path) -> None:
    config, params = random_head("eagle3", CONFIG, parts=(0, 3))
    save_head(tmp_path / "head", config, params, CONFIG)
    assert load_head(tmp_path / "head", CONFIG)[0].parts == (0, 3)
    edit_config(tmp_path / "head", "last_hidden_state")
    with pytest.raises(ValueError, match=r"comes out of layer 6, .* last_hidden_state is None, not 'normed'"):
        load_head(tmp_path / "head", CONFIG)


def test_eagle_head_of_another_width_than_its_target(tmp_path: Path) -> None:
    folder = saved(tmp_path, "eagle")
    edit_config(folder, target_hidden_size=64)
    with pytest.raises(ValueError, match="target_hidden_size is 64, but an EAGLE-1 head is as wide as its target"):
        load_head(folder, CONFIG)


def test_missing_bias_key_means_a_bias_in_eagle_heads(tmp_path: Path) -> None:
    folder = saved(tmp_path, "eagle")
    edit_config(folder, "bias")
    load_head(folder, CONFIG)
    edit_tensors(folder, lambda tensors: tensors.pop("fc.bias"))
    with pytest.raises(
        ValueError, match="bias: true, which is the meaning of no such key, but the file holds no tensor"
    ):
        load_head(folder, CONFIG)
