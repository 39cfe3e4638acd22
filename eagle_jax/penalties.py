"""Penalties on tokens that a text has already, exact under speculation: each node of a tree has its own text before it.

    repetition   logits of tokens of prompt or answer are divided where positive, else multiplied (CTRL, Keskar et al.,
                 arXiv 1909.05858, section 4.1; as in `transformers`)
    presence     subtracted from logits of tokens of the answer (OpenAI's API)

They change the target's logits before anything is chosen from them, so what is drafted is checked against the same
choice that plain decoding makes. Drafters do not know of them: the more they change, the less is accepted.
"""

import jax
import jax.numpy as jnp

from eagle_jax.types import Penalties


def penalise(
    logits: jax.Array,
    penalties: Penalties,
    text: jax.Array,
    prompt_length: jax.Array,
    length: jax.Array,
    drafted: jax.Array,
    above: jax.Array,
) -> jax.Array:
    """Logits for the token after each node.

    Args:
      logits: f32[B, N, V].
      penalties: of each row.
      text: i32[B, S].
      prompt_length, length: i32[B]; the prompt ends before one, the text that all nodes share before the other.
      drafted: i32[B, M], tokens of nodes.
      above: bool[B, N, M], those of them on the path to each node of `logits`, itself included.
    """
    slots = jnp.arange(text.shape[1])[None, :]
    in_text = slots < length[:, None]
    in_answer = in_text & (slots >= prompt_length[:, None])
    vocab_size = logits.shape[-1]
    on_path = jax.vmap(jax.vmap(_mark, (None, 0, None)), (0, 0, None))(drafted, above, vocab_size)
    of_text, of_answer = (jax.vmap(_mark, (0, 0, None))(text, some, vocab_size) for some in (in_text, in_answer))
    repetition, presence = (x[:, None, None] for x in (penalties.repetition, penalties.presence))
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(of_text[:, None] | on_path, repeated, logits)
    return jnp.where(of_answer[:, None] | on_path, logits - presence, logits)


def penalise_text(
    logits: jax.Array, penalties: Penalties, text: jax.Array, prompt_length: jax.Array, length: jax.Array
) -> jax.Array:
    """Logits f32[B, V] for the token after the first `length` of `text`, without a tree."""
    batch = len(length)
    nothing = jnp.zeros((batch, 0), jnp.int32), jnp.zeros((batch, 1, 0), bool)
    return penalise(logits[:, None], penalties, text, prompt_length, length, *nothing)[:, 0]


def _mark(tokens: jax.Array, counted: jax.Array, vocab_size: int) -> jax.Array:
    """Which tokens are among i32[T] where `counted` bool[T]: bool[V]."""
    return jnp.zeros(vocab_size, bool).at[jnp.where(counted, tokens, vocab_size)].set(True, mode="drop")
