"""A draft model with a draft vocabulary: what it scores, and which weights it takes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.drafters import make_chain
from eagle_jax.drafters.draft_model import on_draft_vocabulary
from eagle_jax.generator import Generator
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.testing import tiny_transformer
from tests.drafts import with_noise
from tests.tolerance import assert_close

CONFIG, TARGET, PARAMS = tiny_transformer(vocab_size=40)
IDS = np.random.default_rng(0).permutation(CONFIG.vocab_size)
DRAFT = on_draft_vocabulary(TARGET)


def some(size: int) -> HeadParams:
    """The target's weights with a draft vocabulary of so many tokens."""
    ids = jnp.asarray(IDS[:size])
    return HeadParams(PARAMS, lm_head=PARAMS["lm_head"][ids], target_ids=ids)


def test_scores() -> None:
    """Those of its tokens are the model's, all others -inf."""
    hidden = jax.random.normal(jax.random.key(1), (2, 3, CONFIG.width))
    found, whole = DRAFT.unembed(some(15), hidden), TARGET.unembed(PARAMS, hidden)
    assert found.shape == whole.shape
    assert_close(found[..., IDS[:15]], whole[..., IDS[:15]], terms=CONFIG.width)
    assert (found[..., IDS[15:]] == -jnp.inf).all()
    np.testing.assert_array_equal(DRAFT.unembed(HeadParams(PARAMS), hidden), whole)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_tokens_in_another_order(temperature: float) -> None:
    """The drafts are those of the whole vocabulary."""
    prompts = [[5, 6, 7], [1, 2, 3, 1, 2]]
    weights, ids = with_noise(PARAMS), jnp.asarray(IDS)
    plain, ranked = (
        Generator(TARGET, PARAMS, make_chain(draft, 3), params, capacity=64).generate(
            prompts, temperature=temperature, max_new_tokens=20
        )
        for draft, params in ((TARGET, weights), (DRAFT, HeadParams(weights, weights["lm_head"][ids], ids)))
    )
    assert (plain.tokens, plain.rounds) == (ranked.tokens, ranked.rounds)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (PARAMS, TypeError, "are HeadParams, got dict"),
        (dataclasses.replace(some(9), target_ids=None), ValueError, "an LM head of 9 rows needs target_ids"),
        (dataclasses.replace(some(9), target_ids=some(8).target_ids), ValueError, "names 8 tokens, .* has 9 rows"),
        (dataclasses.replace(some(9), weights={}), ValueError, "embed_tokens"),
    ],
    ids=["plain weights", "rows alone", "other rows", "another model"],
)
def test_weights_that_are_refused(params: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DRAFT.check(params)
