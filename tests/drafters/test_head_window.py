"""A head that looks back only so far: it sees what stands in its window, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.drafters import make_eagle2, make_eagle3
from eagle_jax.drafters.base import Drafter
from eagle_jax.models.draft_head import HeadParams, make_head
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import DraftTree
from tests.checkpoint.heads import random_head
from tests.tolerance import assert_close, head_terms

CONFIG, TARGET, PARAMS = tiny_transformer(num_layers=7)
LENGTH, CAPACITY, DEPTH = 40, 64, 3


def drafter(kind: str, window: int | None) -> tuple[Drafter, HeadParams]:
    config, params = random_head(kind, CONFIG)
    layer = dataclasses.replace(config.layer, windows=(window,) if window else ())
    head = make_head(dataclasses.replace(config, layer=layer), TARGET)
    return (make_eagle2 if kind == "eagle" else make_eagle3)(head, 9, DEPTH, 3), params


def proposal(kind: str, window: int | None, forgotten: int) -> DraftTree:
    """A tree after 40 tokens, the first `forgotten` rows of the head's cache overwritten."""
    method, params = drafter(kind, window)
    rng = np.random.default_rng(1)
    state = method.init(1, CAPACITY, "float32")
    shape = state.cache.keys[0].shape

    def rows() -> tuple[jax.Array, ...]:
        known = jnp.asarray(rng.standard_normal(shape), jnp.float32)
        return (known.at[:, :forgotten].set(3.0),)

    cache = dataclasses.replace(state.cache, keys=rows(), values=rows(), length=jnp.array([LENGTH]))
    newest = jnp.asarray(rng.standard_normal(state.newest.shape), jnp.float32)
    text = jnp.asarray(rng.integers(0, CONFIG.vocab_size, (1, CAPACITY)), jnp.int32)
    noise = jnp.zeros((1, method.max_depth + 1, CONFIG.vocab_size))
    state = state.replace(cache=cache, newest=newest)
    return jax.jit(method.propose)(params, PARAMS, state, text, jnp.array([LENGTH]), noise)[0]


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_only_the_window_counts(kind: str) -> None:
    """The first node that is fed stands at slot 40 and sees the slots from 31 on; the next levels see less."""
    window = 10
    full = proposal(kind, window, 0)
    for forgotten, same in ((LENGTH - window + 1, True), (LENGTH - window + 2, False)):
        changed = proposal(kind, window, forgotten)
        assert np.array_equal(full.log_values, changed.log_values) == same
    assert not np.array_equal(proposal(kind, None, 0).log_values, proposal(kind, None, 1).log_values)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_wide_window_is_none(kind: str) -> None:
    """But for rounding: the two are different programs."""
    one, other = proposal(kind, 100, 0), proposal(kind, None, 0)
    terms = head_terms(random_head(kind, CONFIG)[0], LENGTH, DEPTH) + CONFIG.vocab_size
    assert_close(one, other, terms)


def test_a_window_of_one_sees_itself_alone() -> None:
    """Whatever stood before, the cache and the other nodes of the tree included."""
    np.testing.assert_array_equal(proposal("eagle3", 1, 0).log_values, proposal("eagle3", 1, LENGTH).log_values)
