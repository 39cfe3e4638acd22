"""What every drafting method owes: the target's own text, whatever it guesses. A new method is one line in DRAFTERS.

Exactness cannot see a drafter that guesses badly, so the second half asks what a right drafter must reach: everything
where draft and target are the same model, and the same guess whether a text was written or read.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from eagle_jax.decode import DecodeState, Models, decode, prefill
from eagle_jax.drafters import (
    Drafter,
    make_chain,
    make_eagle1,
    make_eagle2,
    make_eagle3,
    make_lookahead,
    make_one_pass,
    make_ouroboros,
    make_prompt_lookup,
    make_vanilla,
)
from eagle_jax.drafters.draft_model import on_draft_vocabulary
from eagle_jax.generator import Generation, Generator
from eagle_jax.models.block_head import BlockHead, make_block_head
from eagle_jax.models.draft_head import Head, HeadConfig, HeadParams, make_head
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import bigram_target, tiny_transformer
from eagle_jax.types import Params, Target
from tests.compilations import count_compilations
from tests.drafts import gated, with_noise
from tests.reference.decode import decode as plain
from tests.reference.logprobs import token_logprobs
from tests.tolerance import assert_close, pass_terms

CONFIG, TARGET, PARAMS = tiny_transformer(vocab_size=40, num_heads=8, num_kv_heads=4)
PROMPTS = [[5], [1, 2, 3, 1, 2], [*range(3, 20)], [7] * 33]
NEW = 24
STATIC_TREE = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (1, 0, 0))
CAPACITY = 80


class Method(NamedTuple):
    """A drafter and its weights."""

    drafter: Drafter
    params: Params = ()
    remembers: bool = False  # its guess depends on how the text came about, not on the text alone


@functools.cache
def random_head(kind: str, draft_vocab: int | None = None) -> tuple[Head, HeadParams]:
    """An untrained head for the tiny target, over the first of its tokens."""
    features = CONFIG.width * (3 if kind == "eagle3" else 1)
    head = make_head(HeadConfig(kind=kind, layer=CONFIG, feature_width=features, fc_bias=kind == "eagle"), TARGET)
    params = HeadParams(weights=nn.unbox(head.init(jax.random.key(2))))
    if draft_vocab is not None:
        ids = jnp.asarray(np.random.default_rng(0).permutation(CONFIG.vocab_size)[:draft_vocab])
        params = params.replace(lm_head=PARAMS["lm_head"][ids], target_ids=ids)
    return head, params


@functools.cache
def random_block_head(draft_vocab: int, joins_context: bool = False) -> tuple[BlockHead, HeadParams]:
    """An untrained one-pass head with edges, over some of the tokens."""
    layer = dataclasses.replace(CONFIG, num_layers=1)
    sizes = {"feature_width": 3 * CONFIG.width, "num_layers": 2, "block": 4, "edge_rank": 4}
    head = make_block_head(HeadConfig(kind="one_pass", layer=layer, joins_context=joins_context, **sizes), TARGET)
    weights = nn.unbox(head.init(jax.random.key(2)))
    weights["edges"]["following"] = jax.random.normal(jax.random.key(3), (CONFIG.vocab_size, 4))  # zeros at first
    ids = jnp.asarray(np.random.default_rng(0).permutation(CONFIG.vocab_size)[:draft_vocab])
    return head, HeadParams(weights=weights, lm_head=PARAMS["lm_head"][ids], target_ids=ids)


def with_head(kind: str, make: Callable[..., Drafter], *sizes: Any, draft_vocab: int | None = None) -> Method:
    """A drafter around an untrained head."""
    head, params = random_head(kind, draft_vocab)
    return Method(make(head, *sizes), params)


def one_pass(*sizes: int, joins_context: bool = False, **parts: int) -> Method:
    """A drafter around an untrained one-pass head."""
    head, params = random_block_head(25, joins_context)
    return Method(make_one_pass(head, *sizes, **parts), params)


def on_some_tokens(size: int, num_drafted: int) -> Method:
    """A chain of a draft model that scores some of the tokens."""
    ids = jnp.asarray(np.random.default_rng(0).permutation(CONFIG.vocab_size)[:size])
    params = HeadParams(with_noise(PARAMS), lm_head=PARAMS["lm_head"][ids], target_ids=ids)
    return Method(make_chain(on_draft_vocabulary(TARGET), num_drafted), params)


DRAFTERS: dict[str, Callable[[], Method]] = {
    "vanilla": lambda: Method(make_vanilla()),
    "prompt_lookup": lambda: Method(make_prompt_lookup(5)),
    "chain": lambda: Method(make_chain(TARGET, 3), with_noise(PARAMS)),
    "chain, draft vocabulary": lambda: on_some_tokens(25, 3),
    "lookahead": lambda: Method(make_lookahead(4, 3, 3, pool_size=50), remembers=True),
    "ouroboros": lambda: Method(
        make_ouroboros(TARGET, 3, phrases=2, phrase_length=3, pool_size=50), with_noise(PARAMS), remembers=True
    ),
    "eagle": lambda: with_head("eagle", make_eagle1, STATIC_TREE),
    "eagle2": lambda: with_head("eagle", make_eagle2, 12, 2, 4),
    "eagle3": lambda: with_head("eagle3", make_eagle3, 10, 2, 3, draft_vocab=25),
    "one_pass": lambda: one_pass(12, 3, 4, predecessors=5, shortlist=10),
    "one_pass, context joined": lambda: one_pass(12, 3, 4, joins_context=True, predecessors=5, shortlist=10),
}


@functools.cache
def build(name: str) -> Method:
    """One of the drafters behind a switch; the same object each time, so nothing compiles twice."""
    method = DRAFTERS[name]()
    return method._replace(drafter=gated(method.drafter), params=(jnp.asarray(True), method.params))


def generator(name: str) -> Generator:
    """A generator with one of the drafters."""
    drafter, params, _ = build(name)
    return Generator(TARGET, PARAMS, drafter, params, capacity=CAPACITY, prefill_chunk=16)


@functools.cache
def wanted(temperature: float, seed: int, min_p: float = 0.0) -> list[list[int]]:
    """What the target alone answers."""
    knobs: dict[str, Any] = {"temperature": temperature, "seed": seed, "min_p": min_p, "max_new_tokens": NEW}
    return [plain(TARGET, PARAMS, prompt, sequence=row, **knobs) for row, prompt in enumerate(PROMPTS)]


def generate(name: str, temperature: Any, seed: int = 0, **changed: Any) -> Generation:
    """All prompts in one batch."""
    knobs = {"prompts": PROMPTS, "temperature": temperature, "seed": seed, "max_new_tokens": NEW, **changed}
    return generator(name).generate(**knobs)


@pytest.fixture(params=DRAFTERS)
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each method in turn."""
    return request.param


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_same_tokens_as_plain_decoding(name: str, temperature: float, seed: int) -> None:
    assert generate(name, temperature, seed).tokens == wanted(temperature, seed)


