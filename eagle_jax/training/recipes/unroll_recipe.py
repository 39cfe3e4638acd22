"""The EAGLE-3 recipe: k unrolled steps, soft cross-entropy on the draft vocabulary, nothing else by default.

Source: arXiv 2503.01840, section 3; reference code `traineagle3/cnets.py`. Two alignments of the loss mask:

              row counts at step i of the chain from slot t if              divisor of a step      step weights
    target    all tokens t + 2 .. t + 2 + i are supervised, in one answer   rows that count        0.8^i / sum
    official  token t + i is supervised, whatever follows it                B * T                  0.8^i

Both leave out rows where the target's most probable token is not in the draft vocabulary. The official one teaches
tokens two after the mask and, at the end of a full row, a uniform distribution (issue 885 of SpecForge): it is there to
repeat published runs.

`feature_weight` brings back EAGLE's feature loss, to see what dropping it is worth: smooth L1 between what the LM head
reads of each state and what the target's own LM head reads there. `objective` replaces the cross-entropy by an LK loss.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from eagle_jax.models.draft_head import Head, HeadParams, features_of
from eagle_jax.training import alignment
from eagle_jax.training.losses import Objective, ObjectiveName, feature_error
from eagle_jax.training.records import Batch, Features, Recipe, Tally, Vocabulary
from eagle_jax.training.unroll import unroll
from eagle_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnrollConfig:
    """Knobs of the recipe."""

    num_steps: int = 7
    decay: float = 0.8  # weight of a step over that of the step before it
    normalise: bool = True  # step weights sum to 1
    alignment: Literal["target", "official"] = "target"
    train_lm_head: bool = False
    objective: ObjectiveName = "cross_entropy"  # or an LK loss (`losses.Objective`)
    lk_decay: float = 3.0  # of lk_lambda
    feature_weight: float = 0.0  # of the feature loss over that of the tokens; 10 in EAGLE, none in EAGLE-3
    chunk: int | None = None  # rows whose logits exist at a time; None: by platform
    block: int | None = None  # chains whose attention scores exist at a time; None: by platform

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {self.decay}")
        if self.alignment not in ("target", "official"):
            raise ValueError(f"alignment must be target or official, got {self.alignment!r}")
        if self.feature_weight < 0:
            raise ValueError(f"feature_weight must be at least 0, got {self.feature_weight}")
        if self.feature_weight and self.alignment == "official":
            raise ValueError(f"the official alignment has no feature loss, got feature_weight {self.feature_weight}")
        Objective(self.objective, self.lk_decay)  # refuses what it does not know

    @property
    def step_weights(self) -> tuple[float, ...]:
        """Weight of each step's loss."""
        weights = [self.decay**step for step in range(self.num_steps)]
        return tuple(weight / sum(weights) for weight in weights) if self.normalise else tuple(weights)


OFFICIAL = UnrollConfig(normalise=False, alignment="official", train_lm_head=True)
"""The reference code's own: seven steps, weights 0.8^i, divisor B * T, a trained LM head."""


def make_unroll_recipe(head: Head, config: UnrollConfig) -> Recipe:
    """The recipe for one head."""
    num_steps = config.num_steps
    official = config.alignment == "official"

    def rows_of(batch: Batch) -> tuple[jax.Array, jax.Array]:
        if official:
            return alignment.official_rows(batch, num_steps)
        return batch.slots, alignment.chain_rows(batch.slots, num_steps)

    def divisors_of(batch: Batch) -> jax.Array:
        if official:
            return jnp.full(num_steps, float(batch.tokens.size))
        return rows_of(batch)[1].sum((1, 2)).astype(jnp.float32)

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
        slots, valid = rows_of(batch)
        fed = features_of(head.config, features.hidden, features.taps)
        states = unroll(head, params, target_params, batch, fed, slots, num_steps, block=config.block)
        reads = jnp.stack([alignment.shift(head.readout(params, state), step) for step, state in enumerate(states)])
        step_weights = jnp.asarray(config.step_weights) / jnp.maximum(divisors, 1)
        shares = valid * step_weights[:, None, None]
        total, tally = alignment.token_loss(
            reads,
            alignment.lm_head_of(params, vocabulary),
            vocabulary,
            features,
            slots,
            valid,
            shares,
            vocab_size=head.config.layer.vocab_size,
            chunk=config.chunk,
            objective=Objective(config.objective, config.lk_decay),
            train_lm_head=config.train_lm_head,
        )
        if not config.feature_weight:
            return total, tally
        errors = feature_error(reads, alignment.take(features.hidden, slots + 1)[None])
        total += config.feature_weight * (shares * errors).sum()
        return total, dataclasses.replace(tally, feature_error=(valid[0] * errors[0]).sum())

    return Recipe(num_steps, divisors_of, loss)
