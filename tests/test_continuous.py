"""Continuous batching: the same answers as one by one, whatever the batch, the group and the drafter."""

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from eagle_jax.continuous import group_size, write_all, write_each
from eagle_jax.decode import DecodeState
from eagle_jax.drafters import (
    make_chain,
    make_lookahead,
    make_one_pass,
    make_ouroboros,
    make_prompt_lookup,
    make_vanilla,
)
from eagle_jax.generator import Generator
from eagle_jax.models.block_head import make_block_head
from eagle_jax.sharding import make_mesh
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import Sampling
from tests.checkpoint.heads import random_block_head
from tests.reference.decode import decode as plain
from tests.reference.logprobs import token_logprobs
from tests.tolerance import assert_close, pass_terms

CONFIG, TARGET, PARAMS = tiny_transformer(0, num_layers=1)
PROMPTS = [[5], [1, 2, 3], list(range(3, 20)), [7] * 33, [9, 8], [1], [2, 2, 2, 2]]
LIMITS = [20, 3, 12, 1, 25, 7, 16]
BLOCK_HEAD, BLOCK_PARAMS = random_block_head(CONFIG)
DRAFTERS = {
    "vanilla": (make_vanilla(), ()),
    "lookup": (make_prompt_lookup(3), ()),
    "chain": (make_chain(TARGET, 2), PARAMS),
    "lookahead": (make_lookahead(3, 3, 3, pool_size=50), ()),
    "ouroboros": (make_ouroboros(TARGET, 2, phrases=2, phrase_length=3, pool_size=50), PARAMS),
    "one_pass": (make_one_pass(make_block_head(BLOCK_HEAD, TARGET), 9, 3, 3, predecessors=8), BLOCK_PARAMS),
}


def writer(name: str, mesh: str | None = None) -> Generator:
    placed = make_mesh(*map(int, mesh.split("x"))) if mesh else None
    return Generator(TARGET, PARAMS, *DRAFTERS[name], prefill_chunk=16, capacity=512, mesh=placed)


@functools.cache
def answers(temperature: float) -> list[list[int]]:
    """By the slow twin, one prompt at a time."""
    return [
        plain(TARGET, PARAMS, prompt, sequence=100 + index, temperature=temperature, max_new_tokens=limit)
        for index, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True))
    ]


@functools.cache
def rounds_alone(name: str, temperature: float) -> list[int]:
    """Rounds of each prompt in a batch of its own."""
    law = {"temperature": temperature}
    return [
        writer(name).generate([prompt], sequence=[100 + index], max_new_tokens=limit, **law).rounds[0]
        for index, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True))
    ]


def options(temperature: float, count: int = len(PROMPTS)) -> dict[str, Any]:
    return {"temperature": temperature, "sequence": range(100, 100 + count), "max_new_tokens": LIMITS[:count]}


