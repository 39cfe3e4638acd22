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

from eagle_jax.checkpoint.head_config import Engine
from eagle_jax.checkpoint.heads import load_head, save_head
from eagle_jax.models.config import ModelConfig, RopeScaling
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.testing import tiny_transformer
from tests.checkpoint.heads import DRAFT_VOCAB, edit_config, edit_tensors, random_head, rename

CONFIG, TARGET, PARAMS = tiny_transformer(num_layers=7)
OTHER_TAPS = tiny_transformer(num_layers=7, tap_layers=(1, 4, 5))[0]
UP = "midlayer.mlp.up_proj.weight"


def assert_tree_equal(actual: Any, wanted: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


def logits(config: HeadConfig, params: HeadParams, target: ModelConfig = CONFIG) -> jax.Array:
    """What the head says of a few random features, each for itself."""
    head = make_head(config, TARGET)
    features = jax.random.normal(jax.random.key(3), (1, 5, config.feature_width))
    tokens, positions = jnp.arange(5)[None], jnp.arange(5)[None]
    states = head.fuse(params, features)
    group = config.layer.num_heads // config.layer.num_kv_heads
    states, _, _ = head.step(
        params, states, head.embed(params, PARAMS, tokens), positions, lambda q, k, v: jnp.repeat(v, group, axis=2)
    )
    return head.logits(params, PARAMS, states)


def saved(folder: Path, kind: str = "eagle3", **options: Any) -> Path:
    """A directory with a random head in float32."""
    config, params = random_head(kind, CONFIG)
    save_head(folder / "head", config, params, CONFIG, **{"dtype": "float32", **options})
    return folder / "head"


ROUND_TRIPS: dict[str, tuple[str, Engine, ModelConfig, dict[str, Any]]] = {
    "eagle3": ("eagle3", "sglang", CONFIG, {}),
    "eagle3-1": ("eagle3", "vllm", CONFIG, {"fc_norm": True, "norm_output": True}),
    "other width": ("eagle3", "sglang", CONFIG, {"width": 16}),
    "other taps": ("eagle3", "vllm", OTHER_TAPS, {}),
    "more taps": ("eagle3", "vllm", tiny_transformer(num_layers=7, tap_layers=(1, 3, 4, 5))[0], {"fc_norm": True}),
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
    "layers": (set_keys(num_hidden_layers=2), ("num_hidden_layers is 2",)),
    "activation": (set_keys(hidden_act="gelu"), ("hidden_act 'gelu'",)),
    "quantised": (set_keys(quantization_config={"quant_method": "fp8"}), ("'fp8'", "not supported")),
    "model type": (set_keys(model_type="eagle"), ("model_type 'eagle'",)),
    "architecture": (set_keys(architectures=["LlamaForCausalLMEagle"]), ("LlamaForCausalLMEagle", "an eagle3 head")),
    "residual": (set_keys(norm_before_residual=True), ("norm_before_residual is True", "not supported")),
    "norm before fc": (set_keys(norm_before_fc=True), ("norm_before_fc is True", "not supported")),
    "speculators": (set_keys(speculators_model_type="eagle3"), ("speculators_model_type is 'eagle3'", "not supported")),
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
        ("eagle3", {"tap_layers": (2,)}, "reads 3 tapped layers, the target gives 1"),
        ("eagle3", {"tap_layers": (1, 2, 3)}, r"inputs of layers [2, 3, 4], the target gives [1, 2, 3]"),
    ],
)
def test_another_target(kind: str, target: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        load_head(saved(tmp_path, kind), tiny_transformer(**{"num_layers": 7, **target})[0])


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


@pytest.mark.parametrize("part", ["qk_norm", "qkv_bias"])
def test_parts_that_engines_do_not_have(part: str, tmp_path: Path) -> None:
    target = tiny_transformer(**{part: True})[0]
    with pytest.raises(ValueError, match="cannot be written: the heads of SGLang and vLLM have none"):
        save_head(tmp_path / "head", *random_head("eagle3", target), target)
