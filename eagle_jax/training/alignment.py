"""Which rows of a batch count at which unrolled step, and the loss and the metrics of their tokens.

Row n is about the target's position slots[n] + 1. The chain that predicts it at step i started i rows earlier:

    slots         7      8      9     10     23     24
    step 0      7>9   8>10   9>11  10>12  23>25  24>26        chain from slot t > token it predicts
    step 1        .   7>10   8>11   9>12      .  23>26
    step 2        .      .   7>11   8>12      .      .
"""

import jax
import jax.numpy as jnp

from eagle_jax.models.draft_head import HeadParams
from eagle_jax.training.losses import CROSS_ENTROPY, Objective, VocabularyLoss, vocabulary_loss
from eagle_jax.training.records import NO_SLOT, Batch, Features, Tally, Vocabulary


def lm_head_of(params: HeadParams, vocabulary: Vocabulary) -> jax.Array:
    """The head's LM head: its own rows, or the target's where it has none."""
    return vocabulary.lm_head if params.lm_head is None else params.lm_head


def take(x: jax.Array, slots: jax.Array) -> jax.Array:
    """What stands at slots i32[B, R] of x [B, T, ...]: [B, R, ...]; zero outside the row."""

    def of_row(row: jax.Array, index: jax.Array) -> jax.Array:
        # A negative index would count from the end.
        return row.at[jnp.where(index < 0, len(row), index)].get(mode="fill", fill_value=0)

    return jax.vmap(of_row)(x, slots)  # row by row, so that rows on a mesh stay on their devices


def shift(x: jax.Array, by: int) -> jax.Array:
    """Move x [B, R, ...] `by` rows on, zeros in front: row n of step i belongs to the chain of row n - i."""
    return x if by == 0 else jnp.pad(x, [(0, 0), (by, 0), *[(0, 0)] * (x.ndim - 2)])[:, : x.shape[1]]


def chain_rows(slots: jax.Array, num_steps: int) -> jax.Array:
    """Which rows count at each step: bool[I, B, R].

    Row n is about the target's position slots[n] + 1. At step i it belongs to the chain i slots before; that chain
    counts if each slot in between is in the list too, so that it stays inside one answer.
    """
    real = slots != NO_SLOT
    steps = [real]
    for step in range(1, num_steps):
        earlier = jnp.pad(slots, [(0, 0), (step, 0)], constant_values=NO_SLOT)[:, : slots.shape[1]]
        steps.append(real & (earlier == slots - step))
    return jnp.stack(steps)


def official_rows(batch: Batch, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Slots i32[B, T + I - 1] and which rows count, bool[I, B, T + I - 1], as in the reference code.

    Row n is about position n + 1, the chain at step i started at slot n - i; past the end of the row there is no mask
    but for chains that started inside it, and the target is a row of zeros.
    """
    size, length = batch.tokens.shape
    slots = jnp.arange(length + num_steps - 1)
    masked = take(batch.supervised, jnp.broadcast_to(slots, (size, slots.shape[0])))
    start = slots[None, :] - jnp.arange(num_steps)[:, None]
    inside = (start >= 0) & (start < length)
    return jnp.broadcast_to(slots, (size, slots.shape[0])), masked[None] & inside[:, None]


def in_vocabulary(tokens: jax.Array, vocabulary: Vocabulary, vocab_size: int) -> jax.Array:
    """Whether tokens i32[...] can be drafted: bool[...]; NO_TOKEN cannot."""
    if vocabulary.target_ids is None:
        return tokens >= 0
    known = jnp.zeros(vocab_size, bool).at[vocabulary.target_ids].set(True)
    return (tokens >= 0) & known[jnp.maximum(tokens, 0)]


def token_loss(
    reads: jax.Array,
    lm_head: jax.Array,
    vocabulary: Vocabulary,
    features: Features,
    slots: jax.Array,
    valid: jax.Array,
    weights: jax.Array,
    *,
    vocab_size: int,
    chunk: int | None,
    objective: Objective = CROSS_ENTROPY,
    train_lm_head: bool = False,
) -> tuple[jax.Array, Tally]:
    """The objective, where the target's choice can be drafted: its weighted sum f32[], and what is counted.

    Args:
      reads: [I, B, R, E], what the LM head reads at each step.
      lm_head: [U, E].
      vocabulary: whose rows these are, and the target's rows for them.
      features: the target's.
      slots: i32[B, R]; row n is about position slots[n] + 1.
      valid: bool[I, B, R], rows that count.
      weights: f32[I, B, R]; 0 where `valid` is False.
      vocab_size: V, of the target.
      chunk, objective, train_lm_head: as `vocabulary_loss` takes them.
    """
    choice = take(features.choice, slots + 1)
    known = in_vocabulary(choice, vocabulary, vocab_size)
    teacher = take(features.hidden, slots + 1)
    loss = vocabulary_loss(
        reads.reshape(reads.shape[0], -1, reads.shape[-1]),
        lm_head,
        teacher.reshape(-1, teacher.shape[-1]),
        vocabulary.lm_head,
        (weights * known[None]).reshape(reads.shape[0], -1),
        objective=objective,
        chunk=chunk,
        train_lm_head=train_lm_head,
    )
    return loss.total, tally_of(loss, valid, known, choice, vocabulary)


def tally_of(
    loss: VocabularyLoss, valid: jax.Array, known: jax.Array, choice: jax.Array, vocabulary: Vocabulary
) -> Tally:
    """Sums that the metrics are made of.

    Args:
      loss: of I steps at B * R rows.
      valid: bool[I, B, R], rows that count.
      known: bool[B, R], the target's choice is in the vocabulary.
      choice: i32[B, R], the target's.
      vocabulary: what `loss.choice` indexes.
    """
    drafted = loss.choice if vocabulary.target_ids is None else vocabulary.target_ids[loss.choice]
    correct = valid & known[None] & (drafted.reshape(valid.shape) == choice[None])
    so_far, joint = None, []
    for step in range(valid.shape[0]):
        # Row n of this step continues the chain that row n - 1 of the step before belongs to.
        so_far = correct[step] if so_far is None else correct[step] & shift(so_far, 1)
        joint.append(so_far)
    cross_entropy, acceptance = (x.reshape(valid.shape) for x in (loss.cross_entropy, loss.acceptance))
    return count(valid, known[None], cross_entropy, acceptance, correct, jnp.stack(joint))


def count(
    valid: jax.Array,
    known: jax.Array,
    cross_entropy: jax.Array,
    acceptance: jax.Array,
    correct: jax.Array,
    joint: jax.Array,
) -> Tally:
    """Sums over rows [I, B, R] of each step: which count, where the target's choice can be drafted, and so on."""

    def total(rows: jax.Array) -> jax.Array:
        return rows.sum((1, 2)).astype(jnp.float32)

    return Tally(
        rows=total(valid),
        in_vocabulary=total(valid & known),
        cross_entropy=total(jnp.where(valid & known, cross_entropy, 0)),
        acceptance=total(jnp.where(valid & known, acceptance, 0)),
        correct=total(correct),
        joint=total(joint),
        feature_error=jnp.zeros(()),
    )
