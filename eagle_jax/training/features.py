"""Outputs of the frozen target for a batch: taps, last hidden state, most probable next token.

One pure function, so that a training step can compute features online in its own compiled program. Where the same text
is read many times, `feature_cache` stores them on disk, tied to the text and the target by a fingerprint.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from eagle_jax.models.config import ModelConfig
from eagle_jax.provenance import DIGESTED, first_numbers
from eagle_jax.sampling import first_largest
from eagle_jax.sharding import EVERYWHERE, ROWS, by_group, over_rows
from eagle_jax.training.conversations import Example
from eagle_jax.training.records import NO_SLOT, Batch, Features
from eagle_jax.types import NO_TOKEN, Params, Target


def compute_features(
    target: Target, params: Params, batch: Batch, *, everywhere: bool = False, chunk: int | None = None
) -> Features:
    """One pass of the frozen target over packed text; documents do not see each other.

    Args:
      target, params: the target.
      batch: the text.
      everywhere: find the most probable token after every position (which the official alignment needs), not only
        after those of `batch.slots`.
      chunk: rows whose logits f32[chunk, V] exist at a time; None: by platform.
    """
    size, length = batch.tokens.shape
    causal = jnp.tril(jnp.ones((length, length), bool))
    mask = causal[None] & (batch.segments[:, :, None] == batch.segments[:, None, :])
    cache = target.init_cache(size, 1, target.activation_dtype(params))
    output = target.forward(params, batch.tokens, batch.positions, cache, mask)
    if everywhere:
        rows = jnp.ones(size * length, bool)
    else:
        places = jnp.where(batch.slots == NO_SLOT, length, batch.slots + 1)
        mark = jax.vmap(lambda row, index: row.at[index].set(True, mode="drop"))
        rows = mark(jnp.zeros((size, length), bool), places).reshape(-1)
    hidden = output.hidden.reshape(size * length, -1)
    choice = _choices(target, params, hidden, rows, chunk).reshape(size, length)
    return jax.tree.map(lax.stop_gradient, Features(output.taps, output.hidden, choice))


def _choices(target: Target, params: Params, hidden: jax.Array, rows: jax.Array, chunk: int | None) -> jax.Array:
    """Most probable token after hidden [N, E] in `rows` bool[N], else NO_TOKEN; the cost grows with these rows."""
    find = functools.partial(_find_choices, target, chunk=chunk)
    return by_group(find, rows.shape[0], (EVERYWHERE, ROWS, ROWS), ROWS)(params, hidden, rows)


def _find_choices(
    target: Target, params: Params, hidden: jax.Array, rows: jax.Array, *, chunk: int | None, axis: str | None
) -> jax.Array:
    def find(some: jax.Array, choices: jax.Array) -> jax.Array:
        tokens = first_largest(target.unembed(params, hidden.at[some].get(mode="fill", fill_value=0)))
        return choices.at[some].set(tokens, mode="drop")

    return over_rows(find, jnp.full(rows.shape, NO_TOKEN, jnp.int32), rows, chunk, axis)


def fingerprint(
    examples: Sequence[Example],
    target_name: str,
    config: ModelConfig,
    params: Params,
    everywhere: bool,
    tap_layers: Sequence[int] = (),
) -> str:
    """A hash of the text and of the target that reads it: its config, its own taps if any, the first of each weight.

    Taps that a head picks from those of the target are not in it: the features are the same.
    """
    about = [target_name, everywhere, *([[*tap_layers]] if tap_layers else [])]
    digest = hashlib.sha256(json.dumps(about).encode())
    digest.update(repr(dataclasses.replace(config, tap_layers=())).encode())
    for example in examples:
        digest.update(np.int64(len(example.tokens)).tobytes() + example.tokens.tobytes())
        digest.update(np.packbits(example.supervised).tobytes())
    for leaf in jax.tree.leaves(params):
        digest.update(first_numbers(leaf, DIGESTED).tobytes())
    return digest.hexdigest()
