"""The one-pass recipe: blocks at anchors sampled anew in each step, forward KL to the target, uniform weights.

Anchors are supervised text (DSpark, arXiv 2607.05147: 512 of them a sequence); each predicts a block as in decoding:

    text        x_0 ... x_a | x_a+1   x_a+2   x_a+3   the end of the answer
    slot                    | 0       1       2       3
    teacher                 | p(.|..a)  ..a+1   ..a+2   dropped, and all after it

The teacher of slot i is the target's distribution after x_a+i on the text itself. The loss is its cross-entropy with
the head's logits with edges, each given the text's own token before (a tree evaluates every predecessor, so training
meets what drafting does), plus `base_weight` times that with the logits alone, from which shortlists are made. Uniform
weights and the forward KL are those of JetSpec (arXiv 2606.18394): a tree reads the order of the runners-up. Rows where
the target's most probable token is not in the draft vocabulary are left out, as in the other recipes.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from eagle_jax.models.block_head import BlockHead
from eagle_jax.models.draft_head import HeadParams, features_of
from eagle_jax.training import alignment
from eagle_jax.training.block_pass import draft_blocks, pick_rows
from eagle_jax.training.edge_loss import EdgeRows, edge_loss
from eagle_jax.training.records import NO_SLOT, Batch, Features, Recipe, Tally, Vocabulary
from eagle_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """Knobs of the recipe."""

    num_anchors: int = 128  # blocks a packed row
    base_weight: float = 0.5  # of the logits without edges
    chunk: int | None = None  # rows whose logits exist at a time; None: by platform
    at_a_time: int = 64  # anchors whose attention scores exist at a time

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.num_anchors < 1 or self.at_a_time < 1:
            raise ValueError(f"num_anchors and at_a_time must be at least 1, got {self.num_anchors}, {self.at_a_time}")
        if self.base_weight < 0:
            raise ValueError(f"base_weight must be at least 0, got {self.base_weight}")


class Labels(NamedTuple):
    """Blocks of A anchors a row, D labels each; label i of an anchor at a is about the text's token at a + i + 1."""

    anchors: jax.Array  # i32[B, A], places in the row
    places: jax.Array  # i32[B, A, D], a + i
    valid: jax.Array  # bool[B, A, D], the label and all before it are supervised, in one answer


def labels_at(slots: jax.Array, rows: jax.Array, num_drafted: int) -> Labels:
    """The labels of blocks that start at `rows` i32[B, A] of `Batch.slots`, as `pick_rows` gives them."""
    steps = jnp.arange(num_drafted)[None, None]
    first = alignment.take(slots, rows)[:, :, None]
    later = alignment.take(slots, rows[:, :, None] + steps)
    # Slots ascend, so this one is i after the first only if all in between are in the list.
    valid = (rows != NO_SLOT)[:, :, None] & (later == first + steps)
    return Labels(first[:, :, 0] + 1, first + 1 + steps, valid)


def make_block_recipe(head: BlockHead, config: BlockConfig) -> Recipe:
    """The recipe for one head."""
    num_drafted = head.config.num_drafted

    def divisors_of(batch: Batch) -> jax.Array:
        """How many labels of each slot are to be expected of the anchors that are drawn."""
        real = (batch.slots != NO_SLOT).sum(1)
        share = jnp.minimum(config.num_anchors, real) / jnp.maximum(real, 1)
        return (alignment.chain_rows(batch.slots, num_drafted).sum(2) * share[None]).sum(1)

    def loss(
        params: HeadParams,
        target_params: Params,
        vocabulary: Vocabulary,
        batch: Batch,
        features: Features,
        divisors: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, Tally]:
        labels = labels_at(batch.slots, pick_rows(batch.slots, config.num_anchors, key), num_drafted)
        fed = features_of(head.config, features.hidden, features.taps)
        states = draft_blocks(head, params, target_params, batch, fed, labels.anchors, at_a_time=config.at_a_time)
        before, after = head.edge_vectors(params, alignment.take(batch.tokens, labels.places))
        choice = alignment.take(features.choice, labels.places)
        known = alignment.in_vocabulary(choice, vocabulary, head.config.layer.vocab_size)
        rows = EdgeRows(
            reads=_flat(head.readout(params, states)),
            before=_flat(before).astype(fed.dtype),
            after=after.astype(fed.dtype),
            lm_head=alignment.lm_head_of(params, vocabulary),
            teacher=_flat(alignment.take(features.hidden, labels.places)),
            teacher_lm_head=vocabulary.lm_head,
        )
        weights = (labels.valid & known) / jnp.maximum(divisors.sum(), 1)
        measured = edge_loss(rows, weights.reshape(-1), base_weight=config.base_weight, chunk=config.chunk)
        drafted = measured.choice if vocabulary.target_ids is None else vocabulary.target_ids[measured.choice]
        correct = labels.valid & known & (drafted.reshape(choice.shape) == choice)
        joint = jnp.cumprod(correct, axis=2).astype(bool)
        by_row = (x.reshape(choice.shape) for x in (measured.cross_entropy, measured.acceptance))
        counted = (jnp.moveaxis(x, 2, 0) for x in (labels.valid, known, *by_row, correct, joint))
        return measured.total, alignment.count(*counted)

    return Recipe(num_drafted, divisors_of, loss)


def _flat(x: jax.Array) -> jax.Array:
    """[B, A, D, n] -> [B * A * D, n]."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
