"""Eight devices write what one writes, hold only their share, and send each other nothing but sums."""

import dataclasses
import functools
import logging
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from eagle_jax import sharding
from eagle_jax.decode import DecodeState, Rule, decode, prefill
from eagle_jax.drafters import make_vanilla
from eagle_jax.generator import Generation, Generator
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import tiny_transformer
from tests.compilations import count_compilations
from tests.test_conformance import CAPACITY, CONFIG, DRAFTERS, PARAMS, TARGET, Method, random_block_head, random_head

PROMPTS = [[5], [1, 2, 3, 1, 2], [*range(3, 20)], [7] * 33, [9, 9], [8, 1, 8, 1, 8], [39], [4, 6, 4]]
SAMPLING: dict[str, Any] = {"temperature": [0.0, 1.0] * 4, "max_new_tokens": [16] * 6 + [9, 1]}
MESHES = ["8x1", "4x2", "2x4", "1x8"]


@functools.cache
def mesh_of(text: str) -> Mesh:
    """8x1: eight rows at a time, weights replicated; 1x8 the other way round."""
    data, model = map(int, text.split("x"))
    return sharding.make_mesh(data, model)


@functools.cache
def method_of(name: str) -> Method:
    return DRAFTERS[name]()


@functools.cache
def writer(name: str, text: str | None, split: bool = False, rule: Rule = "match") -> Generator:
    """A generator on a mesh, its target split, its drafter replicated or (a draft model, EAGLE-3) split too."""
    drafter, drafts, _ = method_of(name)
    options: dict[str, Any] = {"capacity": CAPACITY, "prefill_chunk": 16, "rule": rule, "share_noise": rule == "match"}
    if text is None:
        return Generator(TARGET, PARAMS, drafter, drafts, **options)
    mesh, shardings = mesh_of(text), sharding.target_shardings(mesh_of(text), CONFIG)
    if split:
        if isinstance(drafts, HeadParams):
            head = random_block_head(25)[0] if name == "one_pass" else random_head("eagle3", 25)[0]
            drafts = sharding.place(drafts, sharding.head_shardings(mesh, head, drafts, split=True))
        else:
            drafts = sharding.place(drafts, shardings)
    return Generator(TARGET, sharding.place(PARAMS, shardings), drafter, drafts, mesh=mesh, **options)


@functools.cache
def on_one_device(name: str, rule: Rule = "match") -> Generation:
    return writer(name, None, rule=rule).generate(PROMPTS, **SAMPLING)


def assert_as_on_one_device(name: str, text: str, rule: Rule = "match") -> None:
    """The same tokens in the same rounds."""
    actual, wanted = writer(name, text, rule=rule).generate(PROMPTS, **SAMPLING), on_one_device(name, rule)
    assert actual.tokens == wanted.tokens
    assert actual.rounds == wanted.rounds
    np.testing.assert_array_equal(actual.accepted, wanted.accepted)


class TestSameTokens:
    @pytest.mark.parametrize("name", DRAFTERS)
    def test_every_drafter(self, name: str) -> None:
        """Greedy and sampled rows in one batch, which end at different times."""
        actual = writer(name, "4x2").generate(PROMPTS, **SAMPLING)
        assert actual.tokens == on_one_device("vanilla").tokens
        if name != "vanilla":
            # The other two answers are shorter, so that their rounds differ in any case.
            assert len({tuple(row) for row in actual.accepted[:6].tolist()}) > 2, "rows accept alike"

    @pytest.mark.parametrize("text", MESHES)
    def test_every_mesh(self, text: str) -> None:
        assert_as_on_one_device("eagle3", text)

    def test_the_rule_of_the_papers(self) -> None:
        """Drafts of another noise, accepted or refused by chance: another text, and that of one device."""
        assert_as_on_one_device("chain", "4x2", "residual")
        assert on_one_device("chain", "residual").tokens != on_one_device("vanilla").tokens

    @pytest.mark.parametrize("name", ["chain", "eagle3", "one_pass"])
    def test_drafter_that_is_split(self, name: str) -> None:
        actual, replicated = (writer(name, "4x2", split).generate(PROMPTS, **SAMPLING) for split in (True, False))
        assert actual.tokens == replicated.tokens
        np.testing.assert_array_equal(actual.accepted, replicated.accepted)

    def test_axes_that_do_not_divide(self, caplog: pytest.LogCaptureFixture) -> None:
        """Three heads and 41 tokens over two devices: replicated, logged once for each, and right."""
        config, target, params = tiny_transformer(vocab_size=41, num_layers=1, num_heads=9, num_kv_heads=3, head_dim=4)
        mesh = mesh_of("4x2")
        sharding._warn_replicated.cache_clear()
        with caplog.at_level(logging.WARNING):
            placed = sharding.place(params, sharding.target_shardings(mesh, config))
            sharding.target_shardings(mesh, config)
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 3
        expected = "kv_heads of 3 do not divide over the 2 devices of mesh axis model"
        assert any(text.startswith(expected) for text in messages)
        assert placed["embed_tokens"].sharding.is_fully_replicated
        assert not placed["layers_0"]["mlp"]["up_proj"]["kernel"].sharding.is_fully_replicated
        options = {"capacity": CAPACITY, "prefill_chunk": 16}
        one = Generator(target, params, make_vanilla(), **options).generate(PROMPTS, **SAMPLING)
        assert (
            Generator(target, placed, make_vanilla(), mesh=mesh, **options).generate(PROMPTS, **SAMPLING).tokens
            == one.tokens
        )


