import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle_jax.drafters import make_vanilla
from eagle_jax.evaluation import metrics
from eagle_jax.generator import Generation, Generator
from eagle_jax.sampling import gumbel, make_sampling
from eagle_jax.testing import bigram_target, tiny_transformer
from tests.reference.sampling import penalise
from tests.tolerance import rounding

TOKENS = st.lists(st.integers(0, 2), max_size=5)


def generation(tokens: list[list[int]], rounds: list[int], prefill: float = 1.0, decode: float = 2.0) -> Generation:
    return Generation(
        tokens=tokens,
        rounds=rounds,
        accepted=np.zeros((len(tokens), 1), np.int32),
        prefill_seconds=prefill,
        decode_seconds=decode,
        complete=True,
    )


def test_tau_leaves_out_the_first_token_of_each_answer() -> None:
    one, two = generation([[1, 2, 3, 4, 5]], [2]), generation([[1, 2, 3], [1]], [1, 0])
    assert metrics.tau([one]) == 2
    assert metrics.tau([one, two]) == (4 + 2 + 0) / 3
    assert math.isnan(metrics.tau([generation([[1]], [0])]))


def test_speed_with_and_without_prefill() -> None:
    both = [generation([[1, 2, 3, 4, 5]], [2]), generation([[1, 2, 3]], [2], prefill=2.0, decode=1.0)]
    assert metrics.tokens_per_second(both) == 6 / 3
    assert metrics.tokens_per_second(both, with_prefill=True) == 8 / 6
    assert math.isnan(metrics.tokens_per_second([generation([[1]], [0], decode=0.0)]))


@given(TOKENS, TOKENS)
def test_first_difference(one: list[int], other: list[int]) -> None:
    index = metrics.first_difference(one, other)
    assert (index is None) == (one == other)
    if index is not None:
        assert one[:index] == other[:index]
        assert one[index : index + 1] != other[index : index + 1]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_margin_against_the_law_of_a_bigram_table(temperature: float) -> None:
    target, params = bigram_target(23)
    text = [4, 7, 11]
    sampling = make_sampling(1, temperature=temperature, seed=3, sequence=[5])
    noise = np.asarray(gumbel(sampling, jnp.array([[len(text)]]), 23))[0, 0]
    scores = np.sort(np.asarray(params["table"])[text[-1]] + temperature * noise)
    actual = metrics.margin(target, params, text, temperature=temperature, seed=3, sequence=[5])
    # The margin is small where the scores are not, and some processors round a product and a sum at once.
    assert actual == pytest.approx(scores[-1] - scores[-2], rel=0, abs=rounding(scores, terms=2))


def test_margin_is_infinite_where_one_token_is_left() -> None:
    target, params = bigram_target(23)
    assert metrics.margin(target, params, [4], temperature=0.5, top_k=1) == math.inf
    assert metrics.margin(target, params, [4], temperature=0.5, min_p=1.0) == math.inf


def test_margin_with_penalties() -> None:
    """Of prompt and answer one, of the answer alone the other."""
    target, params = bigram_target(23)
    text = [4, 7, 11]
    scores = np.sort(penalise(np.asarray(params["table"])[11], text[:1], text[1:], 1.7, 0.6))
    actual = metrics.margin(target, params, text, prompt_length=1, repetition_penalty=1.7, presence_penalty=0.6)
    assert actual == pytest.approx(scores[-1] - scores[-2], rel=0, abs=rounding(scores, terms=2))


def test_margin_sees_what_decoding_sees() -> None:
    """Lifting the second best token by the margin, and a little more, makes decoding choose it."""
    config, target, params = tiny_transformer(1)
    prompt = [3, 1, 4, 1, 5]
    margin = metrics.margin(target, params, prompt, temperature=0.7, seed=2)
    assert margin > 1e-3
    hidden = target.forward(
        params,
        jnp.array([prompt]),
        jnp.arange(5)[None],
        target.init_cache(1, 1),
        jnp.tril(jnp.ones((1, 5, 5), bool)),
    ).hidden[0, -1]

    def first(params: dict[str, jax.Array]) -> int:
        generator = Generator(target, params, make_vanilla(), capacity=32)
        return generator.generate([prompt], temperature=0.7, seed=2, max_new_tokens=1).tokens[0][0]

    def lifted(token: int, amount: float) -> dict[str, jax.Array]:
        """Weights under which `token` scores `amount` higher after this prompt."""
        return {**params, "lm_head": params["lm_head"].at[token].add(amount * hidden / (hidden @ hidden))}

    best = first(params)
    over = {first(lifted(token, margin * 1.001)) for token in range(config.vocab_size) if token != best}
    under = {first(lifted(token, margin * 0.999)) for token in range(config.vocab_size) if token != best}
    assert len(over) == 2  # the second best gets past the best, everything else stays behind
    assert under == {best}
