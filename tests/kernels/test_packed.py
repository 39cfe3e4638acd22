"""The CPU kernel against float64, and packed weights against the plain ones they were made of."""

import gc
import math
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.drafters import make_eagle3, make_vanilla
from eagle_jax.generator import Generator
from eagle_jax.kernels import build
from eagle_jax.kernels.packed import PackedMatrix, pack, pack_matrices, pack_table, unpack
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.testing import tiny_transformer

needs_kernel = pytest.mark.skipif(not build.available(), reason="the CPU kernel is switched off or has no compiler")


def random(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(dtype)


def assert_product(actual: Any, x: np.ndarray, w: np.ndarray) -> None:
    """To the rounding of a float32 sum of K products, whatever its order: K eps times the sum of their sizes."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    bound = len(w) * np.finfo(np.float32).eps * (np.abs(x) @ np.abs(w))
    assert (np.abs(np.asarray(actual, np.float64) - x @ w) <= bound).all()


@needs_kernel
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 5), (33, 16), (64, 31), (129, 49), (96, 2080)])
def test_against_float64(dtype: Any, inputs: int, outputs: int) -> None:
    """Any number of rows, odd sizes, one thread (few weights) and several."""
    w = random(inputs, outputs, dtype=dtype)
    packed = pack_matrices([w])
    multiply = jax.jit(lambda packed, x: packed.multiply(x)[0])
    for rows in range(1, 71):
        x = random(rows, inputs, seed=rows)
        assert_product(multiply(packed, x), x, w.astype(np.float64))


@needs_kernel
def test_a_row_does_not_depend_on_its_company() -> None:
    """Bit for bit: a token's product is the same alone and among sixty-nine others."""
    packed, x = pack_matrices([random(80, 1600)]), random(70, 80)
    alone = np.concatenate([packed.multiply(x[row : row + 1])[0] for row in range(70)])
    for rows in (2, 8, 12, 13, 15, 16, 24, 31, 70):
        np.testing.assert_array_equal(packed.multiply(x[:rows])[0], alone[:rows])


@needs_kernel
def test_matrices_of_one_input_and_axes() -> None:
    """Outputs that fill no tile stand apart; inputs may have several axes."""
    matrices = [random(3, 8, 5, 2), random(3, 8, 17, seed=1), random(3, 8, 32, seed=2)]
    packed, x = pack_matrices(matrices, num_inputs=2), random(2, 4, 3, 8)
    for actual, matrix in zip(packed.multiply(x), matrices, strict=True):
        assert actual.shape == (2, 4, *matrix.shape[2:])
        assert_product(actual.reshape(8, -1), x.reshape(8, 24), matrix.reshape(24, -1))
    for actual, matrix in zip(packed.unpack(), matrices, strict=True):
        np.testing.assert_array_equal(actual, matrix)
    with pytest.raises(ValueError, match=r"inputs \(3, 8\) got \(2, 4, 8, 3\)"):
        packed.multiply(jnp.zeros((2, 4, 8, 3)))


@needs_kernel
def test_table() -> None:
    """A table scores hidden states and is looked up in the same tiles."""
    table, x = random(53, 24, dtype=jnp.bfloat16), random(3, 24)
    packed = pack_table(table)
    assert_product(packed.multiply(x)[0], x, table.T.astype(np.float64))
    ids = jnp.array([[0, 52], [16, 15]])
    np.testing.assert_array_equal(packed.rows(ids), table[np.asarray(ids)].astype(np.float32))
    np.testing.assert_array_equal(packed.unpack()[0], table)


@needs_kernel
@pytest.mark.parametrize("rows", [1, 2, 7, 12, 16, 40, 70])
def test_float32_weights_that_bfloat16_has(rows: int) -> None:
    """Half the bytes, the same bits: products, rows looked up, plain weights. One wider value keeps float32."""
    table = random(2100, 96).astype(jnp.bfloat16).astype(np.float32)
    wider = table.copy()
    wider[-1, -1] = np.float32(1.001)
    x = random(rows, 96)
    for weights in ([table.T, table[:33].T], [wider.T]):
        packed = pack_matrices(weights)
        narrow = len(weights) == 2
        assert (packed.tiles.dtype, packed.dtype) == (np.uint16 if narrow else np.float32, np.float32)
        for plain, matrix in zip(packed.unpack(), weights, strict=True):
            np.testing.assert_array_equal(plain, matrix)
            assert plain.dtype == np.float32
    one, other = pack_table(table), pack_table(wider)
    ids = jnp.arange(0, 2099, 77)
    np.testing.assert_array_equal(one.rows(ids), other.rows(ids))
    np.testing.assert_array_equal(one.multiply(x)[0][:, :-1], other.multiply(x)[0][:, :-1])


@needs_kernel
def test_refuses_misshapen_operands() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"takes x \[M, K\] and w \[tiles, K, 16\]"):
        jax.ffi.ffi_call(build.MATMUL, jax.ShapeDtypeStruct((1, 16), jnp.float32))(
            jnp.zeros((1, 3)), jnp.zeros((1, 4, 16))
        )