class TestPlaces:
    def test_target(self) -> None:
        """Columns, then rows: what is split in the middle of a layer is summed at its end."""
        shardings = sharding.target_shardings(mesh_of("4x2"), CONFIG)
        layer = jax.tree.map(lambda place: place.spec, shardings["layers_0"])
        assert layer["self_attn"]["q_proj"]["kernel"] == PartitionSpec(None, "model")
        assert layer["self_attn"]["k_proj"]["kernel"] == PartitionSpec(None, "model")
        assert layer["self_attn"]["o_proj"]["kernel"] == PartitionSpec("model")
        assert layer["mlp"]["up_proj"]["kernel"] == PartitionSpec(None, "model")
        assert layer["mlp"]["down_proj"]["kernel"] == PartitionSpec("model")
        assert layer["input_layernorm"]["weight"] == PartitionSpec()
        assert shardings["lm_head"].spec == PartitionSpec("model")
        assert jax.tree.structure(shardings) == jax.tree.structure(PARAMS)

    @pytest.mark.parametrize("split", [False, True])
    def test_state(self, split: bool) -> None:
        """Rows over `data`; heads of a cache as the weights that fill it."""
        state = start("eagle3", "4x2", split)
        specs = jax.tree.map(lambda x: x.sharding.spec, state)
        assert set(specs.cache.keys + specs.cache.values) == {PartitionSpec("data", None, "model")}
        heads = PartitionSpec("data", None, "model") if split else PartitionSpec("data")
        assert (specs.drafter.cache.keys, specs.drafter.cache.values) == ((heads,), (heads,))
        rest = (specs.text, specs.prompt_length, specs.done, specs.rounds, specs.accepted, specs.drafter.newest)
        assert set(rest) == {PartitionSpec("data")}

    @pytest.mark.parametrize("split", [False, True])
    @pytest.mark.parametrize("name", ["chain", "eagle3", "one_pass"])
    def test_state_before_there_is_one(self, name: str, split: bool) -> None:
        """After the prompts and after rounds, of a draft model and of a head, replicated and split."""
        generator, state = writer(name, "4x2", split), start(name, "4x2", split)
        assert generator.split == (True, split)
        wanted = places(state, generator.split)
        assert jax.tree.all(jax.tree.map(lambda x, place: x.sharding == place, state, wanted))
        state = generator.advance(state, make_sampling(len(PROMPTS), **SAMPLING), 2)
        assert jax.tree.all(jax.tree.map(lambda x, place: x.sharding == place, state, wanted))

    @pytest.mark.parametrize("split", [sharding.Split(target=True, drafter=False), None])
    def test_heads_left_to_the_compiler(self, split: sharding.Split | None) -> None:
        """None of a state that goes from program to program: the compiler for TPUs splits what others replicate."""
        generator, mesh = writer("eagle3", "4x2"), mesh_of("4x2")
        text, sampling = sharding.place_rows(mesh, (np.zeros((8, CAPACITY), np.int32), make_sampling(8)))
        with sharding.active(mesh):
            lowered = prefill.lower(generator.models, text, text[:, 0], sampling, split=split)
        constraints = [line for line in lowered.as_text().splitlines() if "sdy.sharding_constraint" in line]
        assert constraints
        assert any("{?}" in line for line in constraints) is (split is None)

    def test_whole_target(self) -> None:
        """On a mesh with nothing to split."""
        assert sharding.split_of(sharding.place_weights(mesh_of("4x2"), PARAMS), ()) == (False, False)

    def test_weights_that_lie_on_the_mesh_stay(self) -> None:
        generator = writer("eagle3", "4x2", True)
        again = sharding.place_weights(mesh_of("4x2"), generator.target_params)
        assert jax.tree.all(jax.tree.map(lambda a, b: a is b, again, generator.target_params))
        other = sharding.place_weights(mesh_of("2x4"), generator.target_params)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(other))


