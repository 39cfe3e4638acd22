"""A small draft model learns the target's distribution of the next token: what speculative sampling drafts with.

Knowledge distillation (arXiv 1503.02531) on the target's own answers, as draft models for speculative decoding are made
(DistillSpec, arXiv 2310.08461): cross-entropy of the student against the target's distribution. The student is a
transformer of its own that shares the target's embedding and LM head; both stay frozen.
"""

import jax
import jax.numpy as jnp

from eagle_jax.models.draft_head import HeadParams
from eagle_jax.training import alignment
from eagle_jax.training.records import Batch, Features, Recipe, Tally, Vocabulary
from eagle_jax.types import Params, Target

FROZEN = ("embed_tokens", "lm_head")
"""What the student shares with its target."""


def whole_student(weights: Params, target_params: Params) -> Params:
    """The student's trained weights with the parts that are the target's."""
    return {**weights, **{name: target_params[name] for name in FROZEN if name in target_params}}


def make_distill_recipe(student: Target, *, chunk: int | None = None) -> Recipe:
    """The recipe for one draft model; `HeadParams.weights` are its weights but for those in `FROZEN`.

    Args:
      student: the draft model.
      chunk: rows whose logits exist at a time; None: by platform.
    """

    def divisors_of(batch: Batch) -> jax.Array:
        return alignment.chain_rows(batch.slots, 1).sum((1, 2)).astype(jnp.float32)

    def loss(
        params: HeadParams,
        target_params: Params,
        vocabulary: Vocabulary,
        batch: Batch,
        features: Features,
        divisors: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Tally]:
        del key  # nothing is drawn
        size, length = batch.tokens.shape
        mask = jnp.tril(jnp.ones((length, length), bool))[None]
        mask &= batch.segments[:, :, None] == batch.segments[:, None, :]
        weights = whole_student(params.weights, target_params)
        cache = student.init_cache(size, 1, student.activation_dtype(weights))
        output = student.forward(weights, batch.tokens, batch.positions, cache, mask)
        valid = alignment.chain_rows(batch.slots, 1)
        return alignment.token_loss(
            alignment.take(output.hidden, batch.slots + 1)[None],
            vocabulary.lm_head,
            vocabulary,
            features,
            batch.slots,
            valid,
            valid / jnp.maximum(divisors, 1)[:, None, None],
            vocab_size=student.vocab_size,
            chunk=chunk,
        )

    return Recipe(1, divisors_of, loss)
