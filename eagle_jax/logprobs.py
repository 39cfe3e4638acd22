"""Log-probabilities of the answers: what the target itself gave each token, and the most probable ones in its place.

They are those of softmax(logits), before temperature, top-k and top-p, as inference engines report them, and come from
the logits that verification has anyway. So they are plain decoding's own, whatever the drafting method.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from eagle_jax.cache import append
from eagle_jax.sampling import top_k_rows


@struct.dataclass
class Logprobs:
    """By position of the text; only those of the answer mean anything."""

    written: jax.Array  # f32[B, S], of the token that stands there
    top: jax.Array  # f32[B, S, n], of the n most probable tokens there, the largest first
    top_ids: jax.Array  # i32[B, S, n], these tokens


class AnswerLogprobs(NamedTuple):
    """Of one answer of n tokens, on the host."""

    written: np.ndarray  # f32[n]
    top: np.ndarray  # f32[n, k], the largest first
    top_ids: np.ndarray  # i32[n, k]


def no_logprobs(batch: int, capacity: int, num_top: int) -> Logprobs:
    """Of texts that have no answer yet, with `num_top` most probable tokens a position."""
    tops = (batch, capacity, num_top)
    return Logprobs(jnp.zeros((batch, capacity)), jnp.zeros(tops), jnp.zeros(tops, jnp.int32))


def record(logprobs: Logprobs, logits: jax.Array, tokens: jax.Array, start: jax.Array, count: jax.Array) -> Logprobs:
    """`logprobs` with those of the first `count` tokens of each row, which stand at `start` and after.

    Args:
      logprobs: so far.
      logits: f32[B, P, V], the target's for each token.
      tokens: i32[B, P].
      start, count: i32[B].
    """
    of_all = jax.nn.log_softmax(logits, axis=-1)
    written = jnp.take_along_axis(of_all, tokens[:, :, None], axis=-1)[:, :, 0]
    top, top_ids = top_k_rows(of_all, logprobs.top.shape[-1])
    added = Logprobs(written, top, top_ids)
    return jax.tree.map(lambda old, new: append(old, new, start, count), logprobs, added)


def of_answer(logprobs: Logprobs, row: int, start: int, length: int) -> AnswerLogprobs:
    """Those of the `length` tokens from position `start` on, of a row of arrays that are on the host."""
    place = row, slice(start, start + length)
    return AnswerLogprobs(*(np.asarray(field)[place] for field in (logprobs.written, logprobs.top, logprobs.top_ids)))