@pytest.mark.parametrize(("name", "batch"), [*((name, 2) for name in DRAFTERS), ("chain", 3)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_same_answers_as_one_by_one(name: str, temperature: float, batch: int) -> None:
    """In the same rounds: a row that was taken over remembers nothing of who had it before."""
    found = write_all(writer(name), PROMPTS, batch=batch, **options(temperature))
    assert found.tokens == answers(temperature)
    assert found.rounds == rounds_alone(name, temperature)
    assert [sum(row) for row in found.accepted.tolist()] == found.rounds
    assert found.complete
    assert found.prefill_seconds > 0 < found.decode_seconds


@pytest.mark.parametrize(("batch", "group"), [(3, 2), (6, 4), (7, 7)])
@pytest.mark.parametrize("name", ["chain", "ouroboros"])
def test_prompts_read_in_groups(monkeypatch: pytest.MonkeyPatch, name: str, batch: int, group: int) -> None:
    """Also the last group, which has fewer prompts than it has room for: no row is left to a prompt read twice."""
    monkeypatch.setattr("eagle_jax.continuous.group_size", lambda *_: group)
    found = write_all(writer(name), PROMPTS, batch=batch, **options(1.0))
    assert found.tokens == answers(1.0)
    assert found.rounds == rounds_alone(name, 1.0)


@pytest.mark.parametrize("mesh", [None, "2x1"])
def test_logprobs_go_with_their_answers(mesh: str | None) -> None:
    """Rows are taken over, and so is what they keep."""
    together = write_all(dataclasses.replace(writer("lookup", mesh), logprobs=2), PROMPTS, batch=2, **options(1.0))
    assert together.logprobs is not None
    for prompt, tokens, kept in zip(PROMPTS, together.tokens, together.logprobs, strict=True):
        expected = token_logprobs(TARGET, PARAMS, prompt, tokens)
        np.testing.assert_array_equal(kept.top_ids, np.argsort(-expected, axis=1, kind="stable")[:, :2])
        assert_close(kept.written, expected[np.arange(len(tokens)), tokens], pass_terms(CONFIG, 64))


def test_rows_wait_for_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that have ended stay idle until as many have ended as are read together, or as prompts are left."""
    start, begun = Generator.start, []

    def watched(self: Generator, prompts: list[list[int]], settings: Sampling) -> DecodeState:
        begun.append(prompts)
        return start(self, prompts, settings)

    monkeypatch.setattr(Generator, "start", watched)
    monkeypatch.setattr("eagle_jax.continuous.group_size", lambda *_: 2)
    limits = [2, 9, 9, 4, 9, 9, 9]  # of four rows 0 ends first, then 3
    found = [
        list(finished.answers) for finished in write_each(writer("vanilla"), PROMPTS, batch=4, max_new_tokens=limits)
    ]
    assert begun == [PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:6], [PROMPTS[6]] * 2]
    assert [sorted(some) for some in found] == [[0, 3], [1, 2], [4, 5, 6]]


def test_the_device_goes_on_while_the_caller_has_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next step is dispatched before answers are handed out."""
    dispatched: list[str] = []
    for step in ("start", "advance"):
        real = getattr(Generator, step)
        monkeypatch.setattr(Generator, step, lambda *args, real=real, step=step: dispatched.append(step) or real(*args))
    steps = []
    for _ in write_each(writer("vanilla"), PROMPTS[:4], batch=2, max_new_tokens=[3, 9, 9, 9]):
        steps.append(dispatched.copy())
        dispatched.clear()
    assert [some[-1] for some in steps[:2]] == ["start", "start"]


@pytest.mark.parametrize(("batch", "shards", "group"), [(1, 1, 1), (15, 1, 1), (32, 1, 4), (32, 4, 4), (64, 3, 6)])
def test_group_size(batch: int, shards: int, group: int) -> None:
    assert group_size(batch, shards) == group


@pytest.mark.parametrize("batch", [7, 30])
def test_rows_for_all_are_one_batch(batch: int) -> None:
    """As `generate` writes it, round by round."""
    together = writer("chain").generate(PROMPTS, **options(1.0))
    refilled = write_all(writer("chain"), PROMPTS, batch=batch, **options(1.0))
    assert (refilled.tokens, refilled.rounds) == (together.tokens, together.rounds)
    np.testing.assert_array_equal(refilled.accepted, together.accepted)


@pytest.mark.parametrize("mesh", ["2x1", "2x2"])
def test_on_a_mesh(mesh: str) -> None:
    found = write_all(writer("chain", mesh), PROMPTS, batch=4, **options(1.0))
    assert found.tokens == answers(1.0)
    assert found.rounds == rounds_alone("chain", 1.0)


def test_rows_that_end_together_begin_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many prompts are read at once as there are groups of devices."""
    start, begun = Generator.start, []

    def watched(self: Generator, prompts: list[list[int]], law: Sampling) -> DecodeState:
        begun.append(prompts)
        return start(self, prompts, law)

    monkeypatch.setattr(Generator, "start", watched)
    found = write_all(writer("vanilla", "4x1"), PROMPTS, batch=4, **{**options(1.0), "max_new_tokens": 5})
    assert [one[:limit] for one, limit in zip(found.tokens, LIMITS, strict=True)] == [one[:5] for one in answers(1.0)]
    assert begun == [PROMPTS[:4], [*PROMPTS[4:], PROMPTS[4]]]


def test_each_as_it_ends() -> None:
    """Until it should stop: then those in progress are the last."""
    asked = iter([False, True])
    found = list(write_each(writer("vanilla"), PROMPTS, batch=2, should_stop=lambda: next(asked), **options(1.0)))
    assert [list(finished.answers) for finished in found] == [[1], [2], [0]]
    tokens = {prompt: answer.tokens for finished in found for prompt, answer in finished.answers.items()}
    assert [tokens[prompt] for prompt in range(3)] == answers(1.0)[:3]


@pytest.mark.parametrize("count", [1, 6])
def test_fewer_prompts_than_rows_on_a_mesh(count: int) -> None:
    """Rows without a prompt make up the number; they write nothing."""
    found = write_all(writer("chain", "4x1"), PROMPTS[:count], batch=8, **options(1.0, count))
    assert found.tokens == answers(1.0)[:count]
    assert found.rounds == rounds_alone("chain", 1.0)[:count]


def test_stop_ids_end_a_row_early() -> None:
    wanted = [
        answer[: answer.index(stop) + 1] if (stop := answers(1.0)[0][4]) in answer else answer
        for answer in answers(1.0)
    ]
    assert write_all(writer("lookup"), PROMPTS, batch=2, stop_ids=[answers(1.0)[0][4]], **options(1.0)).tokens == wanted


@pytest.mark.parametrize(
    ("prompts", "batch", "mesh", "message"),
    [
        (PROMPTS, 0, None, "batch must be at least 1, got 0"),
        ([[1], []], 1, None, "at least 1 token"),
        ([], 2, None, "at least 1 token"),
        (PROMPTS[:4], 6, "4x1", "a batch of 6 rows does not divide over the 4 devices of mesh axis data"),
    ],
)
def test_bad_input(prompts: list[list[int]], batch: int, mesh: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_all(writer("vanilla", mesh), prompts, batch=batch)


def test_text_is_no_prompt() -> None:
    """Nor is one prompt a list of them."""
    texts: list[Any] = [["Hello"], "Hello", [1, 2, 3]]
    for prompts in texts:
        with pytest.raises(TypeError, match="prompts are lists of token ids, one for each row"):
            writer("vanilla").generate(prompts)


def test_weights_that_were_forgotten() -> None:
    generator = writer("chain")
    with pytest.raises(ValueError, match="chain needs the weights of its draft model: Generator"):
        Generator(generator.target, generator.target_params, generator.drafter)


def test_weights_of_another_model() -> None:
    """Of the target, of a draft model: before anything is compiled."""
    generator = writer("chain")
    target, params, drafter = generator.target, generator.target_params, generator.drafter
    missing = {name: value for name, value in params.items() if name != "norm"}
    with pytest.raises(ValueError, match=r"weights of another model: norm/weight is missing there, \(\d+,\) in"):
        Generator(target, missing, drafter, generator.drafter_params)
    other: Any = {"embed_tokens": np.zeros((3, 4))}
    with pytest.raises(ValueError, match=r"embed_tokens is \(3, 4\) there, \(64, \d+\) in this one"):
        Generator(target, params, drafter, other)


@pytest.mark.parametrize("values", [{"seed": 1.5}, {"top_k": 2.7}, {"temperature": "hot"}, {"max_new_tokens": True}])
def test_sampling_values_that_are_no_numbers(values: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(values))} takes (numbers|integers), got "):
        writer("vanilla").generate(PROMPTS, **values)


def test_tokens_that_are_fractions() -> None:
    fractions: Any = [[5.5, 6.9]]
    with pytest.raises(TypeError, match="token ids must be integers"):
        writer("vanilla").generate(fractions)


def test_chunks_of_nothing() -> None:
    generator = writer("vanilla")
    with pytest.raises(ValueError, match="prefill_chunk must be at least 1, got -3"):
        Generator(generator.target, generator.target_params, generator.drafter, prefill_chunk=-3)


def test_bad_tokens_are_found_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a prompt that comes late."""
    generator, begun = writer("vanilla"), []
    monkeypatch.setattr(Generator, "start", lambda *_: begun.append(1))
    with pytest.raises(ValueError, match="token id 64 is outside the vocabulary of 64"):
        write_all(generator, [*PROMPTS, [3, 64]], batch=2, max_new_tokens=4)
    assert not begun
