"""Reading Hugging Face directories: what is right comes through exactly, what is wrong is named."""

import json
import re
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from eagle_jax.checkpoint.hf import load_config, load_params
from eagle_jax.models.config import ModelConfig
from eagle_jax.testing import tiny_transformer
from tests.checkpoint.files import stored_tensors, write_hf

CONFIG_OF_TINY, _, PARAMS = tiny_transformer()
TENSORS = stored_tensors(CONFIG_OF_TINY, PARAMS)
UP = "model.layers.1.mlp.up_proj.weight"


def load(folder: Path, dtype: str = "float32") -> tuple[ModelConfig, dict]:
    config = load_config(folder)
    return config, load_params(folder, config, dtype=dtype)


def assert_tree_equal(actual: dict, wanted: dict) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


def fails(folder: Path, *parts: str) -> None:
    """Loading raises one line that holds all of `parts`."""
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        load(folder)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize("num_shards", [1, 3])
def test_round_trip(tmp_path: Path, num_shards: int) -> None:
    config, params = load(write_hf(tmp_path, TENSORS, num_shards))
    assert config == ModelConfig(**{**vars(CONFIG_OF_TINY), "bos_id": 1, "eos_ids": (2,)})
    assert_tree_equal(params, PARAMS)


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_types(tmp_path: Path, stored: type, dtype: str) -> None:
    half = {name: value.astype(stored) for name, value in TENSORS.items()}
    _, params = load(write_hf(tmp_path, half), dtype)
    kernel = params["layers_1"]["mlp"]["up_proj"]["kernel"]
    assert kernel.dtype.name == dtype
    np.testing.assert_array_equal(kernel, half[UP].T.astype(kernel.dtype))


def test_place_and_progress(tmp_path: Path) -> None:
    write_hf(tmp_path, TENSORS)
    seen: list[tuple[int, int]] = []
    params = load_params(
        tmp_path, load_config(tmp_path), place=lambda path, value: "/".join(path), progress=lambda *s: seen.append(s)
    )
    assert params["layers_2"]["self_attn"]["o_proj"]["kernel"] == "layers_2/self_attn/o_proj/kernel"
    assert seen == [(done, len(TENSORS)) for done in range(1, len(TENSORS) + 1)]


def test_missing_tensor(tmp_path: Path) -> None:
    fails(write_hf(tmp_path, {name: value for name, value in TENSORS.items() if name != UP}), UP, "missing")


