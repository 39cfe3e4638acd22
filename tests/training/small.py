"""A tiny target with a tiny head of each kind, and text for them."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import Head, HeadParams, make_head
from eagle_jax.sharding import make_mesh, place, target_shardings
from eagle_jax.testing import tiny_transformer
from eagle_jax.training import initialise
from eagle_jax.training.conversations import Example
from eagle_jax.training.data import assemble_row, pack
from eagle_jax.training.features import compute_features
from eagle_jax.training.records import Batch, Features, Vocabulary
from eagle_jax.types import Params, Target

KINDS: tuple[Literal["eagle", "eagle3"], ...] = ("eagle", "eagle3")


@functools.cache
def model(seed: int = 0, **overrides: Any) -> tuple[ModelConfig, Target, Params]:
    """A target of three layers over 64 tokens."""
    return tiny_transformer(seed, **overrides)


def on_a_mesh() -> tuple[Mesh, Params]:
    """Four groups of two devices, and the weights of `model()` split over those of a group."""
    config, _, params = model()
    mesh = make_mesh(4, 2)
    return mesh, place(params, target_shardings(mesh, config))


@functools.cache
def head(
    kind: Literal["eagle", "eagle3"], seed: int = 0, *, draft_size: int = 0, taps: tuple[int, ...] = ()
) -> tuple[Head, HeadParams, Vocabulary]:
    """A random head for `model()`, with the target's rows of the first `draft_size` of some ranking as LM head."""
    config, target, params = model()
    made = make_head(initialise.head_config(config, kind, taps=taps), target)
    ranks = np.random.default_rng(seed).permutation(config.vocab_size).astype(np.int32)
    vocabulary = initialise.make_vocabulary(config, params, ranks, draft_size)
    rows = vocabulary.lm_head if draft_size else None
    weights = nn.unbox(made.init(jax.random.key(seed)))
    return made, HeadParams(weights, rows, vocabulary.target_ids), vocabulary


def document(seed: int, size: int, start: int, stop: int | None = None) -> Example:
    """Random text whose tokens start..stop-1 are supervised."""
    tokens = np.random.default_rng(seed).integers(3, 64, size).astype(np.int32)
    supervised = np.zeros(size, bool)
    supervised[start:stop] = True
    return Example(tokens, supervised)


def batch_of(examples: list[Example], length: int, num_slots: int | None = None, rows: int | None = None) -> Batch:
    """The documents packed into as few rows as `pack` needs, or one document a row where `rows` asks for that."""
    packing = pack(examples, length, num_slots)
    documents = [[index] for index in range(rows)] if rows else packing.rows
    made = [assemble_row(packing, row) for row in documents]
    return Batch(**{name: jnp.asarray(np.stack([row[name] for row in made])) for name in made[0]})


_compute_features = jax.jit(compute_features, static_argnames=("target", "everywhere"))


def features_of(batch: Batch, everywhere: bool = False) -> Features:
    """What `model()` says about a batch."""
    _, target, params = model()
    return _compute_features(target, params, batch, everywhere=everywhere)
