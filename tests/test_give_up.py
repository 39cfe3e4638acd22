"""Giving up drafting where it does not pay: the text stays, the rounds change."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.drafters import make_prompt_lookup
from eagle_jax.drafters.base import Drafter, DrafterState
from eagle_jax.generate import FIRST_LOOK, Generation, Generator
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import DraftTree, Params
from tests.drafts import make_oracle
from tests.reference.decode import decode as plain

PROMPTS = [[5], [1, 2, 3]]
LONGEST = 72
CAPACITY = 128


def oracle(temperature: float, reach: int = 3) -> tuple[Generator, list[list[int]]]:
    """A generator whose drafter is right for `reach` tokens in every round, and what it must write."""
    _, target, params = tiny_transformer(0, num_layers=1)
    answers = [
        plain(target, params, prompt, sequence=row, temperature=temperature, max_new_tokens=LONGEST)
        for row, prompt in enumerate(PROMPTS)
    ]
    text = np.zeros((len(PROMPTS), CAPACITY), np.int32)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        text[row, : len(prompt) + LONGEST] = [*prompt, *answer]
    drafter_params = (jnp.asarray(text), jnp.full(len(PROMPTS), reach))
    drafter = make_oracle(64, 4, width=2, unused=1)
    return Generator(target, params, drafter, drafter_params, give_up=True, capacity=CAPACITY), answers


def write(generator: Generator, temperature: float) -> Generation:
    return generator.generate(PROMPTS, temperature=temperature, max_new_tokens=LONGEST)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_plain_decoding_goes_on_with_the_same_text(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a plain round takes no time, drafting ends at the first look: 4 tokens a round so far, then 1."""
    generator, answers = oracle(temperature)
    monkeypatch.setattr(generator, "_plain_round", lambda *_: 0.0)
    found = write(generator, temperature)
    assert found.tokens == answers
    drafted = 4 * FIRST_LOOK
    assert found.rounds == [FIRST_LOOK + LONGEST - 1 - drafted] * 2
    assert found.accepted.tolist() == [[LONGEST - 1 - drafted, 0, 0, FIRST_LOOK, 0]] * 2


def test_drafting_goes_on_while_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a plain round takes for ever, every round is drafted."""
    generator, answers = oracle(1.0)
    monkeypatch.setattr(generator, "_plain_round", lambda *_: float("inf"))
    found = write(generator, 1.0)
    assert found.tokens == answers
    assert found.rounds == [-(-(LONGEST - 1) // 4)] * 2


def test_a_later_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which drafting stops paying behind the first look: it goes on to the second, then gives up."""
    generator, answers = oracle(0.0, reach=1)
    seconds = iter([0.0] * 2 + [1e6] * 8)
    advance = generator.advance
    monkeypatch.setattr(generator, "_plain_round", lambda *_: 1.0)

    def slower(step: Any, *arguments: Any) -> tuple[Any, float]:
        return step(*arguments), next(seconds) if step == advance else 0.0

    monkeypatch.setattr("eagle_jax.generate._timed", slower)
    found = write(generator, 0.0)
    assert found.tokens == answers
    assert found.accepted[0].tolist()[1] == 4 * FIRST_LOOK  # looks behind 8, 16 and 32 rounds; the third call is slow


def test_by_the_clock() -> None:
    """A drafter that sleeps in every round is given up; nothing is patched here."""
    _, target, params = tiny_transformer(0, num_layers=1)
    lookup = make_prompt_lookup(3)

    def propose(*arguments: Any) -> tuple[DraftTree, DrafterState]:
        tree, state = lookup.propose(*arguments)
        nothing = jax.pure_callback(nap, jax.ShapeDtypeStruct((), jnp.int32), tree.tokens)
        return dataclasses.replace(tree, tokens=tree.tokens + nothing), state

    def nap(tokens: Params) -> np.ndarray:
        time.sleep(0.1)
        return np.zeros((), np.int32)

    sleepy = Drafter("sleepy", lookup.nodes, lookup.max_depth, lookup.init, propose, lookup.observe)
    prompts, options = [[1, 2, 3]], {"temperature": 1.0, "max_new_tokens": LONGEST}
    generator = Generator(target, params, sleepy, give_up=True, capacity=CAPACITY)
    generator.warm_up(prompts, **options)
    naps_at_most = FIRST_LOOK + 1
    found = generator.generate(prompts, **options)
    assert found.decode_seconds < 0.1 * (naps_at_most + 4)
    assert found.tokens == [plain(target, params, prompts[0], sequence=0, **options)]


def test_another_text_is_refused() -> None:
    """Under the p/q rule plain decoding would go on with other tokens."""
    _, target, params = tiny_transformer(0, num_layers=1)
    with pytest.raises(ValueError, match="give_up needs the rule 'match': under 'residual'"):
        Generator(target, params, make_prompt_lookup(3), give_up=True, rule="residual", share_noise=False)
