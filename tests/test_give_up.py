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
from eagle_jax.generator import Generation
from eagle_jax.give_up import FIRST_COMPARISON, TIMED_ROUNDS, GivingUp
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import DraftTree, Params
from tests.drafts import make_oracle
from tests.reference.decode import decode as plain

PROMPTS = [[5], [1, 2, 3]]
LONGEST = 72
CAPACITY = 128


def oracle(temperature: float, reach: int = 3) -> tuple[GivingUp, list[list[int]]]:
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
    return GivingUp(target, params, drafter, drafter_params, capacity=CAPACITY), answers


def write(generator: GivingUp, temperature: float) -> Generation:
    return generator.generate(PROMPTS, temperature=temperature, max_new_tokens=LONGEST)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_plain_decoding_goes_on_with_the_same_text(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a round must write more than it can, drafting ends at the first comparison: 4 tokens per round, then 1."""
    generator, answers = oracle(temperature)
    monkeypatch.setattr(GivingUp, "break_even", lambda *_: 5.0)
    found = write(generator, temperature)
    assert found.tokens == answers
    assert found.gave_up
    drafted = 4 * FIRST_COMPARISON
    assert found.rounds == [FIRST_COMPARISON + LONGEST - 1 - drafted] * 2
    assert found.accepted.tolist() == [[LONGEST - 1 - drafted, 0, 0, FIRST_COMPARISON, 0]] * 2


def test_drafting_goes_on_while_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four tokens per round, and four are needed: every round is drafted."""
    generator, answers = oracle(1.0)
    monkeypatch.setattr(GivingUp, "break_even", lambda *_: 4.0)
    found = write(generator, 1.0)
    assert found.tokens == answers
    assert not found.gave_up
    assert found.rounds == [-(-(LONGEST - 1) // 4)] * 2


def test_a_later_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    """A little too few tokens per round: 16 rounds of both rows do not tell it from chance (2 + 0.5 / 4), 32 do."""
    generator, answers = oracle(0.0, reach=1)
    monkeypatch.setattr(GivingUp, "break_even", lambda *_: 2.1)
    found = write(generator, 0.0)
    assert found.tokens == answers
    assert found.gave_up
    assert found.accepted[0].tolist()[1] == 2 * FIRST_COMPARISON


def test_what_rounds_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a drafted round takes 3 seconds and a plain one 2, whatever the first call takes."""
    generator, _ = oracle(0.0, reach=1)
    calls = []

    def timed(step: Any, state: Any, sampling: Any, rounds: int) -> tuple[Any, float]:
        drafter = step.__self__.drafter
        calls.append((drafter.name, rounds))
        cost = 3.0 if drafter is generator.drafter else 2.0
        return step(state, sampling, rounds), 100.0 if rounds == TIMED_ROUNDS[0] else cost * rounds

    monkeypatch.setattr("eagle_jax.give_up.timed", timed)
    generator.warm_up(PROMPTS, temperature=0.0, max_new_tokens=LONGEST)
    settings = make_sampling(len(PROMPTS), temperature=0.0, max_new_tokens=LONGEST)
    assert generator.break_even(PROMPTS, settings) == 1.5
    assert calls == [(name, rounds) for name in ("vanilla", generator.drafter.name) for rounds in TIMED_ROUNDS]


def test_answers_too_short_to_tell() -> None:
    generator, answers = oracle(0.0)
    for longest in (1, 2, 3):
        found = generator.generate(PROMPTS, temperature=0.0, max_new_tokens=longest)
        assert found.tokens == [answer[:longest] for answer in answers]
        assert not found.gave_up


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
    generator = GivingUp(target, params, sleepy, capacity=CAPACITY)
    generator.warm_up(prompts, **options)
    naps_at_most = FIRST_COMPARISON
    found = generator.generate(prompts, **options)
    assert found.decode_seconds < 0.1 * (naps_at_most + 4)
    assert found.tokens == [plain(target, params, prompts[0], sequence=0, **options)]


def test_another_text_is_refused() -> None:
    """Under the p/q rule plain decoding would go on with other tokens."""
    _, target, params = tiny_transformer(0, num_layers=1)
    with pytest.raises(ValueError, match="giving up needs the rule 'match': under 'residual'"):
        GivingUp(target, params, make_prompt_lookup(3), rule="residual", share_noise=False)
