"""Kernels, waits and copies counted in the text of a program: by hand on a small one, and as compiled for an H200."""

import dataclasses
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from configs.targets.shapes import TARGETS
from eagle_jax import sharding
from eagle_jax.accelerators import GPUS
from eagle_jax.platforms import compiling_for
from experiments.cli import launch
from experiments.scaling import compile as script
from experiments.scaling.chips import CUDA_PLUGINS, get_topology
from experiments.scaling.gpu_cost import LAUNCH, OPTIONS, bound_of, count_launches, estimate_of, extrapolated
from experiments.scaling.hlo import Array, read_module
from experiments.scaling.launches import Sizes, count_call
from experiments.scaling.programs import PROGRAMS, make_shapes
from tests.experiments.test_compile import setting

CAN_COMPILE = any(map(importlib.util.find_spec, CUDA_PLUGINS))
needs_plugin = pytest.mark.skipif(not CAN_COMPILE, reason="no CUDA plugin of jax is installed (extra gpu_compile)")

HLO = """
HloModule jit_decode, is_scheduled=true

%update (p.0: bf16[1,8,4], p.1: bf16[1,1,4], p.2: s32[]) -> bf16[1,8,4] {
  %p.0 = bf16[1,8,4]{2,1,0} parameter(0)
  %p.1 = bf16[1,1,4]{2,1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %dus = bf16[1,8,4]{2,1,0} dynamic-update-slice(%p.0, %p.1, %zero, %p.2, %zero)
}

%product (a: bf16[1,8,4], b: bf16[4,16]) -> f32[8,16] {
  %a = bf16[1,8,4]{2,1,0} parameter(0)
  %flat = bf16[8,4]{1,0} bitcast(%a)
  %b = bf16[4,16]{1,0} parameter(1)
  ROOT %dot = f32[8,16]{1,0} dot(%flat, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%transposed (c: bf16[1,8,4]) -> bf16[1,4,8] {
  %c = bf16[1,8,4]{2,1,0} parameter(0)
  ROOT %t = bf16[1,4,8]{2,1,0} transpose(%c), dimensions={0,2,1}
}

%greedy (g: f32[8,16]) -> s32[8] {
  %g = f32[8,16]{1,0} parameter(0)
  ROOT %first = s32[8]{0} custom-call(%g), custom_call_target="argmax", metadata={op_name="jit(d)/verify/argmax"}
}

%sampled (h: f32[8,16]) -> s32[8] {
  %h = f32[8,16]{1,0} parameter(0)
  %noisy = f32[8,16]{1,0} add(%h, %h), metadata={op_name="jit(d)/while/body/verify/cond/add"}
  ROOT %second = s32[8]{0} custom-call(%noisy), custom_call_target="argmax"
}

%body (s: (bf16[1,8,4], bf16[4,16], s32[])) -> (bf16[1,8,4], bf16[4,16], s32[]) {
  %s = (bf16[1,8,4]{2,1,0}, bf16[4,16]{1,0}, s32[]) parameter(0)
  %cache = bf16[1,8,4]{2,1,0} get-tuple-element(%s), index=0
  %weight = bf16[4,16]{1,0} get-tuple-element(%s), index=1
  %step = s32[] get-tuple-element(%s), index=2
  %gemm = f32[8,16]{1,0} fusion(%cache, %weight), kind=kCustom, calls=%product, metadata={op_name="d/target/dot"}, \
backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
  %choice = s32[8]{0} conditional(%step, %gemm, %gemm), branch_computations={%greedy, %sampled}
  %new = bf16[1,1,4]{2,1,0} dynamic-slice(%cache, %step, %step, %step), dynamic_slice_sizes={1,1,4}
  %grown = bf16[1,8,4]{2,1,0} fusion(%cache, %new, %step), kind=kLoop, calls=%update, \
metadata={op_name="jit(d)/while/body/commit/scatter"}
  ROOT %out = (bf16[1,8,4]{2,1,0}, bf16[4,16]{1,0}, s32[]) tuple(%grown, %weight, %step)
}

%condition (s.1: (bf16[1,8,4], bf16[4,16], s32[])) -> pred[] {
  %s.1 = (bf16[1,8,4]{2,1,0}, bf16[4,16]{1,0}, s32[]) parameter(0)
  %step.1 = s32[] get-tuple-element(%s.1), index=2
  ROOT %less = pred[] compare(%step.1, %step.1), direction=LT
}

ENTRY %main (cache.1: bf16[1,8,4], weight.1: bf16[4,16]) -> bf16[1,4,8] {
  %cache.1 = bf16[1,8,4]{2,1,0} parameter(0)
  %weight.1 = bf16[4,16]{1,0} parameter(1)
  %start = s32[] constant(0)
  %carry = (bf16[1,8,4]{2,1,0}, bf16[4,16]{1,0}, s32[]) tuple(%cache.1, %weight.1, %start)
  %loop = (bf16[1,8,4]{2,1,0}, bf16[4,16]{1,0}, s32[]) while(%carry), condition=%condition, body=%body
  %last = bf16[1,8,4]{2,1,0} get-tuple-element(%loop), index=0
  ROOT %back = bf16[1,4,8]{2,1,0} fusion(%last), kind=kInput, calls=%transposed
}
"""
SIZES = Sizes(caches=frozenset({32}), weights=frozenset({64}))


