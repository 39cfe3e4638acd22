"""Small stand-ins for a target and a tokenizer, so that tests and examples need no download.

Two targets: a bigram table, whose distribution is known in closed form and whose cache shows which token was committed
where, and a real but tiny transformer. Equal arguments give the same objects, so nothing is compiled twice.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from eagle_jax.cache import init_cache
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.transformer import init_params, make_target
from eagle_jax.types import KVCache, Params, Target, TargetOutput


@functools.cache
def bigram_target(vocab_size: int, seed: int = 0, *, scale: float = 1.5) -> tuple[Target, Params]:
    """A target whose next token depends on the current token alone.

    Its parameters are `{"table": f32[V, V]}`; row t holds the logits of the token after t. These rows are embeddings
    and hidden states too (E = V), and `unembed` is the identity, so logits are equal bit for bit in every batch shape.
    The one layer's key is the token's id and its value the position ([B, T, 1, 1] each): a test can read back what a
    cache holds.

    Args:
      vocab_size: V.
      seed: of the random table.
      scale: standard deviation of the logits.
    """
    table = scale * np.random.default_rng(seed).standard_normal((vocab_size, vocab_size))
    return _bigram(vocab_size), {"table": jnp.asarray(table, jnp.float32)}


@functools.cache
def _bigram(vocab_size: int) -> Target:
    def embed(params: Params, tokens: jax.Array) -> jax.Array:
        return params["table"][tokens]

    def forward(
        params: Params, tokens: jax.Array, positions: jax.Array, cache: KVCache, block_mask: jax.Array
    ) -> TargetOutput:
        del cache, block_mask  # the current token is all that counts
        hidden = embed(params, tokens)
        return TargetOutput(
            hidden=hidden,
            taps=jnp.concatenate([hidden] * 3, axis=-1),
            keys=(tokens.astype(jnp.float32)[:, :, None, None],),
            values=(positions.astype(jnp.float32)[:, :, None, None],),
        )

    return Target(
        forward=forward,
        embed=embed,
        unembed=lambda params, hidden: hidden,
        init_cache=lambda batch, capacity, dtype="float32": init_cache(1, batch, capacity, 1, 1, jnp.dtype(dtype)),
        vocab_size=vocab_size,
        max_positions=1 << 20,
    )


@functools.cache
def tiny_transformer(
    seed: int = 0, *, logit_scale: float = 2.0, prefix_block: int = 16, **overrides: Any
) -> tuple[ModelConfig, Target, Params]:
    """A random Llama of three layers, width 32 and 64 tokens; its distributions are neither flat nor one-hot.

    Args:
      seed: of the weights.
      logit_scale: factor on the LM head: the standard deviation of the logits where embeddings are not tied.
      prefix_block: cache slots attended at a time; small, so that short texts span several blocks.
      **overrides: any field of `ModelConfig`.

    Returns:
      The config, the target, and its unboxed float32 parameters.
    """
    sizes: dict[str, Any] = {"vocab_size": 64, "width": 32, "mlp_width": 64, "num_layers": 3}
    heads: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    rest: dict[str, Any] = {"max_positions": 512, "norm_eps": 1e-5, "rope_theta": 1e4}
    config = ModelConfig(**{**sizes, **heads, **rest, **overrides})
    params = nn.unbox(init_params(config, jax.random.key(seed, impl="threefry2x32")))
    head = "embed_tokens" if config.tie_embeddings else "lm_head"
    scale = logit_scale * config.width**-0.5 if config.tie_embeddings else logit_scale
    return config, make_target(config, prefix_block=prefix_block), {**params, head: scale * params[head]}


class ByteTokenizer:
    """UTF-8 bytes as tokens 0 to 255, then two marks around each turn of a chat."""

    start_id = 256
    end_id = 257

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return 258

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return (self.end_id,)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; marks are left out, broken UTF-8 is shown as U+FFFD."""
        return bytes(i for i in ids if i < self.start_id).decode(errors="replace")

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids of a conversation, ending where the assistant is to answer."""
        ids: list[int] = []
        for message in messages:
            ids += [self.start_id, *self.encode(f"{message['role']}\n{message['content']}"), self.end_id]
        return [*ids, self.start_id, *self.encode("assistant\n")]
