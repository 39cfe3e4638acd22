"""Reading GGUF files: exact to what the file holds, in rotate-half order, and nothing passed over."""

import re
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_jax.checkpoint.gguf import ROPE_FACTORS, load_params, open_gguf
from eagle_jax.checkpoint.gguf_config import config_from_gguf
from eagle_jax.models.config import ModelConfig, RopeScaling
from eagle_jax.models.rope import frequencies
from eagle_jax.models.transformer import make_target
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import Params
from tests.checkpoint.files import stored_tensors, write_gguf
from tests.models.passes import whole_pass
from tests.tolerance import assert_close, pass_terms

CONFIG, TARGET, PARAMS = tiny_transformer(eos_ids=(2,))
TENSORS = stored_tensors(CONFIG, PARAMS)


def load(path: Path, dtype: str = "float32") -> tuple[ModelConfig, Params]:
    file = open_gguf(path)
    config = config_from_gguf(file)
    return config, load_params(file, config, dtype=dtype)


def fails(path: Path, *parts: str) -> None:
    """Loading raises one line that holds all of `parts`."""
    with pytest.raises(ValueError, match=re.escape(parts[0])) as caught:
        load(path)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("llama", {}),
        ("llama", {"tie_embeddings": True, "head_dim": 16, "rope_theta": 5e5}),
        ("llama", {"qkv_bias": True, "output_bias": True, "mlp_bias": True}),
        ("qwen2", {"qkv_bias": True}),
        ("qwen3", {"qk_norm": True, "head_dim": 16}),
    ],
)
def test_round_trip(tmp_path: Path, architecture: str, overrides: dict[str, Any]) -> None:
    wanted, _, params = tiny_transformer(eos_ids=(2,), **overrides)
    # Biases start at zero and norms at one: give them values, so that a wrong order shows.
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(structure, [leaf + rng.standard_normal(leaf.shape, np.float32) for leaf in leaves])
    path = write_gguf(tmp_path / "a.gguf", wanted, stored_tensors(wanted, params), architecture=architecture)
    config, loaded = load(path)
    assert config == wanted
    assert jax.tree.structure(loaded) == structure
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(Kind.F16, 10), (Kind.BF16, 7), (Kind.Q8_0, 7), (Kind.Q5_1, 5), (Kind.Q5_0, 4), (Kind.Q4_1, 4), (Kind.Q4_0, 3)],
)
def test_quantised_types(tmp_path: Path, kind: Kind, bits: int) -> None:
    _, loaded = load(write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS, kind=kind))
    for layer in ("layers_0", "layers_2"):
        for part in ("q_proj", "v_proj"):
            original = np.asarray(PARAMS[layer]["self_attn"][part]["kernel"])
            kernel = loaded[layer]["self_attn"][part]["kernel"]
            assert kernel.dtype == np.float32
            # Half a step of a grid over the largest value; a wrong row order would be off by whole values.
            assert np.abs(kernel - original).max() <= np.abs(original).max() * 2.0**-bits
            assert np.abs(kernel - original).max() > 0
    np.testing.assert_array_equal(loaded["norm"]["weight"], PARAMS["norm"]["weight"])


def test_same_logits_as_the_model_that_was_written(tmp_path: Path) -> None:
    config, loaded = load(write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS))
    tokens = jnp.arange(24).reshape(2, 12)
    _, wanted = whole_pass(TARGET, PARAMS, tokens)
    _, logits = whole_pass(make_target(config), loaded, tokens)
    assert_close(logits, wanted, pass_terms(config, tokens.shape[1]))