def test_unknown_tensor(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    fails(write_hf(tmp_path, {**TENSORS, name: np.zeros(32, np.float32)}), name, "(32,)", "no place")


def test_misshapen_tensor(tmp_path: Path) -> None:
    fails(write_hf(tmp_path, {**TENSORS, UP: TENSORS[UP].T.copy()}), UP, "(32, 64)", "(64, 32)")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_value_that_is_not_finite(tmp_path: Path, value: float) -> None:
    broken = TENSORS[UP].copy()
    broken[3, 4] = value
    fails(write_hf(tmp_path, {**TENSORS, UP: broken}), UP, "1 values of 2048")


def test_value_too_large_for_the_type(tmp_path: Path) -> None:
    write_hf(tmp_path, {**TENSORS, UP: np.full_like(TENSORS[UP], 7e4)})
    with pytest.raises(ValueError, match=rf"{re.escape(UP)} reaches 70000, too large for float16"):
        load(tmp_path, "float16")


def test_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype 'int8' is not one of float32, bfloat16, float16"):
        load(write_hf(tmp_path, TENSORS), "int8")


def test_stored_integers(tmp_path: Path) -> None:
    fails(write_hf(tmp_path, {**TENSORS, UP: np.zeros((64, 32), np.int8)}), UP, "I8")


def test_legacy_buffers_are_passed_over(tmp_path: Path) -> None:
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    _, params = load(write_hf(tmp_path, {**TENSORS, **buffer}))
    assert_tree_equal(params, PARAMS)


def test_tied_model_with_a_redundant_head(tmp_path: Path) -> None:
    tied = {**TENSORS, "lm_head.weight": TENSORS["model.embed_tokens.weight"]}
    _, params = load(write_hf(tmp_path, tied, tie_word_embeddings=True))
    assert "lm_head" not in params


def test_tied_model_with_another_head(tmp_path: Path) -> None:
    fails(write_hf(tmp_path, TENSORS, tie_word_embeddings=True), "lm_head.weight differs from")


def test_context_that_scaling_stretches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As model cards switch YaRN on: the log says which context was taken."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    assert load_config(write_hf(tmp_path / "plain", TENSORS)).max_positions == 512
    assert caplog.messages == []
    assert load_config(write_hf(tmp_path / "yarn", TENSORS, rope_scaling=yarn)).max_positions == 2048
    assert caplog.messages == [
        f"{tmp_path / 'yarn'}: the context is 2048 positions by RoPE scaling (yarn, 4 times); the file declares 512"
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_pointer_of_git_lfs(tmp_path: Path, name: str) -> None:
    """What a clone without Git LFS holds."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n"
    (write_hf(tmp_path, TENSORS) / name).write_text(text)
    fails(tmp_path, f"{tmp_path / name} is a Git LFS pointer, not the file: run git lfs pull in {tmp_path}")


@pytest.mark.parametrize("part", [0, 4, 60, 5000, -1])
def test_cut_file(tmp_path: Path, part: int) -> None:
    file = write_hf(tmp_path, TENSORS) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:part])
    fails(tmp_path, "model.safetensors is not a complete safetensors file")


def test_no_weights(tmp_path: Path) -> None:
    (write_hf(tmp_path, TENSORS) / "model.safetensors").unlink()
    fails(tmp_path, "has neither model.safetensors nor model.safetensors.index.json")


def test_missing_shard(tmp_path: Path) -> None:
    shard = "model-00002-of-00003.safetensors"
    (write_hf(tmp_path, TENSORS, 3) / shard).unlink()
    fails(tmp_path, f"names the shard {shard}, which is not there")


def test_tensor_in_two_shards(tmp_path: Path) -> None:
    write_hf(tmp_path, TENSORS, 2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    first, second = sorted(set(index["weight_map"].values()))
    names = {shard: [n for n, s in index["weight_map"].items() if s == shard] for shard in (first, second)}
    twice = names[first][0]
    save_file({n: TENSORS[n] for n in [*names[second], twice]}, tmp_path / second)
    fails(tmp_path, twice, f"in both {first} and {second}")


def test_tensor_that_the_index_leaves_out(tmp_path: Path) -> None:
    write_hf(tmp_path, TENSORS, 2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"][UP]
    path.write_text(json.dumps(index))
    fails(tmp_path, UP, "in the file but not in the index")


def test_index_that_promises_too_much(tmp_path: Path) -> None:
    write_hf(tmp_path, TENSORS, 2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    fails(tmp_path, "model.layers.9.mlp.up_proj.weight", "in the index but not in the file")


def test_index_that_promises_a_buffer(tmp_path: Path) -> None:
    """Old versions of transformers listed them, and new ones left them out of the shards."""
    write_hf(tmp_path, TENSORS, 2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shard = next(iter(index["weight_map"].values()))
    index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = shard
    path.write_text(json.dumps(index))
    assert_tree_equal(load(tmp_path)[1], PARAMS)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_unreadable_index(tmp_path: Path, text: str) -> None:
    (write_hf(tmp_path, TENSORS, 2) / "model.safetensors.index.json").write_text(text)
    fails(tmp_path, "model.safetensors.index.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, '{"a": 1}'.encode("utf-16")])
def test_unreadable_config(tmp_path: Path, content: bytes) -> None:
    (write_hf(tmp_path, TENSORS) / "config.json").write_bytes(content)
    fails(tmp_path, f"{tmp_path / 'config.json'}: ")


def test_config_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = write_hf(tmp_path, TENSORS) / "config.json"
    wanted, text = load(tmp_path)[0], json.dumps(json.loads(path.read_text()), indent=1)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load(tmp_path)[0] == wanted


def test_no_config(tmp_path: Path) -> None:
    (write_hf(tmp_path, TENSORS) / "config.json").unlink()
    fails(tmp_path, "has no config.json")


def test_quantised_checkpoint(tmp_path: Path) -> None:
    write_hf(tmp_path, TENSORS, quantization_config={"quant_method": "gptq"})
    fails(tmp_path, "'gptq'", "not supported")