def test_min_p(name: str) -> None:
    """Few of the tokens of a random model pass at T = 1, and drafts are still what the target alone writes."""
    assert generate(name, 1.0, min_p=0.3).tokens == wanted(1.0, 0, 0.3) != wanted(1.0, 0)


def test_penalties_follow_the_text_before_each_node(name: str) -> None:
    """Rows with penalties of their own, and one without any."""
    rows = {
        "temperature": [0.0, 1.0, 0.5, 0.0],
        "repetition_penalty": [1.5, 1.2, 1.0, 1.0],
        "presence_penalty": [0.0, 0.5, 1.5, 0.0],
    }
    expected = [
        plain(TARGET, PARAMS, prompt, sequence=row, max_new_tokens=NEW, **{key: rows[key][row] for key in rows})
        for row, prompt in enumerate(PROMPTS)
    ]
    assert expected[3] == wanted(0.0, 0)[3]
    assert expected[:3] != [wanted(temperature, 0)[row] for row, temperature in enumerate(rows["temperature"][:3])]
    assert generate(name, **rows).tokens == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logprobs_are_the_targets_own(name: str, temperature: float) -> None:
    """Of the tokens written and of the most probable ones in their place, before temperature."""
    drafter, params, _ = build(name)
    writer = dataclasses.replace(generator(name), drafter=drafter, drafter_params=params, logprobs=3)
    answers = writer.generate(PROMPTS, temperature=temperature, max_new_tokens=NEW)
    assert answers.tokens == wanted(temperature, 0)
    assert answers.logprobs is not None
    for prompt, tokens, kept in zip(PROMPTS, answers.tokens, answers.logprobs, strict=True):
        expected = token_logprobs(TARGET, PARAMS, prompt, tokens)
        ids = np.argsort(-expected, axis=1, kind="stable")[:, :3]
        np.testing.assert_array_equal(kept.top_ids, ids)
        for actual, places in ((kept.top, ids), (kept.written[:, None], np.array(tokens)[:, None])):
            assert_close(actual, np.take_along_axis(expected, places, axis=1), pass_terms(CONFIG, CAPACITY))


