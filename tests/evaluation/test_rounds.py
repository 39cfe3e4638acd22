"""Rounds played one by one are those of an undisturbed generation."""

import itertools
from typing import Any

import numpy as np
import pytest

from eagle_jax.drafters import Drafter, make_chain, make_prompt_lookup
from eagle_jax.evaluation.rounds import Round, rounds
from eagle_jax.generator import Generator
from eagle_jax.sharding import make_mesh
from eagle_jax.testing import bigram_target
from eagle_jax.types import NO_NODE, Params

TARGET, PARAMS = bigram_target(23)
OTHER = {"table": PARAMS["table"] + 0.5 * bigram_target(23, seed=1)[1]["table"]}
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
MANY = 1000


def generator(drafter: Drafter, params: Params = (), **options: Any) -> Generator:
    return Generator(TARGET, PARAMS, drafter, params, capacity=64, prefill_chunk=16, **options)


def check(played: list[Round], writer: Generator, **sampling: Any) -> None:
    """The rounds write what the generator writes, each by its path."""
    answer = writer.generate([PROMPT], **sampling)
    assert len(played) == answer.rounds[0]
    assert played[0].text == PROMPT + answer.tokens[0][:1]
    for one, following in itertools.pairwise(played):
        assert one.text + one.written == following.text
    assert played[-1].text + played[-1].written == PROMPT + answer.tokens[0]
    accepted = np.bincount([one.verdict.num_accepted for one in played], minlength=answer.accepted.shape[1])
    np.testing.assert_array_equal(accepted, answer.accepted[0])
    for one in played:
        path = one.verdict.path[one.verdict.path != NO_NODE]
        assert one.tree.tokens[0] == one.text[-1]
        assert len(path) == one.verdict.num_accepted + 1
        expected = [*one.tree.tokens[path[1:]], one.verdict.next_token]
        assert one.written == expected[: len(one.written)]
        assert len(one.written) == len(expected) or one is played[-1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rounds_of_a_chain(temperature: float) -> None:
    writer = generator(make_chain(TARGET, 3), OTHER)
    sampling = {"temperature": temperature, "seed": 4, "max_new_tokens": 20}
    played = rounds(writer, PROMPT, MANY, **sampling)
    check(played, writer, **sampling)
    assert len({int(one.verdict.num_accepted) for one in played}) > 1
    for one in played:
        for node in one.verdict.path[one.verdict.path != NO_NODE][1:]:
            assert one.choice[one.tree.parents[node]] == one.tree.tokens[node]


def test_rounds_under_the_other_rule() -> None:
    writer = generator(make_chain(TARGET, 3), OTHER, rule="residual", share_noise=False)
    sampling = {"temperature": 1.0, "seed": 1, "max_new_tokens": 20}
    check(rounds(writer, PROMPT, MANY, **sampling), writer, **sampling)


def test_the_first_few_rounds() -> None:
    writer = generator(make_prompt_lookup(3))
    some = rounds(writer, PROMPT, 2, max_new_tokens=20)
    more = rounds(writer, PROMPT, 4, max_new_tokens=20)
    assert [one.written for one in some] == [one.written for one in more[:2]]
    assert len(more) == 4


def test_a_wider_drafter_beside_changes_nothing() -> None:
    writer = generator(make_prompt_lookup(3))
    sampling = {"max_new_tokens": 20}
    alone = rounds(writer, PROMPT, 4, **sampling)
    watched = rounds(writer, PROMPT, 4, wider=make_prompt_lookup(3, max_ngram=1), **sampling)
    assert [one.written for one in watched] == [one.written for one in alone]
    assert all(one.wider is None for one in alone)
    for one in watched:
        assert one.wider is not None
        assert one.wider.tokens[0] == one.tree.tokens[0]


def test_a_wider_drafter_of_another_depth() -> None:
    with pytest.raises(ValueError, match="as deep as the other, 3, got 4"):
        rounds(generator(make_prompt_lookup(3)), PROMPT, 1, wider=make_prompt_lookup(4))


def test_a_text_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="need 115 cache slots, the capacity is 64"):
        rounds(generator(make_prompt_lookup(3)), PROMPT, 1, max_new_tokens=100)


def test_rounds_on_a_mesh() -> None:
    """As on one device: the generator's own programs run."""
    sampling = {"temperature": 1.0, "max_new_tokens": 20}
    alone = rounds(generator(make_chain(TARGET, 3), OTHER), PROMPT, MANY, **sampling)
    placed = rounds(generator(make_chain(TARGET, 3), OTHER, mesh=make_mesh(1, 2)), PROMPT, MANY, **sampling)
    assert [one.written for one in placed] == [one.written for one in alone]
    assert [one.tree.tokens.tolist() for one in placed] == [one.tree.tokens.tolist() for one in alone]