def test_half_precision(tmp_path: Path) -> None:
    _, loaded = load(write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS), "bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"bfloat16"}


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({"rope.scaling.type": "none"}, RopeScaling()),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, RopeScaling(kind="linear", factor=4.0)),
        ({"rope.scale_linear": 2.0}, RopeScaling(kind="linear", factor=2.0)),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128},
            RopeScaling(kind="yarn", factor=4.0, original_max_positions=128),
        ),
    ],
)
def test_rope_scaling(tmp_path: Path, metadata: dict[str, Any], wanted: RopeScaling) -> None:
    metadata = {f"llama.{key}": value for key, value in metadata.items()}
    config, _ = load(write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS, metadata=metadata))
    assert config.rope_scaling == wanted


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, 2048),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
            512,
        ),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, 2048),
        ({"rope.scale_linear": 2.0, "rope.scaling.original_context_length": 128}, 512),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, 512),
    ],
)
def test_context_that_scaling_stretches(
    tmp_path: Path, metadata: dict[str, Any], wanted: int, caplog: pytest.LogCaptureFixture
) -> None:
    """`context_length` is what `config.json` had, with YaRN the original length; the log says which context counts."""
    metadata = {f"llama.{key}": value for key, value in metadata.items()}
    config, _ = load(write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS, metadata=metadata))
    assert config.max_positions == wanted
    assert any(f"the context is {wanted} positions" in text for text in caplog.messages) == (wanted != 512)


@pytest.mark.parametrize(("token", "wanted"), [(2, (2,)), (0xFFFFFFFF, ()), (3, None)])
def test_end_tokens(tmp_path: Path, token: int, wanted: tuple[int, ...] | None) -> None:
    """-1 is none; one that is not there is refused."""
    metadata = {"tokenizer.ggml.eos_token_id": token, "tokenizer.ggml.bos_token_id": 0xFFFFFFFF}
    metadata |= {"tokenizer.ggml.tokens": ["a", "b", "c"], "llama.vocab_size": 64}
    path = write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS, metadata=metadata)
    if wanted is None:
        fails(path, "tokenizer.ggml.eos_token_id is 3, but there are 3 tokens")
    else:
        assert (load(path)[0].bos_id, load(path)[0].eos_ids) == (None, wanted)


LLAMA3 = RopeScaling(kind="llama3", factor=32.0, original_max_positions=8192)


def divisors(scaling: RopeScaling) -> np.ndarray:
    """The tensor that stands for a RoPE scaling in a file, f32[D/2]."""
    plain, _ = frequencies(CONFIG.head_dim, 5e5, RopeScaling())
    scaled, _ = frequencies(CONFIG.head_dim, 5e5, scaling)
    return plain / scaled


def test_llama3_factors(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "a.gguf",
        CONFIG,
        TENSORS,
        metadata={"llama.rope.freq_base": 5e5},
        extra_tensors={ROPE_FACTORS: divisors(LLAMA3)},
    )
    config, loaded = load(path)
    assert config.rope_scaling == LLAMA3
    assert jax.tree.structure(loaded) == jax.tree.structure(PARAMS)


def test_factors_of_another_scaling(tmp_path: Path) -> None:
    other = divisors(RopeScaling(kind="yarn", factor=32.0, original_max_positions=512))
    path = write_gguf(
        tmp_path / "a.gguf",
        CONFIG,
        TENSORS,
        metadata={"llama.rope.freq_base": 5e5},
        extra_tensors={ROPE_FACTORS: other},
    )
    fails(path, ROPE_FACTORS, "8192")


@pytest.mark.parametrize(
    ("metadata", "parts"),
    [
        ({"general.architecture": "gemma"}, ["general.architecture is 'gemma'", "llama, qwen2, qwen3"]),
        ({"llama.block_count": None}, ["llama.block_count is missing"]),
        ({"llama.block_count": 1 << 31}, ["llama.block_count is 2147483648", "last layer"]),
        ({"llama.attention.head_count": 0}, ["llama.attention.head_count is 0", "positive"]),
        ({"llama.attention.value_length": 4}, ["llama.attention.value_length is 4", "8"]),
        ({"llama.rope.dimension_count": 4}, ["llama.rope.dimension_count is 4", "8"]),
        ({"llama.expert_count": 8}, ["llama.expert_count is 8", "only 0", "no experts, as Mixtral has"]),
        ({"llama.attention.sliding_window": 64}, ["llama.attention.sliding_window is 64"]),
        ({"llama.logit_scale": 0.5}, ["llama.logit_scale", "is not known"]),
        ({"llama.rope.scaling.type": "longrope"}, ["'longrope'", "none, linear, yarn"]),
        ({"llama.rope.scaling.type": "yarn"}, ["llama.rope.scaling.factor is missing"]),
        ({"llama.rope.freq_base": -1.0}, ["llama.rope.freq_base is -1.0, expected one positive number"]),
        ({"llama.attention.layer_norm_rms_epsilon": "1e-5"}, ["layer_norm_rms_epsilon is 1e-5, expected one positive"]),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 0.0},
            ["factor is 0.0, expected one positive"],
        ),
        ({"llama.rope.scaling.attn_factor": 0.5}, ["llama.rope.scaling.attn_factor is 0.5", "only 1.0"]),
        (
            {"llama.feed_forward_length": [64, 64, 32]},
            ["llama.feed_forward_length is [64, 64, 32]", "one positive number"],
        ),
    ],
)
def test_metadata_that_is_refused(tmp_path: Path, metadata: dict[str, Any], parts: list[str]) -> None:
    metadata = dict(metadata)
    architecture = metadata.pop("general.architecture", "llama")
    fails(write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS, architecture=architecture, metadata=metadata), *parts)