def test_instructions() -> None:
    module = read_module(HLO)
    assert module.entry == "main"
    gemm = module.computations["body"]["gemm"]
    assert gemm.arrays == (Array("f32", (8, 16)),)
    assert gemm.bytes == 512
    assert (gemm.opcode, gemm.operands) == ("fusion", ("cache", "weight"))
    assert gemm.words == ["d", "target", "dot"]
    assert module.root("update").operands[:2] == ("p.0", "p.1")
    loop = module.computations["main"]["loop"]
    assert [array.bytes for array in loop.arrays] == [64, 128, 4]
    assert loop.computations("body", "condition") == ["body", "condition"]
    assert module.computations["body"]["choice"].computations("branch_computations") == ["greedy", "sampled"]
    with pytest.raises(ValueError, match="no entry computation"):
        read_module("HloModule empty")


def test_counts_by_hand() -> None:
    """A round: product, argmax, slice, update and the loop's condition; the update writes 8 bytes in place."""
    outside, step = count_call(read_module(HLO), SIZES)
    assert step is not None
    assert (step.kernels, step.host_reads, step.loops) == (5, 1, 0)
    assert step.launches == {"target": 1, "verify": 2, "commit": 2}  # what has no name is part of what was before it
    assert step.flops == 2 * 8 * 16 * 4
    assert step.bytes["commit"] == 8 + 8 + 4 + 5  # the part, written and read, and where; the condition
    assert step.products == {"triton": 1}
    assert dict(step.rewrites) == {"caches": 0, "weights": 0}
    assert outside.kernels == 1
    assert outside.rewrites["caches"] == 1
    _, sampled = count_call(read_module(HLO), SIZES, sampled=True)
    assert sampled is not None
    assert sampled.kernels == 6


def test_loops_of_known_length_count_as_often_as_they_run() -> None:
    known = HLO.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    outside, step = count_call(read_module(known), SIZES)
    assert step is None
    assert outside.kernels == 3 * 4 + 1  # without the condition
    assert outside.host_reads == 3


def test_a_part_that_is_read() -> None:
    """Of a cache that is sliced within a kernel the slice counts."""
    sliced = HLO.replace(
        "%flat = bf16[8,4]{1,0} bitcast(%a)",
        "%some = bf16[1,2,4]{2,1,0} slice(%a), slice={[0:1], [0:2], [0:4]}\n  %flat = bf16[2,4]{1,0} bitcast(%some)",
    )
    _, step = count_call(read_module(sliced), SIZES)
    assert step is not None
    assert step.bytes["target"] == 512 + 128 + 16  # result, weight, slice


def test_bounds() -> None:
    row = {"flops": 1e9, "least_bytes": 4.8e9, "kernels": 100, "moved_bytes": {"target": 9.6e9}}
    assert bound_of("h200", row) == pytest.approx(1e-3 + 100 * LAUNCH)
    assert estimate_of("h200", row) == pytest.approx(2e-3 + 100 * LAUNCH)
    assert bound_of("h100", row) == pytest.approx(4.8 / 3350 + 100 * LAUNCH)
    assert bound_of("h200", {**row, "flops": 989e12}) == pytest.approx(1 + 100 * LAUNCH)


def test_extrapolation() -> None:
    few, more = {"kernels": 10, "by": {"a": 1.0}, "fits": True}, {"kernels": 13, "by": {"a": 1.5, "b": 2}, "fits": True}
    assert extrapolated(few, more, 10) == {"kernels": 40, "by": {"a": 6.0, "b": 20}, "fits": True}


def test_gpu_without_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'CUDA plugin of jax, which is not installed: \S+ -m pip install "jax'):
        get_topology("h200:1")


