"""Sorted rows and grouped products against a loop over tokens and experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_jax.models.config import Experts
from eagle_jax.models.experts import route_and_mix
from tests.reference import experts as reference
from tests.tolerance import assert_close


def random(seed: int, tokens: int, count: int, width: int, inner: int) -> list[np.ndarray]:
    """Tokens, router logits, gate, up, down."""
    shapes = [(tokens, width), (tokens, count), (count, width, inner), (count, width, inner), (count, inner, width)]
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) * (shape[1] ** -0.5 if len(shape) == 3 else 1) for shape in shapes]


def mixed(experts: Experts, x: np.ndarray, logits: np.ndarray, *matrices: np.ndarray) -> jax.Array:
    """All tokens as one row of a batch."""
    given = [jnp.asarray(array, jnp.float32) for array in (x[None], logits[None], *matrices)]
    return route_and_mix(experts, nn.silu, *given)[0]


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    tokens=st.integers(1, 9),
    count=st.integers(1, 6),
    data=st.data(),
    renormalize=st.booleans(),
)
def test_against_loops(seed: int, tokens: int, count: int, data: st.DataObject, renormalize: bool) -> None:
    """Few and many tokens, experts that nobody chooses, all experts."""
    k, width, inner = data.draw(st.integers(1, count)), 7, 5
    x, logits, *matrices = random(seed, tokens, count, width, inner)
    experts = Experts(count=count, per_token=k, width=inner, renormalize=renormalize)
    wanted = reference.mix(x, logits, *matrices, k, renormalize)
    assert_close(mixed(experts, x, logits, *matrices), wanted, count + width + inner + k)


@pytest.mark.parametrize("favourite", [0, 3])
def test_all_tokens_of_one_expert(favourite: int) -> None:
    """No capacity: an expert takes as many tokens as choose it."""
    x, logits, *matrices = random(0, 40, 4, 6, 5)
    logits[:, favourite] += 50
    experts = Experts(count=4, per_token=1, width=5, renormalize=False)
    assert_close(mixed(experts, x, logits, *matrices), reference.mix(x, logits, *matrices, 1, False), 20)


def test_a_token_does_not_depend_on_its_company() -> None:
    """Alone and among others, which choose other experts."""
    x, logits, *matrices = random(1, 12, 5, 6, 5)
    experts = Experts(count=5, per_token=2, width=5, renormalize=True)
    together = mixed(experts, x, logits, *matrices)
    for token in range(12):
        alone = mixed(experts, x[token : token + 1], logits[token : token + 1], *matrices)
        assert_close(together[token], alone[0], 20)


def test_more_experts_than_there_are() -> None:
    with pytest.raises(ValueError, match="a token goes through 1 to 4 experts, got 5"):
        Experts(count=4, per_token=5, width=8, renormalize=False)
