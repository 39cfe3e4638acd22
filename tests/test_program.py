"""What kind of program decoding is: compiled once, without a callback, without a copy of the cache."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.extend import core

from eagle_jax.cache import commit
from eagle_jax.continuous import BatchState, replace_rows
from eagle_jax.decode import Models, Rule, decode, empty_state, prefill
from eagle_jax.drafters import make_chain, make_eagle3, make_one_pass, make_prompt_lookup, make_vanilla
from eagle_jax.drafters.base import Drafter
from eagle_jax.generator import Generator
from eagle_jax.models.block_head import make_block_head
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import KVCache, Params, Target, TargetOutput
from experiments.scaling.hlo import read_module
from experiments.scaling.launches import Sizes, count_call
from tests.compilations import AS_SHIPPED, count_compilations
from tests.drafts import make_oracle

CAPACITY = 64


class TestOneProgram:
    def test_only_another_shape_compiles(self) -> None:
        """Not another call, prompt length, temperature, seed, masks, stop id, limit, nor another checkpoint."""
        _, target, params = tiny_transformer(num_layers=1)
        _, same, others = tiny_transformer(seed=1, num_layers=1)
        assert same is target
        drafter = make_chain(target, 3)
        first = Generator(target, params, drafter, params, capacity=CAPACITY, prefill_chunk=16)
        second = Generator(target, others, drafter, params, capacity=CAPACITY, prefill_chunk=16)
        first.generate([[1, 2], [3]], max_new_tokens=8)
        settings: list[dict[str, Any]] = [
            {},
            {"temperature": 1.0},
            {"temperature": [0.0, 0.7], "seed": 3, "top_p": 0.9, "top_k": 3, "min_p": 0.1},
            {"stop_ids": (5,), "sequence": (90, 91)},
            {"max_new_tokens": 21},
        ]
        with count_compilations() as compiled:
            for chosen in settings:
                for generator in (first, second):
                    generator.generate([[4] * 20, [1, 2, 3]], **{"max_new_tokens": 8, **chosen})
        assert compiled == []

    def test_a_generator_that_was_replaced(self) -> None:
        """It shares weights and programs with the first; another capacity compiles, the first one's does not."""
        _, target, params = tiny_transformer(num_layers=1)
        first = Generator(target, params, make_chain(target, 3), params, capacity=2 * CAPACITY, prefill_chunk=16)
        second = dataclasses.replace(first, capacity=CAPACITY)
        second.generate([[1, 2], [3]], max_new_tokens=8)
        third = dataclasses.replace(second, rule="match")
        with count_compilations() as compiled:
            third.generate([[1, 2], [3]], max_new_tokens=8)
        assert compiled == []
        with count_compilations() as compiled:
            first.generate([[1, 2], [3]], max_new_tokens=8)
        assert compiled != []
        for one, other in zip(jax.tree.leaves(first.models), jax.tree.leaves(third.models), strict=True):
            assert one is other

    def test_the_count_counts(self) -> None:
        with count_compilations() as compiled:
            jax.jit(lambda x: x * 3)(jnp.ones(7))
        assert compiled != []

    def test_streaming_runs_the_same_program(self) -> None:
        _, target, params = tiny_transformer(num_layers=1)
        generator = Generator(target, params, make_prompt_lookup(), capacity=CAPACITY, prefill_chunk=16)
        generator.generate([[1, 2], [3]], max_new_tokens=8)
        with count_compilations() as compiled:
            list(generator.stream([[4, 4, 4], [5]], rounds_per_call=2, max_new_tokens=8))
        assert compiled == []


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Every equation, those of inner jaxprs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else [value]:
                if isinstance(inner, core.ClosedJaxpr):
                    inner = inner.jaxpr
                if isinstance(inner, core.Jaxpr):
                    yield from equations(inner)


def _leaves_the_device(jaxpr: core.ClosedJaxpr) -> set[str]:
    names = {equation.primitive.name for equation in equations(jaxpr.jaxpr)}
    return {name for name in names if re.search("callback|debug|infeed|outfeed|print", name)}


def _arguments(models: Models, batch: int, capacity: int) -> list[Any]:
    """Arguments of `decode`; the state by its shapes alone."""
    sampling = make_sampling(batch, temperature=1.0, top_k=5, top_p=0.9, stop_ids=(3,))
    text, lengths = jnp.zeros((batch, capacity), jnp.int32), jnp.ones(batch, jnp.int32)
    state = jax.eval_shape(functools.partial(prefill, chunk=8), models, text, lengths, sampling)
    return [models, state, sampling, 100]


