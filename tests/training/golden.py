"""The official training pass as the recipes take it, read from the fixtures."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from eagle_jax.checkpoint.head_formats import head_tensors
from eagle_jax.checkpoint.names import lookup
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.training.records import Batch, Features, Vocabulary
from eagle_jax.types import Params
from tests import golden

SEEDS = golden.SEEDS


@dataclasses.dataclass(frozen=True)
class Golden:
    """One seed's fixture.

    The target's logits are given, not its hidden states, so the vocabulary's rows select from logits.
    """

    head: Head
    params: HeadParams
    target_params: Params
    vocabulary: Vocabulary
    batch: Batch
    features: Features
    results: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]


def load(seed: int) -> Golden:
    """Read everything of one seed."""
    head, params = golden.head(f"seed{seed}/generate/eagle3_head")
    results = golden.results(f"seed{seed}/train/eagle3_unroll.npz")
    logits = jnp.asarray(results["target_logits"])
    size, length = results["input_ids"].shape
    slots = jnp.broadcast_to(jnp.arange(length), (size, length))
    return Golden(
        head=head,
        params=params,
        target_params=golden.target(seed)[2],
        vocabulary=Vocabulary(jnp.eye(logits.shape[-1])[params.target_ids], params.target_ids),
        batch=Batch(
            tokens=jnp.asarray(results["input_ids"], jnp.int32),
            segments=jnp.asarray(results["attention_mask"], jnp.int32),
            positions=slots,
            supervised=jnp.asarray(results["loss_mask"], bool),
            slots=slots,  # the official alignment makes its own
        ),
        features=Features(jnp.asarray(results["features"]), logits, logits.argmax(-1).astype(jnp.int32)),
        results=results,
        grads=golden.results(f"seed{seed}/train/eagle3_grads.npz"),
    )


def stored(head: Head, weights: Params) -> dict[str, np.ndarray]:
    """The head's weights, or their gradients, under the names and in the layout of the file."""
    return {
        name: spec.to_stored(np.asarray(lookup(weights, spec.path))) for name, spec in head_tensors(head.config).items()
    }
