r"""A pool of n-grams: which phrases followed a token, and the branches that the newest of them make in a tree.

Lookahead decoding (arXiv 2402.02057) and Ouroboros (arXiv 2402.13720) use a dictionary from a token, the key, to up to
G phrases that followed it; a phrase seen again becomes the newest, and the oldest is evicted. So a key has the G
distinct phrases inserted last, and the dictionary can be stored as a log: insertion appends to a ring of M n-grams, and
a lookup takes the newest distinct phrases of its key. Compared with a hash table, nothing collides, the n-grams of one
round are inserted at once, and memory is M n-grams a row, not keys times G (80 KB for 4096 of five tokens). An
insertion is one small scatter, a lookup compares M keys; n-grams older than the last M are dropped.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from eagle_jax.drafters.base import Observation
from eagle_jax.types import NO_PARENT, NO_TOKEN, DraftTree


@struct.dataclass
class NgramPool:
    """The last M n-grams of each row, in a ring; n-gram i is in slot i mod M."""

    keys: jax.Array  # i32[B, M], first tokens; NO_TOKEN in slots not yet written
    phrases: jax.Array  # i32[B, M, n - 1], the tokens after them
    count: jax.Array  # i32[B], n-grams ever inserted


def empty_pool(batch: int, capacity: int, phrase_length: int) -> NgramPool:
    """A pool for `capacity` n-grams of `phrase_length` + 1 tokens in each row."""
    return NgramPool(
        keys=jnp.full((batch, capacity), NO_TOKEN, jnp.int32),
        phrases=jnp.zeros((batch, capacity, phrase_length), jnp.int32),
        count=jnp.zeros(batch, jnp.int32),
    )


def insert(pool: NgramPool, ngrams: jax.Array, valid: jax.Array) -> NgramPool:
    """Append n-grams i32[B, I, n] where `valid` bool[B, I], the first one as the oldest."""
    batch, capacity = pool.keys.shape
    index = pool.count[:, None] + jnp.cumsum(valid, axis=1, dtype=jnp.int32) - 1
    count = pool.count + valid.sum(-1, dtype=jnp.int32)
    # More than the ring holds: of two n-grams for one slot only the newer may be written.
    stored = valid & (index >= count[:, None] - capacity)
    rows, slots = jnp.arange(batch)[:, None], jnp.where(stored, index % capacity, capacity)
    return NgramPool(
        keys=pool.keys.at[rows, slots].set(ngrams[:, :, 0], mode="drop"),
        phrases=pool.phrases.at[rows, slots].set(ngrams[:, :, 1:], mode="drop"),
        count=count,
    )


def newest(pool: NgramPool, key: jax.Array, number: int) -> tuple[jax.Array, jax.Array]:
    """The `number` distinct phrases after `key` i32[B] that were inserted last.

    Returns:
      i32[B, number, n - 1], newest first, and bool[B, number], whether there is such a phrase; the others are zeros.
    """
    capacity = pool.keys.shape[1]
    age = (pool.count[:, None] - 1 - jnp.arange(capacity)[None, :]) % capacity

    def take(left: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The newest of the remaining phrases; then remove all its occurrences."""
        slot = (pool.count - 1 - jnp.where(left, age, capacity).min(-1)) % capacity
        phrase = jnp.take_along_axis(pool.phrases, slot[:, None, None], axis=1)
        differs = (pool.phrases != phrase).any(-1)
        valid = left.any(-1)
        return left & differs, (jnp.where(valid[:, None], phrase[:, 0], 0), valid)

    _, (phrases, valid) = lax.scan(take, pool.keys == key[:, None], None, length=number)
    return jnp.moveaxis(phrases, 0, 1), jnp.moveaxis(valid, 0, 1)


def text_ngrams(observation: Observation, size: int) -> tuple[jax.Array, jax.Array]:
    """The n-grams of the text that end in a token which joined it: i32[B, P, size], and bool[B, P] where there is one.

    The tokens that joined are those after the ones in the cache, so the newest token counts and the very first one of a
    prompt does not; no n-gram of two tokens or more ends there.
    """
    steps = jnp.arange(observation.path.shape[1])[None, :]
    ends = observation.length[:, None] + 1 + steps
    places = ends[:, :, None] - jnp.arange(size)[None, None, ::-1]
    flat = jnp.maximum(places, 0).reshape(places.shape[0], -1)
    ngrams = jnp.take_along_axis(observation.text, flat, axis=1, mode="clip").reshape(places.shape)
    return ngrams, (steps < observation.count[:, None]) & (ends >= size - 1)


def with_branches(tree: DraftTree, phrases: jax.Array, valid: jax.Array, *, base: int, depth: int) -> DraftTree:
    r"""Attach phrases to one node of a tree; those with a common prefix share its nodes, as siblings must differ.

    Token d of phrase g gets slot N + g * D + d. Where an earlier phrase begins with the same d + 1 tokens, both use
    that one's slot and this one stays unused.

        phrases  a b c        base           slots  N +  0 1 2
                 a b d       /    \                      - - 5
                 e b c      0      6                     6 7 8
                            |      |
                            1      7
                           / \     |
                          2   5    8

    Args:
      tree: the tree so far, of N slots.
      phrases: i32[B, G, D], distinct where valid.
      valid: bool[B, G].
      base: the node that they start from.
      depth: its depth.

    Returns:
      The tree with G * D slots more. Phrases have no confidence: their nodes take the value of the base.
    """
    batch, number, length = phrases.shape
    which = jnp.arange(number)
    differs = phrases[:, :, None, :] != phrases[:, None, :, :]
    alike = (jnp.cumsum(differs, axis=-1) == 0) & valid[:, None, :, None]  # [b, g, h, d]: g and h agree up to token d
    first = jnp.where(alike, which[None, None, :, None], number).min(axis=2, initial=number)
    slots = tree.tokens.shape[1] + first * length + jnp.arange(length)[None, None, :]
    above = jnp.concatenate([jnp.full((batch, number, 1), base), slots[:, :, :-1]], axis=2)
    used = (valid[:, :, None] & (first == which[None, :, None])).reshape(batch, -1)
    parents = jnp.where(used, above.reshape(batch, -1), NO_PARENT).astype(jnp.int32)
    values = jnp.broadcast_to(tree.log_values[:, base, None], parents.shape)
    return dataclasses.replace(
        tree,
        tokens=jnp.concatenate([tree.tokens, phrases.reshape(batch, -1)], axis=1),
        parents=jnp.concatenate([tree.parents, parents], axis=1),
        candidate=jnp.concatenate([tree.candidate, used], axis=1),
        log_values=jnp.concatenate([tree.log_values, values], axis=1),
        max_depth=max(tree.max_depth, depth + length),
    )


def check_pool(capacity: int) -> None:
    """Refuse a pool that can hold nothing.

    Raises:
      ValueError: a capacity below 1.
    """
    if capacity < 1:
        raise ValueError(f"a pool needs room for at least 1 n-gram, got {capacity}")
