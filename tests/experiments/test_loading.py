"""Host memory of loading: the checkpoint that is written can be read, and what was held is what the weights take."""

import dataclasses
import json
from pathlib import Path

import pytest

from configs.targets.shapes import get_target
from eagle_jax.checkpoint import hf
from experiments.bench import loading
from experiments.cli import launch

MIB = 2**20


def test_memory(tmp_path: Path) -> None:
    small = {"num_layers": 2, "vocab_size": 4096, "width": 2048, "mlp_width": 8192, "num_heads": 16, "num_kv_heads": 8}
    config = dataclasses.replace(get_target("qwen3-0.6b"), **small)
    loading.write_checkpoint(tmp_path, config, "bfloat16", 3)
    files = set(json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert files == {path.name for path in tmp_path.glob("*.safetensors")}
    assert len(files) == 3
    assert hf.load_config(tmp_path) == config
    weights, stays, beyond, largest, seconds = loading.measure(str(tmp_path), "float32", "1x2")
    layer = 2048 * (2 * 16 + 2 * 8) * 128 + 3 * 2048 * 8192 + 2 * 2048 + 2 * 128
    assert weights == pytest.approx((2 * layer + 4096 * 2048 + 2048) * 4 / MIB)
    assert largest == 2048 * 8192 * 4 / MIB
    assert 0.98 * weights < stays < weights + 3 * largest
    assert 0 <= beyond < 2 * largest
    assert seconds > 0


def test_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.call(loading.main, loading.FLAGS, ["--dtypes=float32,int8"]) == 2
    assert launch.call(loading.main, loading.FLAGS, ["--mesh=1x16"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "error: --dtypes takes float32, bfloat16, float16, got int8"
    assert "a mesh of 1x16 takes 16 devices, there are 8" in said[1]
