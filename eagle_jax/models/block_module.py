"""The network of a one-pass drafter: a few decoder layers whose every layer also sees features of the target.

DFlash (arXiv 2602.06036), DSpark (arXiv 2607.05147) and JetSpec (arXiv 2606.18394) share this skeleton. The target's
tapped features are fused once. Each layer makes keys and values of them with the same projections as of its own block:

    context  = hidden_norm(fc(taps))                  of the target alone, and the same for all layers
    x        = [embedding(anchor), mask, mask, ...]   the block
    x        = join([norm(x); newest context])        where the head does that, as the fc of EAGLE-1 (arXiv 2401.15077)
    x       += self_attn(input_layernorm(x); keys and values of context and of the block)
    x       += mlp(post_attention_layernorm(x))

Edges are low-rank scores of a token given the one before it (the Markov head of DSpark, section "Markov head"): logits
of a slot say nothing about which branch they continue, and this is where a branch comes in.

Weights carry the names of published checkpoints. Knows neither caches nor who attends to whom.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from eagle_jax.models.config import ModelConfig
from eagle_jax.models.layers import MLP, AttendFn, Attention, Projection, RMSNorm, axis_names

KeysValues = tuple[jax.Array, jax.Array]
"""Of one layer, [B, T, K, D] each, keys after RoPE."""


class BlockLayer(nn.Module):
    """A pre-norm decoder layer whose keys and values are made of two things: its own states and the context."""

    config: ModelConfig

    def setup(self) -> None:
        """Declares the weights under their published names."""
        config = self.config
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config)

    def context(self, context: jax.Array, rope: KeysValues) -> KeysValues:
        """Keys and values [B, T, K, D] of fused features [B, T, E], which have a norm of their own."""
        # Queries and output are not used, and the compiler drops them.
        _, keys, values = self.self_attn(context, rope, lambda queries, keys, values: queries)
        return keys, values

    def __call__(self, x: jax.Array, rope: KeysValues, attend_fn: AttendFn) -> jax.Array:
        """States of the block [B, T, E] -> [B, T, E]."""
        mixed, _, _ = self.self_attn(self.input_layernorm(x), rope, attend_fn)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x))


class Edges(nn.Module):
    """Two tables of token vectors: as the token before, and as the token after."""

    vocab_size: int
    rank: int

    def setup(self) -> None:
        """The successors start at zero, so that edges change nothing at first."""
        shape, names = (self.vocab_size, self.rank), ("vocab", "rank")
        self.previous = self.param("previous", axis_names(nn.initializers.normal(1.0), names), shape, jnp.float32)
        self.following = self.param("following", axis_names(nn.initializers.zeros, names), shape, jnp.float32)

    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Both tables [V, rank]."""
        return self.previous, self.following


class BlockModule(nn.Module):
    """Fusion, layers, norms, the mask's vector and the tables of the edges."""

    layer: ModelConfig  # shape of each layer
    num_layers: int
    feature_width: int
    num_taps: int
    fc_bias: bool
    fc_norm: bool  # RMSNorm on each tap before fc
    edge_rank: int  # 0: no edges
    own_mask: bool  # a learned vector in the slots after the anchor; else an embedding stands there
    joins_context: bool  # slots start with the newest context too

    def setup(self) -> None:
        """Declares the weights under their published names."""
        width, eps = self.layer.width, self.layer.norm_eps
        self.fc = Projection({"embed": self.feature_width}, {"embed": width}, self.fc_bias)
        self.hidden_norm = RMSNorm(width, eps)
        self.layers = [BlockLayer(self.layer) for _ in range(self.num_layers)]
        self.norm = RMSNorm(width, eps)
        if self.fc_norm:
            self.tap_norms = [
                RMSNorm(self.feature_width // self.num_taps, eps, name=f"fc_norm_{tap}") for tap in range(self.num_taps)
            ]
        if self.joins_context:
            self.embed_norm = RMSNorm(width, eps)
            self.join = Projection({"embed": 2 * width}, {"embed": width})
        if self.own_mask:
            self.mask = self.param("mask", axis_names(nn.initializers.normal(1.0), ["embed"]), (width,), jnp.float32)
        if self.edge_rank:
            self.edges = Edges(self.layer.vocab_size, self.edge_rank)

    def fuse(self, features: jax.Array) -> jax.Array:
        """Taps side by side [..., feature width] -> the context [..., E]."""
        if self.fc_norm:
            taps = jnp.split(features, self.num_taps, axis=-1)
            features = jnp.concatenate([norm(tap) for norm, tap in zip(self.tap_norms, taps, strict=True)], axis=-1)
        return self.hidden_norm(self.fc(features))

    def context(self, context: jax.Array, rope: KeysValues) -> list[KeysValues]:
        """Keys and values of the context for each layer."""
        return [layer.context(context, rope) for layer in self.layers]

    def joined(self, slots: jax.Array, newest: jax.Array) -> jax.Array:
        """What slots [..., E] start as, with the context [..., E] of the last token before their anchor."""
        newest = jnp.broadcast_to(newest, slots.shape).astype(slots.dtype)
        return self.join(jnp.concatenate([self.embed_norm(slots), newest], axis=-1))

    def mask_vector(self) -> jax.Array:
        """What the slots after the anchor hold: [E]."""
        return self.mask

    def edge_tables(self) -> tuple[jax.Array, jax.Array]:
        """Vectors of the token before and of the token after it, [V, rank] each."""
        return self.edges()

    def readout(self, x: jax.Array) -> jax.Array:
        """What the LM head reads: the normed state."""
        return self.norm(x)

    def __call__(self, x: jax.Array, rope: KeysValues, attend_fns: Sequence[AttendFn]) -> jax.Array:
        """States [B, T, E] through all layers, each with its own way to attend."""
        for layer, attend_fn in zip(self.layers, attend_fns, strict=True):
            x = layer(x, rope, attend_fn)
        return x
