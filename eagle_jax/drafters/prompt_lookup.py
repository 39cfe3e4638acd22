"""Prompt lookup: what followed the last n tokens the first time they occurred (A. Saxena, 2023).

For n from `max_ngram` down to 1, the earlier text is searched for its own last n tokens; the tokens after the
occurrence are proposed as a chain. No match means a plain step. Needs no weights and no state. Saxena's code skips an
occurrence followed by fewer tokens than are to be proposed; here the fewer tokens are proposed.
"""

import functools

import jax
import jax.numpy as jnp

from eagle_jax.drafters.base import Drafter, DrafterState, forget, stateless
from eagle_jax.tree import chain_tree, root_of
from eagle_jax.types import DraftTree, Params


def longest_match(text: jax.Array, length: jax.Array, max_ngram: int) -> tuple[jax.Array, jax.Array]:
    """Where the text continues after an earlier occurrence of its own end.

    Args:
      text: i32[B, S]; the newest token is at index `length`.
      length: i32[B].
      max_ngram: longest run of last tokens to look for; shorter ones follow down to 1.

    Returns:
      i32[B], index of the token after the first occurrence of the longest run, and bool[B], whether there is one.
    """
    capacity = text.shape[1]
    ends = jnp.arange(capacity)[None, :]  # candidate occurrences by the index of their last token
    agreed = jnp.zeros(text.shape, jnp.int32)  # tokens in agreement before each end, as far as max_ngram
    unbroken = ends < length[:, None]
    for back in range(max_ngram):
        wanted = jnp.take_along_axis(text, jnp.maximum(length[:, None] - back, 0), axis=1)
        shifted = jnp.pad(text, ((0, 0), (back, 0)))[:, :capacity]
        unbroken = unbroken & (shifted == wanted) & (ends >= back) & (length[:, None] >= back)
        agreed = agreed + unbroken
    best = agreed.argmax(-1).astype(jnp.int32)  # the first of those that agree longest
    return best + 1, agreed.max(-1) > 0


@functools.cache
def make_prompt_lookup(num_drafted: int = 10, max_ngram: int = 3) -> Drafter:
    """Chain of up to `num_drafted` tokens copied from the text.

    Args:
      num_drafted: longest proposal (Spec-Bench: 10).
      max_ngram: longest run of tokens looked up (Spec-Bench: 3).

    Raises:
      ValueError: a size below 1.
    """
    if num_drafted < 1 or max_ngram < 1:
        raise ValueError(
            f"prompt lookup needs sizes of at least 1, got {num_drafted} tokens and n-grams of {max_ngram}"
        )

    def propose(
        params: Params, target_params: Params, state: DrafterState, text: jax.Array, length: jax.Array, noise: jax.Array
    ) -> tuple[DraftTree, DrafterState]:
        del params, target_params, noise
        start, matched = longest_match(text, length, max_ngram)
        slots = start[:, None] + jnp.arange(num_drafted)[None, :]
        drafted = jnp.take_along_axis(text, jnp.minimum(slots, text.shape[1] - 1), axis=1)
        known = jnp.where(matched, jnp.minimum(num_drafted, length + 1 - start), 0)
        return chain_tree(root_of(text, length), drafted, known, jnp.zeros(drafted.shape, jnp.float32)), state

    return Drafter(
        name="prompt_lookup",
        nodes=num_drafted + 1,
        max_depth=num_drafted,
        init=stateless,
        propose=propose,
        observe=forget,
    )