def head_of(config: Any, target: Any) -> tuple[Any, HeadParams]:
    head = make_head(HeadConfig(kind="eagle3", layer=config, feature_width=3 * config.width), target)
    weights = jax.tree.map(lambda box: box.unbox(), head.init(jax.random.key(1)), is_leaf=lambda x: hasattr(x, "unbox"))
    rows = jnp.asarray(random(20, config.width))
    return head, HeadParams(weights=weights, lm_head=rows, target_ids=jnp.arange(20))


def assert_same_trees(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@needs_kernel
@pytest.mark.parametrize(
    "options", [{}, {"tie_embeddings": True}, {"qkv_bias": True, "output_bias": True, "mlp_bias": True}]
)
def test_pack_and_back(options: dict[str, bool]) -> None:
    config, target, params = tiny_transformer(**options)
    head, weights = head_of(config, target)
    for plain, check in ((params, target.check), (weights, head.check)):
        packed = pack(plain)
        assert not any(leaf.ndim == 2 and min(leaf.shape) > 20 for leaf in jax.tree.leaves(packed))
        assert_same_trees(unpack(packed), plain)
        check(packed)
    broken = pack(params)
    del broken["layers_1"]["self_attn"]["q_proj+k_proj+v_proj"]
    with pytest.raises(ValueError, match="k_proj/kernel is missing there"):
        target.check(broken)


@needs_kernel
def test_release_uses_the_tree_up() -> None:
    """Memory then never holds all weights twice."""
    _, _, params = tiny_transformer()
    copy = jax.tree.map(jnp.array, params)
    packed = pack(copy, release=True)
    assert_same_trees(unpack(packed), params)
    assert "kernel" not in copy["layers_0"]["mlp"]["down_proj"]
    assert "lm_head" not in copy


@needs_kernel
def test_packed_once_for_all_generators() -> None:
    _, target, params = tiny_transformer(3)
    one, other = (Generator(target, params, make_vanilla()) for _ in range(2))
    assert all(a is b for a, b in zip(*(jax.tree.leaves(g.target_params) for g in (one, other)), strict=True))
    again = Generator(target, one.target_params, make_vanilla())
    assert all(a is b for a, b in zip(*(jax.tree.leaves(g.target_params) for g in (one, again)), strict=True))
    changed = {**params, "lm_head": params["lm_head"] + 1}
    assert Generator(target, changed, make_vanilla()).target_params["lm_head"] is not one.target_params["lm_head"]


@needs_kernel
def test_packed_weights_are_let_go() -> None:
    """What no generator holds is freed, though the plain weights are."""
    _, target, params = tiny_transformer(4)
    before = {id(x) for x in jax.live_arrays()}
    generator = Generator(target, params, make_vanilla())
    assert any(
        isinstance(x, PackedMatrix)
        for x in jax.tree.leaves(generator.target_params, is_leaf=lambda x: isinstance(x, PackedMatrix))
    )
    del generator
    gc.collect()
    assert {id(x) for x in jax.live_arrays() if x.ndim == 3 and x.shape[-1] == 16} <= before


@needs_kernel
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_generation_with_and_without(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text by packed and by plain weights of the same numbers; bfloat16 is then only how they are stored."""
    config, target, params = tiny_transformer(5, tie_embeddings=True)
    head, weights = head_of(config, target)
    stored = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, (params, weights))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, stored)
    prompts, sampling = [[5, 1, 5, 1], [7] * 9], {"temperature": [0.0, 1.0], "max_new_tokens": 24}
    packed = Generator(target, stored[0], make_eagle3(head, 8, 2, 3), stored[1]).generate(prompts, **sampling)
    with monkeypatch.context() as patch:
        patch.setattr(build, "available", lambda: False)
        plain = Generator(target, wide[0], make_eagle3(head, 8, 2, 3), wide[1]).generate(prompts, **sampling)
    assert packed.tokens == plain.tokens
    assert packed.rounds == plain.rounds


@needs_kernel
def test_concurrent_calls_end() -> None:
    """XLA runs independent calls at the same time: none may wait for a thread that another one occupies."""
    packed = [pack_matrices([random(128, 1024, seed=seed)]) for seed in range(4)]  # large enough for several threads

    @jax.jit
    def run(x: jax.Array) -> jax.Array:
        def step(_: Any, x: jax.Array) -> jax.Array:
            y = [one.multiply(x)[0][:, :128] for one in packed]
            return jnp.tanh(sum(y))

        return jax.lax.fori_loop(0, 1250, step, x)

    inputs = [random(3, 128, seed=seed) for seed in range(2)]
    expected = [np.asarray(run(x)) for x in inputs]
    actual: dict[int, Any] = {}
    started = time.monotonic()

    def work(index: int) -> None:
        actual[index] = np.asarray(run(inputs[index]))

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), f"stuck after {time.monotonic() - started:.0f} s"
    for index in range(2):
        np.testing.assert_array_equal(actual[index], expected[index])


def test_tiles_hold_no_more_than_the_weights() -> None:
    """But for the last tile of each matrix."""
    assert pack_matrices([random(24, 64)]).tiles.size == 24 * 64
    assert math.prod(pack_matrices([random(24, 65)]).tiles.shape) == 24 * 80
