"""The records of training: packed text, what the frozen target says about it, and the counts that metrics come from.

    tokens      <|u|> hi <|a|> hello <end> <|u|> bye <|a|> bye <end> pad
    segments      1    1   1     1     1     2    2    2    2    2    0
    positions     0    1   2     3     4     0    1    2    3    4    0
    supervised    .    .   .     x     x     .    .    .    x    x    .

Slot t joins the target's features at t with the token at t + 1 and speaks of the token at t + 2, so `slots` lists every
t whose token t + 2 is supervised: the rows that a loss can come from.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import struct

from eagle_jax.models.draft_head import HeadParams
from eagle_jax.types import Params

NO_SLOT = -(1 << 20)
"""Padding of `Batch.slots`: far from every slot, so that it continues no chain."""


@struct.dataclass
class Batch:
    """Documents packed into rows; R slots a row can carry a loss."""

    tokens: jax.Array  # i32[B, T]
    segments: jax.Array  # i32[B, T], number of the document within its row, from 1 on; 0 is padding
    positions: jax.Array  # i32[B, T], within the document
    supervised: jax.Array  # bool[B, T], the target wrote this token
    slots: jax.Array  # i32[B, R], ascending, padded with NO_SLOT


@struct.dataclass
class Features:
    """What the frozen target says about a batch."""

    taps: jax.Array  # [B, T, number of taps * E]
    hidden: jax.Array  # [B, T, E], after the final norm
    choice: jax.Array  # i32[B, T], its most probable next token; NO_TOKEN where no loss asks for it


@struct.dataclass
class Vocabulary:
    """The part of the target's LM head that both sides of the loss are restricted to."""

    lm_head: jax.Array  # [U, E]
    target_ids: jax.Array | None = None  # i32[U]; None: all of the vocabulary, U = V


@struct.dataclass
class Tally:
    """Sums over rows, one entry an unrolled step; tallies of several batches add up."""

    rows: jax.Array  # f32[I], rows with a target at this step
    in_vocabulary: jax.Array  # f32[I], of those: the target's choice is in the draft vocabulary
    cross_entropy: jax.Array  # f32[I], over rows in the vocabulary
    acceptance: jax.Array  # f32[I], over these too: what target and head have in common, sum_u min(p(u), q(u))
    correct: jax.Array  # f32[I], head and target choose the same token
    joint: jax.Array  # f32[I], correct at this step and at all steps before it
    feature_error: jax.Array  # f32[], smooth L1 at step 0, where the recipe has such a loss


class Recipe(NamedTuple):
    """A way to train a head, as pure functions."""

    num_steps: int
    divisors: Callable[[Batch], jax.Array]
    """batch -> f32[I], what the loss of each step is divided by; those of several batches add up."""
    loss: Callable[
        [HeadParams, Params, Vocabulary, Batch, Features, jax.Array, jax.Array | None], tuple[jax.Array, Tally]
    ]
    """(params, target_params, vocabulary, batch, features, divisors f32[I], key) -> loss f32[], tally. The losses of
    several batches with the divisors of all of them add up. A key of None, as in measuring, draws no noise."""


def rates_of(tally: Tally) -> dict[str, float]:
    """Rates of a tally.

    Returns:
      Per step i: `accuracy_i`, `joint_i` (correct so far, all steps before included), `cross_entropy_i`,
      `acceptance_i` (of one token drawn from the head, by the p/q rule at T = 1); further `coverage` (the target's
      choice is in the draft vocabulary) and `simulated_tau`, 1 + sum of the joint rates: the tokens per round that a
      chain of I drafted tokens would give on this text. A target outside the vocabulary is a break.
    """
    values = jax.device_get(tally)
    rows = values.rows.clip(min=1)
    rates = {"coverage": float(values.in_vocabulary[0] / rows[0])}
    for step in range(rows.shape[0]):
        rates[f"accuracy_{step}"] = float(values.correct[step] / rows[step])
        rates[f"joint_{step}"] = float(values.joint[step] / rows[step])
        for name in ("cross_entropy", "acceptance"):
            rates[f"{name}_{step}"] = float(getattr(values, name)[step] / max(values.in_vocabulary[step], 1))
    if values.feature_error:
        rates["feature_error"] = float(values.feature_error / rows[0])
    rates["simulated_tau"] = 1 + float((values.joint / rows).sum())
    return rates
