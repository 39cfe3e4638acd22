"""Weights read onto a mesh are those read whole, and the host never holds more than a part of one tensor."""

import tracemalloc
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from eagle_jax.checkpoint import heads, hf
from eagle_jax.checkpoint.assemble import TensorSource
from eagle_jax.checkpoint.names import target_tensors
from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.checkpoint.save_target import config_to_hf
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.sharding import head_shardings, make_mesh, target_shardings
from eagle_jax.testing import tiny_transformer
from tests.checkpoint.files import stored_tensors, write_gguf, write_hf
from tests.checkpoint.heads import edit_tensors, random_head, rename
from tests.checkpoint.test_gguf_tokenizer import byte_level_metadata
from tests.checkpoint.test_hf_tokenizer import save
from tests.models.families import FAMILIES

WIDTH, VOCAB = 64, 2048
CONFIG, _, PARAMS = tiny_transformer(
    vocab_size=VOCAB, width=WIDTH, mlp_width=256, num_heads=8, num_kv_heads=4, head_dim=16, num_layers=2, qkv_bias=True
)
SETTINGS: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "num_hidden_layers": 2,
}
MESHES = [(8, 1), (4, 2), (2, 4), (1, 8)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in eight files, stored as bfloat16."""
    stored = {name: value.astype(ml_dtypes.bfloat16) for name, value in stored_tensors(CONFIG, PARAMS).items()}
    return write_hf(tmp_path_factory.mktemp("eight"), stored, 8, **SETTINGS)


def assert_same_bits(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)

    def same(a: Any, b: Any) -> None:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a).view(np.uint8), np.asarray(b).view(np.uint8))

    jax.tree.map(same, found, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", MESHES)
def test_same_bits(directory: Path, sizes: tuple[int, int], dtype: str) -> None:
    config = hf.load_config(directory)
    shardings = target_shardings(make_mesh(*sizes), config)
    found = hf.load_params(directory, config, dtype=dtype, shardings=shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == shardings
    assert_same_bits(found, hf.load_params(directory, config, dtype=dtype))


@pytest.fixture
def parts_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Name and number of values of all that is read."""
    seen: list[tuple[str, int]] = []
    made = hf.assemble

    def watched(specs: Any, source: TensorSource, **options: Any) -> Any:
        def read_part(name: str, part: Any) -> np.ndarray:
            assert source.read_part is not None
            value = source.read_part(name, part)
            seen.append((name, value.size))
            return value

        def read(name: str) -> np.ndarray:
            raise AssertionError(f"{name} is read whole")

        return made(specs, TensorSource(source.origin, source.shapes, read, read_part), **options)

    for module in (hf, heads):
        monkeypatch.setattr(module, "assemble", watched)
    return seen


def test_each_value_is_read_once(directory: Path, parts_read: list[tuple[str, int]]) -> None:
    config = hf.load_config(directory)
    hf.load_params(directory, config, shardings=target_shardings(make_mesh(2, 4), config))
    for name, spec in target_tensors(config).items():
        sizes = [size for one, size in parts_read if one == name]
        whole = int(np.prod(spec.shape))
        assert sizes in ([whole], [whole // 4] * 4), name
    assert ("lm_head.weight", VOCAB * WIDTH // 4) in parts_read
    assert ("model.layers.1.self_attn.o_proj.weight", WIDTH * 8 * 16 // 4) in parts_read


def test_a_split_head_is_read_in_parts(tmp_path: Path, parts_read: list[tuple[str, int]]) -> None:
    """From a file whose names are not those of the flat format."""
    config, target, _ = tiny_transformer(num_heads=8, num_kv_heads=4)
    head_config, wanted = random_head("eagle3", config)
    heads.save_head(tmp_path / "head", head_config, wanted, config, dtype="float32")
    edit_tensors(tmp_path / "head", rename(lambda name: f"model.{name}"))

    def shardings(found: HeadConfig, params: HeadParams) -> HeadParams:
        return head_shardings(make_mesh(2, 4), make_head(found, target), params, split=True)

    _, params = heads.load_head(tmp_path / "head", config, shardings=shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings(head_config, params)
    assert_same_bits(params, wanted)
    sizes = [size for name, size in parts_read if name == "midlayer.mlp.up_proj.weight"]
    assert sizes == [config.width * config.mlp_width // 4] * 4


def test_host_memory(directory: Path) -> None:
    """Beyond what stays: a part as stored, as asked for and turned, with the mask of finite values.

    On a CPU the devices' memory is the host's; what is still there in the end is theirs.
    """
    config = hf.load_config(directory)
    shardings = target_shardings(make_mesh(1, 8), config)
    hf.load_params(directory, config, shardings=shardings)  # imports and caches
    tracemalloc.start()
    try:
        params = hf.load_params(directory, config, shardings=shardings)
        stays, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert peak - stays < largest / 2


@pytest.mark.parametrize("sizes", [(2, 4), (8, 1)])
def test_experts(tmp_path: Path, sizes: tuple[int, int], parts_read: list[tuple[str, int]]) -> None:
    """Stacked from tensors of their own, of which each device reads its part of the width."""
    config, _, wanted = tiny_transformer(**FAMILIES["qwen3_moe"])
    write_hf(tmp_path, stored_tensors(config, wanted), 3, **config_to_hf(config, "float32"))
    assert hf.load_config(tmp_path) == config
    shardings = target_shardings(make_mesh(*sizes), config)
    found = hf.load_params(tmp_path, config, shardings=shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == shardings
    assert_same_bits(found, wanted)
    parts = [size for name, size in parts_read if name == "model.layers.2.mlp.experts.7.down_proj.weight"]
    assert parts == [24 * 32 // sizes[1]] * sizes[1]


def test_gguf(tmp_path: Path) -> None:
    """A format that is read tensor by tensor."""
    metadata = byte_level_metadata("gpt-2")
    config, _, params = tiny_transformer(vocab_size=len(metadata["tokenizer.ggml.tokens"]))
    path = write_gguf(tmp_path / "tiny.gguf", config, stored_tensors(config, params), metadata=metadata)
    mesh = make_mesh(4, 2)
    found = load_target(str(path), mesh=mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, found.params) == target_shardings(mesh, found.config)
    assert_same_bits(found.params, params)


class TestByName:
    @staticmethod
    def write(folder: Path) -> ModelConfig:
        config, _, params = tiny_transformer(vocab_size=260)
        save(folder, {})
        write_hf(folder, stored_tensors(config, params), 8, vocab_size=260)
        return config

    def test_mesh(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        mesh = make_mesh(4, 2)
        found = load_target(str(tmp_path), "bfloat16", mesh=mesh)
        assert found.mesh is mesh
        assert jax.tree.map(lambda leaf: leaf.sharding, found.params) == target_shardings(mesh, found.config)
        assert_same_bits(found.params, load_target(str(tmp_path), "bfloat16").params)

    def test_mesh_and_place(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        with pytest.raises(ValueError, match="either by `place` or on a mesh, got both"):
            load_target(str(tmp_path), mesh=make_mesh(1, 2), place=lambda _, value: value)

    def test_broken_part(self, tmp_path: Path) -> None:
        config, _, params = tiny_transformer()
        tensors = stored_tensors(config, params)
        broken = tensors["model.layers.1.mlp.down_proj.weight"].copy()
        broken[3, 60] = np.nan
        write_hf(tmp_path, {**tensors, "model.layers.1.mlp.down_proj.weight": broken}, 8)
        shardings = target_shardings(make_mesh(1, 2), config)
        with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.down_proj\.weight holds 1 values of 1024"):
            hf.load_params(tmp_path, config, shardings=shardings)


def test_part_of_a_head() -> None:
    """The head size is never cut by the rules; a rule that did would be told that files cannot be read so."""
    spec = target_tensors(CONFIG)["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(ValueError, match=r"q_proj/kernel \(64, 8, 16\) is not stored in parts such as"):
        spec.part((slice(None), slice(None), slice(0, 8)))