def test_guesses_are_accepted_at_times(name: str) -> None:
    """Else the tests above would see the empty path only."""
    if name == "vanilla":
        pytest.skip("proposes nothing")
    accepted = generate(name, 0.0).accepted + generate(name, 1.0).accepted
    assert accepted[:, 1:].sum() > 0


def test_second_call_compiles_nothing(name: str) -> None:
    generate(name, 0.0)
    with count_compilations() as compiled:
        generate(name, 0.7, seed=5, prompts=PROMPTS[::-1], max_new_tokens=9)
    assert compiled == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_does_not_change_when_the_others_do(name: str, temperature: float) -> None:
    """Row 1 between other prompts, at other temperatures and ends: the same tokens in the same rounds."""
    first = generate(name, temperature)
    others: dict[str, Any] = {
        "prompts": [[9, 9], PROMPTS[1], [3] * 40, [1]],
        "temperature": [1.5, temperature, 0.0, 0.6],
        "sequence": [7, 1, 8, 9],
        "max_new_tokens": [1, NEW, 30, 4],
    }
    second = generator(name).generate(**others)
    assert second.tokens[1] == first.tokens[1]
    assert second.rounds[1] == first.rounds[1]
    np.testing.assert_array_equal(second.accepted[1], first.accepted[1])


def test_nothing_proposed_is_plain_decoding(name: str) -> None:
    """Tau is exactly 1."""
    opened = generator(name)
    shut = dataclasses.replace(opened, drafter_params=(jnp.asarray(False), opened.drafter_params[1]))
    for temperature in (0.0, 1.0):
        actual = shut.generate(PROMPTS, temperature=temperature, max_new_tokens=NEW)
        assert actual.tokens == wanted(temperature, 0)
        assert actual.rounds == [NEW - 1] * len(PROMPTS)
        assert actual.tau == 1.0


