"""What the slots of a one-pass head list, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.evaluation.slot_lists import make_slot_lists
from eagle_jax.types import NO_PARENT
from tests.drafters.test_one_pass import PARAMS, VOCAB, WIDTH, proposal, random_head, some_noise
from tests.tolerance import assert_close

COUNT, DEPTH = 5, 3


@pytest.mark.parametrize("noise_level", [0, 2])
def test_lists_and_their_confidence(noise_level: int) -> None:
    """Each slot's best tokens with its noise, and their share of the mass: with the noise too from level 1 on."""
    head, params = random_head(draft_vocab=True)
    noise = some_noise(DEPTH)
    lists, state = proposal(make_slot_lists(head, DEPTH - 1, COUNT, noise_level), params, noise)
    roots = np.take_along_axis(np.asarray(state.text), np.asarray(state.cache.length)[:, None], axis=1)[:, 0]
    inside = state.drafter
    states = head.block(params, PARAMS, jnp.asarray(roots), state.cache.length, inside.cache, inside.newest)
    base = np.asarray(head.logits(params, PARAMS, states), np.float64)[:, :DEPTH]
    assert params.target_ids is not None
    ids = np.asarray(params.target_ids)
    heard = base + np.asarray(noise)[:, :DEPTH, ids]
    best = np.argsort(-heard, axis=-1)[:, :, :COUNT]
    np.testing.assert_array_equal(lists.tokens[:, 0], roots)
    np.testing.assert_array_equal(lists.tokens[:, 1:].reshape(3, DEPTH, COUNT), ids[best])
    np.testing.assert_array_equal(lists.parents[0], [NO_PARENT, *[0] * COUNT, *[1] * COUNT, *[1 + COUNT] * COUNT])
    scores = heard if noise_level else base
    shares = scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True)
    wanted = np.take_along_axis(shares, best, axis=-1)
    assert_close(
        np.asarray(lists.log_values[:, 1:]).reshape(3, DEPTH, COUNT),
        np.concatenate([wanted[:, :1], wanted[:, 1:] + np.cumsum(wanted[:, :-1, :1], axis=1)], axis=1),
        DEPTH * (VOCAB + WIDTH),
        base,
    )
    assert lists.max_depth == DEPTH


def test_more_slots_than_the_head_has() -> None:
    head, _ = random_head()
    with pytest.raises(ValueError, match="depth is at most 4 for a head that drafts 5 positions, got 5"):
        make_slot_lists(head, 5, COUNT)
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        make_slot_lists(head, 4, 0)
