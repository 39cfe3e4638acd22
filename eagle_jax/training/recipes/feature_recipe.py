"""The EAGLE-1/2 recipe: regress the target's next feature, and let its LM head judge the guess.

Source: arXiv 2401.15077, section 3.2: smooth L1 on the feature + 0.1 times soft cross-entropy through the target's LM
head; uniform noise on the features fed, against the drift of a head that later feeds on itself. One step, no unrolling.
The reference code scales the noise by 512 / T; the paper does not, and neither do we.
"""

import dataclasses

import jax
import jax.numpy as jnp

from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.training import alignment
from eagle_jax.training.losses import Objective, ObjectiveName, feature_error
from eagle_jax.training.records import Batch, Features, Recipe, Tally, Vocabulary
from eagle_jax.training.unroll import unroll
from eagle_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Knobs of the recipe."""

    feature_weight: float = 1.0
    token_weight: float = 0.1
    objective: ObjectiveName = "cross_entropy"  # of the tokens' loss, or an LK loss (`losses.Objective`)
    lk_decay: float = 3.0  # of lk_lambda
    noise: float = 0.1  # half the width of the uniform noise, in units of the feature
    chunk: int | None = None  # rows whose logits exist at a time; None: by platform
    block: int | None = None  # slots whose attention scores exist at a time; None: by platform

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")
        if min(self.feature_weight, self.token_weight) < 0 or self.feature_weight + self.token_weight == 0:
            raise ValueError(f"weights must be positive, got {self.feature_weight} and {self.token_weight}")
        Objective(self.objective, self.lk_decay)  # refuses what it does not know


def make_feature_recipe(head: Head, config: FeatureConfig) -> Recipe:
    """The recipe for one head."""

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
        hidden = features.hidden
        fed = hidden
        if key is not None:
            fed += jax.random.uniform(key, hidden.shape, hidden.dtype, -config.noise, config.noise)
        (state,) = unroll(head, params, target_params, batch, fed, batch.slots, 1, block=config.block)
        valid = alignment.chain_rows(batch.slots, 1)
        share = valid / jnp.maximum(divisors, 1)[:, None, None]
        errors = feature_error(state, alignment.take(hidden, batch.slots + 1))
        total, tally = alignment.token_loss(
            head.readout(params, state)[None],
            alignment.lm_head_of(params, vocabulary),
            vocabulary,
            features,
            batch.slots,
            valid,
            config.token_weight * share,
            vocab_size=head.config.layer.vocab_size,
            chunk=config.chunk,
            objective=Objective(config.objective, config.lk_decay),
        )
        total += config.feature_weight * (share[0] * errors).sum()
        return total, dataclasses.replace(tally, feature_error=(valid[0] * errors).sum())

    return Recipe(1, divisors_of, loss)