def test_layers_of_another_device(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--topology=cpu:8", "--mesh=1x8", "--from_layers=3"]
    assert launch.call(script.main, script.FLAGS, flags) == launch.USER_ERROR
    assert "--from_layers=3 extrapolates programs for TPUs and GPUs" in capsys.readouterr().err


@needs_plugin
class TestH200:
    """Compiled for an H200 that is not there, with a target large enough for matrix products."""

    @pytest.fixture(autouse=True)
    def without_stored_programs(self) -> Iterator[None]:
        """They cannot be read back without the device."""
        before = jax.config.jax_enable_compilation_cache
        jax.config.update("jax_enable_compilation_cache", False)
        yield
        jax.config.update("jax_enable_compilation_cache", before)

    @pytest.fixture
    def traced_anew(self) -> Iterator[None]:
        """What was traced before does not know what a test changes, nor may what comes after it."""
        jax.clear_caches()
        yield
        jax.clear_caches()

    def counted(self, name: str, **changes: int) -> dict:
        given = setting(split_head=False)
        sizes = {"width": 512, "mlp_width": 1024, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64, "num_layers": 2}
        target = dataclasses.replace(given.target, vocab_size=2048, max_positions=4096, **sizes)
        given = dataclasses.replace(given, target=target, **{"batch": 1, "context": 640, **changes})
        mesh = sharding.make_mesh(1, 1, list(get_topology("h200:1").devices))
        with compiling_for("gpu"):
            shapes = make_shapes(given, mesh)
            with sharding.active(mesh):
                lowered = PROGRAMS[name](shapes, given, mesh)
        text = lowered.compile(OPTIONS).as_text()
        return count_launches(name, text or "", shapes)

    @pytest.mark.parametrize("name", ["plain", "decode"])
    @pytest.mark.parametrize("changes", [{}, {"batch": 4}, {"context": 4096}])
    def test_lean_rounds(self, name: str, changes: dict[str, int]) -> None:
        """One host read a round, no cache or weight written, products of one row and of many by the same means."""
        row = self.counted(name, **changes)
        assert row["host_reads"] == 1
        assert row["sampled"]["host_reads"] == 4
        assert row["rewrites"] == {"caches": 0, "weights": 0}
        assert set(row["products"]) == {"triton"}
        assert row["call_kernels"] <= 1

    def test_a_transposed_cache_is_seen(self, monkeypatch: pytest.MonkeyPatch, traced_anew: None) -> None:
        """Slots first, as on a CPU, which a batch of rows pays for."""
        monkeypatch.setattr("eagle_jax.cache.HEADS_FIRST", ())
        assert self.counted("decode", batch=4)["rewrites"]["caches"] > 0

    def test_a_loop_over_the_prefix_is_seen(self, monkeypatch: pytest.MonkeyPatch, traced_anew: None) -> None:
        """Blocks as on a CPU: the host waits in every layer."""
        monkeypatch.setattr("eagle_jax.models.attention.platform", lambda: "cpu")
        assert self.counted("plain")["host_reads"] > 1

    def test_script(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        long = dataclasses.replace(setting(split_head=False).target, num_layers=6)
        monkeypatch.setitem(TARGETS, "long", TARGETS["llama3-8b"]._replace(config=long))
        output = tmp_path / "rows.jsonl"
        flags = ["--target_config=long", "--topology=h200:1", "--mesh=1x1", "--context=128", "--programs=plain"]
        rows = []
        for more in ([], ["--from_layers=3"]):
            output.unlink(missing_ok=True)
            assert launch.call(script.main, script.FLAGS, [*flags, *more, f"--output={output}"]) == 0
            rows.append(json.loads(output.read_text()))
        assert rows[0]["kernels"] == rows[1]["kernels"]
        assert rows[0]["bounds"].keys() == GPUS.keys()
        assert "| plain |" in capsys.readouterr().out
        assert "| long, eagle3, 1 x 128, plain |" in script.summary(output)


@needs_plugin
def test_eight_gpus() -> None:
    assert len(get_topology("h200:8").devices) == 8


def test_loops_in_what_jax_compiles() -> None:
    """A loop of run-time length around one of fixed length, compiled for this machine."""

    def run(x: jax.Array, steps: jax.Array) -> jax.Array:
        return lax.fori_loop(0, steps, lambda _, y: lax.fori_loop(0, 5, lambda _, z: jnp.sin(z) @ z, y), x)

    text = jax.jit(run).lower(jnp.ones((64, 64)), jnp.int32(3)).compile().as_text()
    _, step = count_call(read_module(text or ""), Sizes(frozenset(), frozenset()))
    assert step is not None
    assert step.kernels >= 5
    assert step.flops == 5 * 2 * 64**3