DIRECTORY = "; supported in GGUF are llama, qwen2, qwen3, and this model as a Hugging Face directory (safetensors, "


@pytest.mark.parametrize(
    ("architecture", "rest"),
    [
        ("gemma3", f"{DIRECTORY}model_type gemma3)"),
        ("qwen3moe", f"{DIRECTORY}model_type qwen3_moe)"),
        ("gemma2", " (soft-capped scores and logits); supported in GGUF are llama, qwen2, qwen3"),
        ("phi3", "; supported in GGUF are llama, qwen2, qwen3"),
        ("deepseek2", " (latent attention and shared experts); supported in GGUF are llama, qwen2, qwen3"),
        ("gpt-oss", " (attention sinks); supported in GGUF are llama, qwen2, qwen3"),
    ],
)
def test_other_architectures(tmp_path: Path, architecture: str, rest: str) -> None:
    """The line ends with where else the model is read from, or with why it is not read."""
    path = write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS, architecture=architecture)
    with pytest.raises(ValueError, match=re.escape(f"{path}: general.architecture is {architecture!r}{rest}") + "$"):
        load(path)


def test_missing_tensor(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    fewer = {key: value for key, value in TENSORS.items() if key != name}
    fails(write_gguf(tmp_path / "a.gguf", CONFIG, fewer), "blk.1.ffn_up.weight", "missing")


def test_unknown_tensor(tmp_path: Path) -> None:
    extra = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
    path = write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS, extra_tensors=extra)
    fails(path, "blk.0.attn_sinks.weight (4,) has no place")


def test_misshapen_tensor(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    path = write_gguf(tmp_path / "a.gguf", CONFIG, {**TENSORS, name: np.zeros((32, 32), np.float32)})
    fails(path, "blk.1.ffn_up.weight", "(32, 32)", "(64, 32)")


def test_value_that_is_not_finite(tmp_path: Path) -> None:
    name = "model.norm.weight"
    path = write_gguf(tmp_path / "a.gguf", CONFIG, {**TENSORS, name: np.full(32, np.nan, np.float32)})
    fails(path, "output_norm.weight", "32 values of 32")


def test_type_that_the_package_cannot_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((4, 256), np.int8), raw_dtype=Kind.I8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"token_embd.weight has type I8, which the gguf package cannot read"):
        open_gguf(tmp_path / "a.gguf").read("token_embd.weight")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_gguf(tmp_path / "a.gguf")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a.gguf"
    write_gguf(path, CONFIG, TENSORS, metadata={"tokenizer.ggml.tokens": ["a", "b", "c"]})
    return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_cut_anywhere(whole: bytes, tmp_path_factory: pytest.TempPathFactory, cut: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.gguf"
    path.write_bytes(whole[: int(cut * len(whole))])
    fails(path, "is not a complete GGUF file")


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damage_in_the_header_is_never_anything_but_a_value_error(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 2500))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "a.gguf"
    path.write_bytes(bytes(damaged))
    try:
        load(path)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 (a harmless change may also load)


def test_split_file(tmp_path: Path) -> None:
    fails(write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS, metadata={"split.count": 3}), "is one of 3 parts")


def test_big_endian(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match="big-endian"):
        open_gguf(tmp_path / "a.gguf")
