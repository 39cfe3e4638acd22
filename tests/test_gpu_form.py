"""The form that programs have on GPUs, run on a CPU: the same tokens, caches with heads first, a reach that grows."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from eagle_jax import cache as caches
from eagle_jax.cache import commit, init_cache, reach_of, with_reach
from eagle_jax.continuous import write_all
from eagle_jax.decode import decode
from eagle_jax.drafters import make_chain, make_eagle3, make_lookahead, make_one_pass, make_prompt_lookup, make_vanilla
from eagle_jax.drafters.base import Drafter
from eagle_jax.generator import Generator
from eagle_jax.models import attention
from eagle_jax.models.attention import Prefix, attend
from eagle_jax.models.block_head import make_block_head
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.models.transformer import make_target
from eagle_jax.platforms import compiling_for, platform
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import Params
from tests.compilations import count_compilations

CONFIG, _, PARAMS = tiny_transformer(num_layers=2)
TARGET = make_target(CONFIG)
BLOCK: dict[str, Any] = {"num_layers": 2, "block": 4, "edge_rank": 3}
"""Of the one-pass head."""
PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [9, 8, 7] * 6]


@pytest.fixture
def short_reaches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Texts of these tests then outgrow one reach after the other."""
    monkeypatch.setattr(caches, "SHORTEST_REACH", 16)
    with compiling_for("gpu"):
        yield


def drafter_of(name: str) -> tuple[Drafter, Params]:
    """One of each kind that has caches of its own, or none."""
    if name == "chain":
        return make_chain(TARGET, 3), tiny_transformer(seed=1, num_layers=2)[2]
    if name == "eagle3":
        head = make_head(HeadConfig(kind="eagle3", layer=CONFIG, feature_width=3 * CONFIG.width), TARGET)
        return make_eagle3(head, 8, 2, 3), HeadParams(weights=nn.unbox(head.init(jax.random.key(0))))
    if name == "one_pass":
        width = 3 * CONFIG.width
        block_head = make_block_head(HeadConfig(kind="one_pass", layer=CONFIG, feature_width=width, **BLOCK), TARGET)
        weights = HeadParams(weights=nn.unbox(block_head.init(jax.random.key(0))))
        return make_one_pass(block_head, 8, 2, 3), weights
    return {"vanilla": make_vanilla, "prompt_lookup": make_prompt_lookup, "lookahead": make_lookahead}[name](), ()


def generator_of(name: str, **options: Any) -> Generator:
    drafter, weights = drafter_of(name)
    return Generator(TARGET, PARAMS, drafter, weights, prefill_chunk=8, **options)


def test_platform_of_a_context() -> None:
    assert platform() == jax.default_backend()
    with compiling_for("gpu"):
        assert platform() == "gpu"
    assert platform() == jax.default_backend()