class TestProgram:
    @pytest.mark.parametrize("rule", ["match", "residual"])
    def test_nothing_leaves_the_device(self, rule: Rule) -> None:
        _, target, params = tiny_transformer()
        arguments = _arguments(Models(target, make_chain(target, 3), params, params), 2, 32)
        run = functools.partial(decode, rule=rule, share_noise=rule == "match")
        jaxpr = jax.make_jaxpr(run)(*arguments)
        assert {"while", "scan"} <= {equation.primitive.name for equation in equations(jaxpr.jaxpr)}
        assert _leaves_the_device(jaxpr) == set()

    def test_the_search_finds_what_it_looks_for(self) -> None:
        """A print in a cond in a scan in a while loop is seen."""

        def step(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            def show() -> jax.Array:
                jax.debug.print("{}", carry)
                return carry + 1

            return jax.lax.cond(carry > 2, show, lambda: carry + 1), None

        def run(x: jax.Array) -> jax.Array:
            return jax.lax.while_loop(lambda c: c < 9, lambda c: jax.lax.scan(step, c, None, length=2)[0], x)

        assert _leaves_the_device(jax.make_jaxpr(jax.jit(run))(jnp.int32(0))) != set()


def _stacked(target: Target) -> Target:
    """The same model with the caches of all layers in one array [L, B, S, K, D], as many frameworks keep them."""

    def forward(
        params: Params, tokens: jax.Array, positions: jax.Array, cache: KVCache, block_mask: jax.Array
    ) -> TargetOutput:
        return target.forward(params, tokens, positions, _unstacked(cache), block_mask)

    def init_cache(batch: int, capacity: int, dtype: Any = "float32") -> KVCache:
        return _restacked(target.init_cache(batch, capacity, dtype))

    return target._replace(forward=forward, init_cache=init_cache)


def _unstacked(cache: KVCache) -> KVCache:
    return cache.replace(keys=tuple(cache.keys[0]), values=tuple(cache.values[0]))


def _restacked(cache: KVCache) -> KVCache:
    return cache.replace(keys=(jnp.stack(cache.keys),), values=(jnp.stack(cache.values),))


def _stacked_commit(cache: KVCache, keys: Any, values: Any, path: jax.Array, count: jax.Array) -> KVCache:
    """`commit`, layer after layer into the one array."""
    after = commit(_unstacked(cache), keys, values, path, count)
    stacked_keys, stacked_values = cache.keys[0], cache.values[0]
    for layer, (new_keys, new_values) in enumerate(zip(after.keys, after.values, strict=True)):
        stacked_keys = stacked_keys.at[layer].set(new_keys)
        stacked_values = stacked_values.at[layer].set(new_values)
    return KVCache(keys=(stacked_keys,), values=(stacked_values,), length=after.length)


def _transposing_commit(cache: KVCache, keys: Any, values: Any, path: jax.Array, count: jax.Array) -> KVCache:
    """`commit`, after which the keys of one layer are put into another order and back."""
    after = commit(cache, keys, values, path, count)
    turned = jax.lax.optimization_barrier(after.keys[0].swapaxes(1, 2) + 0.5)
    return after.replace(keys=(turned.swapaxes(1, 2) - 0.5, *after.keys[1:]))


IN_PLACE = {"parameter", "get-tuple-element", "bitcast", "fusion", "scatter", "dynamic-update-slice"}
"""What may yield an array as large as a cache in the optimized program. The inside of a fusion is listed as well."""


def _copies(target: Target, params: Params, drafter: Drafter, drafts: Params, batch: int, slots: int) -> list[str]:
    """Signs in the compiled decode program that a whole cache array (one layer's keys or values) is written anew."""
    arguments = _arguments(Models(target, drafter, params, drafts), batch, slots)
    return _signs_of_copies(decode.lower(*arguments), batch * slots * 2 * 8)


def _signs_of_copies(lowered: jax.stages.Lowered, cache_size: int) -> list[str]:
    program = lowered.compile(AS_SHIPPED)
    found = re.findall(r"= \w+\[([\d,]+)\]\S* ([\w-]+)\(", program.as_text())
    signs = [op for dims, op in found if math.prod(map(int, dims.split(","))) >= cache_size and op not in IN_PLACE]
    # A fusion may write a cache anew, in a round or at the start and the end of a call; in place it writes a part.
    outside, step = count_call(read_module(program.as_text()), Sizes(frozenset({cache_size}), frozenset()))
    signs += ["cache written in full"] * sum(work.rewrites["caches"] for work in (outside, step) if work)
    too_much = program.memory_analysis().temp_size_in_bytes >= 2 * cache_size
    return signs + ["temporary memory"] * too_much


class TestCopies:
    """No round copies a cache: cost must follow what was written, not the capacity."""

    SLOTS = 8192

    @pytest.mark.parametrize("batch", [1, 8])
    @pytest.mark.parametrize("nodes", [1, 8, 60])
    def test_trees(self, nodes: int, batch: int) -> None:
        _, target, params = tiny_transformer(num_layers=2)
        drafts = (jnp.zeros((batch, self.SLOTS), jnp.int32), jnp.zeros(batch, jnp.int32))
        drafter = {1: make_vanilla(), 8: make_oracle(64, 3, 2, unused=1), 60: make_oracle(64, 7, 8, unused=3)}[nodes]
        assert drafter.nodes == nodes
        assert _copies(target, params, drafter, drafts, batch, self.SLOTS) == []

    def test_cache_of_a_draft_model(self) -> None:
        _, target, params = tiny_transformer(num_layers=2)
        assert _copies(target, params, make_chain(target, 3), params, 2, self.SLOTS) == []

    def test_cache_of_a_draft_head(self) -> None:
        config, target, params = tiny_transformer(num_layers=2)
        head = make_head(HeadConfig(kind="eagle3", layer=config, feature_width=3 * config.width), target)
        weights = HeadParams(weights=nn.unbox(head.init(jax.random.key(0))))
        assert _copies(target, params, make_eagle3(head, 8, 2, 3), weights, 2, self.SLOTS) == []

    def test_caches_of_a_one_pass_head(self) -> None:
        config, target, params = tiny_transformer(num_layers=2)
        sizes = {"feature_width": 3 * config.width, "num_layers": 2, "block": 4, "edge_rank": 4}
        head = make_block_head(
            HeadConfig(kind="one_pass", layer=dataclasses.replace(config, num_layers=1), **sizes), target
        )
        weights = HeadParams(weights=nn.unbox(head.init(jax.random.key(0))))
        assert _copies(target, params, make_one_pass(head, 8, 3, 3), weights, 2, self.SLOTS) == []

    @pytest.mark.parametrize("group", [1, 4])
    def test_rows_that_take_the_next_prompts(self, group: int) -> None:
        """They are written into the caches of the batch, and those of the other rows stay in place."""
        _, target, _ = tiny_transformer(num_layers=2)

        def rows(count: int) -> BatchState:
            text, lengths = jnp.zeros((count, self.SLOTS), jnp.int32), jnp.ones(count, jnp.int32)
            state = jax.eval_shape(
                functools.partial(empty_state, target, make_vanilla(), dtype="float32"), text, lengths
            )
            return state, make_sampling(count)

        lowered = replace_rows.lower(rows(8), rows(group), jnp.zeros(group, jnp.int32), None)
        assert _signs_of_copies(lowered, 8 * self.SLOTS * 2 * 8) == []

    @pytest.mark.parametrize("batch", [1, 8])
    def test_transposed_keys_are_caught(self, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
        """Of one layer, and in a fusion, which may yield an array as large as a cache."""
        _, target, params = tiny_transformer(num_layers=2)
        monkeypatch.setattr("eagle_jax.decode.commit", _transposing_commit)
        signs = _copies(target, params, make_vanilla(), (), batch, self.SLOTS)
        assert "cache written in full" in signs

    @pytest.mark.parametrize("batch", [1, 8])
    def test_a_stacked_cache_is_caught(self, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
        """Both signs: an instruction that copies, and the memory to copy to."""
        _, target, params = tiny_transformer(num_layers=2)
        monkeypatch.setattr("eagle_jax.decode.commit", _stacked_commit)
        signs = _copies(_stacked(target), params, make_vanilla(), (), batch, self.SLOTS)
        assert len(set(signs)) >= 2
        assert "temporary memory" in signs
