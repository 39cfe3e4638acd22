"""More prompts than rows: the same answers as one by one, whatever the batch and the drafter."""

import functools
from typing import Any

import numpy as np
import pytest

from eagle_jax.drafters import make_chain, make_prompt_lookup, make_vanilla
from eagle_jax.generate import Generator
from eagle_jax.refill import write_all
from eagle_jax.sharding import make_mesh
from eagle_jax.testing import tiny_transformer
from tests.reference.decode import decode as plain

_, TARGET, PARAMS = tiny_transformer(0, num_layers=1)
PROMPTS = [[5], [1, 2, 3], list(range(3, 20)), [7] * 33, [9, 8], [1], [2, 2, 2, 2]]
LIMITS = [20, 3, 12, 1, 25, 7, 16]
DRAFTERS = {
    "vanilla": (make_vanilla(), ()),
    "lookup": (make_prompt_lookup(3), ()),
    "chain": (make_chain(TARGET, 2), PARAMS),
}


@functools.cache
def answers(temperature: float) -> list[list[int]]:
    """By the slow twin, one prompt at a time."""
    return [
        plain(TARGET, PARAMS, prompt, sequence=100 + index, temperature=temperature, max_new_tokens=limit)
        for index, (prompt, limit) in enumerate(zip(PROMPTS, LIMITS, strict=True))
    ]


def options(temperature: float) -> dict[str, Any]:
    return {"temperature": temperature, "sequence": range(100, 107), "max_new_tokens": LIMITS}


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch", [2, 3])
def test_same_answers_as_one_by_one(name: str, temperature: float, batch: int) -> None:
    generator = Generator(TARGET, PARAMS, *DRAFTERS[name], prefill_chunk=16)
    found = write_all(generator, PROMPTS, batch=batch, **options(temperature))
    assert found.tokens == answers(temperature)
    assert [sum(row) for row in found.accepted.tolist()] == found.rounds
    assert found.complete
    assert found.prefill_seconds > 0 < found.decode_seconds


@pytest.mark.parametrize("batch", [7, 30])
def test_rows_for_all_are_one_batch(batch: int) -> None:
    """As `generate` writes it, round by round."""
    generator = Generator(TARGET, PARAMS, *DRAFTERS["chain"], prefill_chunk=16)
    together, refilled = (
        generator.generate(PROMPTS, **options(1.0)),
        write_all(generator, PROMPTS, batch=batch, **options(1.0)),
    )
    assert (refilled.tokens, refilled.rounds) == (together.tokens, together.rounds)
    np.testing.assert_array_equal(refilled.accepted, together.accepted)


def test_rounds_do_not_depend_on_the_company() -> None:
    """A row that was taken over forgets who had it before: the rounds are those of a batch of its own."""
    generator = Generator(TARGET, PARAMS, *DRAFTERS["chain"], prefill_chunk=16, capacity=512)
    refilled = write_all(generator, PROMPTS, batch=2, **options(1.0))
    for index, prompt in enumerate(PROMPTS):
        alone = generator.generate([prompt], temperature=1.0, sequence=[100 + index], max_new_tokens=LIMITS[index])
        assert (refilled.tokens[index], refilled.rounds[index]) == (alone.tokens[0], alone.rounds[0])


@pytest.mark.parametrize("shape", [(2, 1), (2, 2)])
def test_on_a_mesh(shape: tuple[int, int]) -> None:
    generator = Generator(TARGET, PARAMS, *DRAFTERS["chain"], prefill_chunk=16, mesh=make_mesh(*shape))
    assert write_all(generator, PROMPTS, batch=4, **options(1.0)).tokens == answers(1.0)


def test_stop_ids_end_a_row_early() -> None:
    wanted = [
        answer[: answer.index(stop) + 1] if (stop := answers(1.0)[0][4]) in answer else answer
        for answer in answers(1.0)
    ]
    generator = Generator(TARGET, PARAMS, *DRAFTERS["lookup"], prefill_chunk=16)
    assert write_all(generator, PROMPTS, batch=2, stop_ids=[answers(1.0)[0][4]], **options(1.0)).tokens == wanted


@pytest.mark.parametrize(
    ("prompts", "batch", "message"),
    [(PROMPTS, 0, "batch must be at least 1, got 0"), ([[1], []], 1, "at least 1 token")],
)
def test_bad_input(prompts: list[list[int]], batch: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_all(Generator(TARGET, PARAMS, make_vanilla()), prompts, batch=batch)