def states_after_writing_and_reading(name: str, temperature: float) -> tuple[DecodeState, DecodeState]:
    """The state a few rounds into an answer, and the state for a prompt that is that very text."""
    drafter, params, _ = build(name)
    sampling = make_sampling(len(PROMPTS), temperature=temperature, max_new_tokens=100)
    text = np.zeros((len(PROMPTS), CAPACITY), np.int32)
    for row, prompt in enumerate(PROMPTS):
        text[row, : len(prompt)] = prompt
    lengths = jnp.asarray([len(prompt) for prompt in PROMPTS])
    models = Models(TARGET, drafter, PARAMS, params)
    read = functools.partial(prefill, models, chunk=16)
    start = read(jnp.asarray(text), lengths, sampling)
    written = decode(models, start, sampling, 6)
    return written, read(written.text, written.cache.length, sampling)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guess_depends_on_the_text_alone(name: str, temperature: float) -> None:
    """No state is left from guesses: after six rounds a drafter proposes what it would after reading the text."""
    drafter, params, remembers = build(name)
    if remembers:
        pytest.skip("keeps a memory")
    written, read = states_after_writing_and_reading(name, temperature)
    length = written.cache.length
    np.testing.assert_array_equal(read.cache.length, length)
    end = np.asarray(length)[:, None] >= np.arange(CAPACITY)
    np.testing.assert_array_equal(np.where(end, read.text, 0), np.where(end, written.text, 0))
    noise = jnp.asarray(np.random.default_rng(0).gumbel(size=(len(PROMPTS), drafter.max_depth + 1, 40)), jnp.float32)
    propose = jax.jit(drafter.propose)
    one, _ = propose(params, PARAMS, written.drafter, written.text, length, temperature * noise)
    other, _ = propose(params, PARAMS, read.drafter, written.text, length, temperature * noise)
    for part in ("tokens", "parents", "candidate"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
    np.testing.assert_allclose(one.log_values, other.log_values, atol=1e-4)


class TestDraftEqualsTarget:
    """A draft that is the target itself is accepted in full in every round, at every temperature, in every batch."""

    @pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("batch", [1, 8])
    def test_chain(self, batch: int, temperature: float) -> None:
        rng = np.random.default_rng(batch)
        prompts = [rng.integers(40, size=n).tolist() for n in rng.integers(1, 30, batch)]
        full = Generator(TARGET, PARAMS, make_chain(TARGET, 3), PARAMS, capacity=CAPACITY, prefill_chunk=16)
        actual = full.generate(prompts, temperature=temperature, max_new_tokens=1 + 8 * 4)
        assert actual.rounds == [8] * batch
        assert actual.accepted.tolist() == [[0, 0, 0, 8]] * batch
        assert actual.tau == 4.0

    @staticmethod
    def bigram_head(draft_vocab: bool) -> tuple[Target, Params, Head, HeadParams]:
        """A head that passes the embedding through: then the bigram target's head outputs the target's logits."""
        target, params = bigram_target(16)
        layer = dataclasses.replace(CONFIG, vocab_size=16, width=16)
        head = make_head(HeadConfig(kind="eagle", layer=layer, feature_width=16), target)
        weights = jax.tree.map(jnp.zeros_like, nn.unbox(head.init(jax.random.key(0))))
        weights["fc"]["kernel"] = jnp.eye(32, 16)
        head_params = HeadParams(weights=weights)
        if draft_vocab:  # all tokens, in another order
            ids = jnp.asarray(np.random.default_rng(0).permutation(16))
            head_params = head_params.replace(lm_head=jnp.eye(16)[ids], target_ids=ids)
        return target, params, head, head_params

    @pytest.mark.parametrize(
        ("make", "sizes", "draft_vocab"),
        [
            (make_eagle1, (STATIC_TREE,), False),
            (make_eagle2, (1 + 3 + 3 * 3, 1, 3), True),
            (make_eagle2, (1 + 4, 3, 1), False),
        ],
        ids=["static", "dynamic", "chain"],
    )
    def test_trees(self, make: Callable[..., Drafter], sizes: tuple[Any, ...], draft_vocab: bool) -> None:
        """The path of first ranks is accepted, in a dynamic tree too where all candidates have a place."""
        target, params, head, head_params = self.bigram_head(draft_vocab)
        drafter = make(head, *sizes)
        full = Generator(target, params, drafter, head_params, capacity=64, prefill_chunk=8)
        for temperature in (0.0, 0.3, 1.0):
            knobs = {"temperature": temperature, "max_new_tokens": 1 + 4 * (drafter.max_depth + 1)}
            actual = full.generate([[1], [2, 3], [4] * 9], **knobs)
            assert actual.rounds == [4] * 3
            assert actual.tau == drafter.max_depth + 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_width_one_trees_are_chains(temperature: float) -> None:
    """EAGLE-2 with one child a node drafts what a static chain of the same head drafts."""
    head, params = random_head("eagle")
    dynamic, static = make_eagle2(head, 4, 2, 1), make_eagle1(head, ((0,), (0, 0), (0, 0, 0)))
    actual = [
        Generator(TARGET, PARAMS, drafter, params, capacity=CAPACITY, prefill_chunk=16).generate(
            PROMPTS, temperature=temperature, max_new_tokens=NEW
        )
        for drafter in (dynamic, static)
    ]
    assert actual[0].tokens == actual[1].tokens == wanted(temperature, 0)
    np.testing.assert_array_equal(actual[0].accepted, actual[1].accepted)
    assert actual[0].accepted[:, 1:].sum() > 0