@pytest.mark.parametrize("name", ["vanilla", "chain", "eagle3", "one_pass", "prompt_lookup", "lookahead"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_same_tokens(name: str, temperature: float, short_reaches: None) -> None:
    """Rows of different length, through reaches of 32, 64 and all slots."""
    sampling: dict[str, Any] = {"temperature": temperature, "max_new_tokens": 60, "seed": 2}
    in_gpu_form = generator_of(name, capacity=96).generate(PROMPTS, **sampling)
    with compiling_for("cpu"):
        plain = generator_of("vanilla", capacity=96).generate(PROMPTS, **sampling)
    assert in_gpu_form.tokens == plain.tokens
    assert in_gpu_form.complete


def test_streaming_and_batches(short_reaches: None) -> None:
    """Rounds called a few at a time, and rows that take the next prompts."""
    prompts = [[token, token + 1, 5] for token in range(5)]
    generator = generator_of("chain", capacity=96)
    *_, last = generator.stream(prompts, rounds_per_call=3, max_new_tokens=40)
    with compiling_for("cpu"):
        plain = generator_of("vanilla", capacity=96).generate(prompts, max_new_tokens=40)
    assert last.tokens == plain.tokens
    assert write_all(generator, prompts, batch=2, max_new_tokens=40).tokens == plain.tokens


def test_warm_up_compiles_every_reach(short_reaches: None) -> None:
    generator = generator_of("vanilla", capacity=96)
    generator.generate(PROMPTS, max_new_tokens=1)  # what reads an answer, compiled as well
    generator.warm_up(PROMPTS, max_new_tokens=60)
    with count_compilations() as compiled:
        generator.generate(PROMPTS, max_new_tokens=60)
    assert compiled == []


def test_rounds_end_where_the_reach_does(short_reaches: None) -> None:
    """A call reads no further, and the next one goes on."""
    generator = generator_of("vanilla", capacity=96)
    settings = generator.check(PROMPTS, max_new_tokens=60)
    state = generator.start(PROMPTS, settings)
    state = decode(generator.models, state, settings, 1000, reach=32)
    assert int(state.cache.length.max()) == 32
    assert not state.done.any()
    assert state.cache.reach is None
    assert generator.finish(state, settings).done.all()


def test_slots_beyond_the_reach_are_not_read() -> None:
    """NaN there shows in no output."""
    cache = init_cache(1, 1, 64, CONFIG.num_kv_heads, CONFIG.head_dim, jnp.dtype("float32"), heads_first=True)
    dirty = tuple(array.at[:, :, 32:].set(jnp.nan) for array in cache.keys)
    cache = dataclasses.replace(cache, keys=dirty, values=dirty, length=jnp.asarray([20]))
    keys, values = with_reach(cache, 32).layer(0)
    assert keys.shape == (1, 32, CONFIG.num_kv_heads, CONFIG.head_dim)
    assert not jnp.isnan(jnp.stack([keys, values])).any()
    assert jnp.isnan(cache.layer(0)[0]).any()


@pytest.mark.parametrize(
    ("needed", "capacity", "reach"), [(1, 4096, 512), (512, 4096, 512), (513, 4096, 1024), (2049, 4096, None)]
)
def test_reaches(needed: int, capacity: int, reach: int | None) -> None:
    assert reach_of(needed, capacity) == reach
    assert reach_of(1, 512) is None


@pytest.mark.parametrize("width", [1, 3])
def test_commit_with_heads_first(width: int) -> None:
    """The same slots hold the same numbers in both orders, those of dropped rows too."""
    rng = np.random.default_rng(0)
    new = tuple(jnp.asarray(rng.normal(size=(4, 5, 2, 3)), jnp.float32) for _ in range(2))
    path = jnp.asarray(rng.integers(0, 5, (4, width)))
    count, length = jnp.asarray([0, 1, width, width]), jnp.asarray([3, 5, 0, 7])
    layers = []
    for heads_first in (False, True):
        cache = init_cache(2, 4, 8, 2, 3, jnp.dtype("float32"), heads_first)
        cache = commit(dataclasses.replace(cache, length=length), new, new, path, count)
        assert cache.capacity == 8
        layers.append(cache.layer(1))
    jax.tree.map(np.testing.assert_array_equal, *layers)


@pytest.mark.parametrize("window", [None, 5])
def test_attention_in_blocks_of_fixed_number(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """More scores than a GPU is given at a time: blocks, all of them, whatever the length."""
    rng = np.random.default_rng(0)
    queries, held = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((2, 3, 4, 8), (2, 2, 21, 2, 8)))
    new = queries[:, :, :2]
    prefix = Prefix(held[0], held[1], jnp.asarray([0, 17]))
    positions = prefix.length[:, None] + jnp.arange(3)[None, :]
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((3, 3), bool)), (2, 3, 3))
    expected = attend(queries, new, new, mask, prefix, positions, window=window, block=4)
    monkeypatch.setattr(attention, "SCORES", 1)
    monkeypatch.setattr(attention, "BLOCK", 4)
    with compiling_for("gpu"):
        assert attention.block_size(2 * 3 * 4) == 4
        lowered = jax.jit(lambda *given: attend(*given, window=window)).lower(
            queries, new, new, mask, prefix, positions
        )
        actual = lowered.compile()(queries, new, new, mask, prefix, positions)
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), atol=2e-6)
    assert attention.block_size(2 * 3 * 4) == 4  # a CPU has BLOCK