def places(state: DecodeState, split: sharding.Split) -> DecodeState:
    """Its sharding on 4x2."""
    drafter = sharding.row_shardings(mesh_of("4x2"), state.drafter, split=split.drafter)
    return dataclasses.replace(sharding.row_shardings(mesh_of("4x2"), state, split=split.target), drafter=drafter)


def start(name: str, text: str, split: bool) -> DecodeState:
    """The state after the prompts."""
    generator = writer(name, text, split)
    return generator.start(PROMPTS, make_sampling(len(PROMPTS), **SAMPLING))


COLLECTIVE = re.compile(
    r"= (.+?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(.*?op_name=\"(.*?)\""
)


def collectives(name: str, text: str) -> Iterator[tuple[str, int, str]]:
    """What devices of a mesh send, as `sent_by`."""
    return sent_by(writer(name, text))


def sent_by(generator: Generator) -> Iterator[tuple[str, int, str]]:
    """Kind, number of values on each device, and place, of all that devices send in the decode program."""
    mesh = generator.mesh
    assert mesh is not None
    sampling = make_sampling(len(PROMPTS), **SAMPLING)
    state, sampling = generator.start(PROMPTS, sampling), sharding.place_rows(mesh, sampling)
    with sharding.active(mesh):
        lowered = decode.lower(generator.models, state, sampling, 9, split=generator.split)
    for shapes, kind, place in COLLECTIVE.findall(lowered.compile().as_text()):
        sizes = [math.prod(map(int, dims.split(","))) if dims else 1 for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)]
        yield kind, sum(sizes), place


class TestWhatIsSent:
    @pytest.mark.parametrize("name", ["vanilla", "eagle3", "one_pass"])
    def test_rows_send_nothing(self, name: str) -> None:
        """But whether all are done, and how long the longest is."""
        sent = list(collectives(name, "8x1"))
        assert sent
        assert [one for one in sent if one[1] > 3] == []

    def test_a_layer_sends_two_sums(self) -> None:
        """Never weights, heads or caches; the other sum of this width is the embedding's.

        Eight heads are split over as many devices, four key/value heads are replicated.
        """
        sent = list(collectives("vanilla", "1x8"))
        sums = [place for kind, size, place in sent if kind == "all-reduce" and size == len(PROMPTS) * CONFIG.width]
        projections = [place for place in sums if re.search("(o|down)_proj", place)]
        assert len(projections) == 2 * CONFIG.num_layers
        assert len(sums) == len(projections) + 1
        assert max(size for _, size, _ in sent) <= len(PROMPTS) * CONFIG.width
        # Nor the keys and values of new tokens, of which every device computes all.
        assert {kind for kind, size, _ in sent if size > 3} == {"all-reduce"}


def test_second_call_compiles_nothing() -> None:
    """Nor does streaming: a state comes out of every program as it goes in."""
    generator = writer("eagle3", "4x2")
    generator.generate(PROMPTS, **SAMPLING)
    with count_compilations() as compiled:
        *_, last = generator.stream(PROMPTS, rounds_per_call=3, **SAMPLING)
    assert compiled == []
    assert last.tokens == on_one_device("eagle3").tokens


def test_batch_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="a batch of 3 rows does not divide over the 4 devices of mesh axis data"):
        writer("vanilla", "4x2").generate(PROMPTS[:3], max_new_tokens=4)


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        (3, 3, "a mesh of 3x3 takes 9 devices, there are 8"),
        (0, 2, "the axes of a mesh have at least 1 device, got 0x2"),
    ],
)
def test_mesh_that_cannot_be(data: int, model: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(data, model)
