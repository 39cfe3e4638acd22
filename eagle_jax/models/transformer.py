"""The target: one decoder-only transformer for the families of Llama (2/3, Vicuna, Mistral), Qwen2, Qwen3 and Gemma 3.

Driven by `ModelConfig` alone. A pass reads a cache and returns the new keys and values instead of writing them; layers
are unrolled, each with its own pair of cache arrays (DESIGN 4.3). Knows masks, not trees.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from eagle_jax import cache as caches
from eagle_jax.kernels.packed import PackedMatrix, is_packed
from eagle_jax.models.attention import Prefix, attend
from eagle_jax.models.config import ModelConfig, check_weights
from eagle_jax.models.experts import SparseMLP
from eagle_jax.models.layers import (
    MLP,
    AttendFn,
    Attention,
    LayerOutput,
    RMSNorm,
    in_full_precision,
    lookup_rows,
    packed_weight,
    score_rows,
)
from eagle_jax.models.rope import angles
from eagle_jax.types import KVCache, Params, Target, TargetOutput


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP (or experts), each added to the residual stream, in Gemma after a norm of its own."""

    config: ModelConfig
    sparse: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, rope: tuple[jax.Array, jax.Array], attend_fn: AttendFn) -> LayerOutput:
        """[B, T, E] -> [B, T, E], new keys, new values."""
        config = self.config
        norm = functools.partial(RMSNorm, config.width, config.norm_eps, zero_centered=config.zero_centered_norms)
        mlp = SparseMLP(config, name="mlp") if self.sparse else MLP(config, name="mlp")
        normed = norm(name="input_layernorm")(x)
        mixed, keys, values = Attention(config, name="self_attn")(normed, rope, attend_fn)
        if config.sandwich_norms:
            x = x + norm(name="post_attention_layernorm")(mixed)
            mixed = mlp(norm(name="pre_feedforward_layernorm")(x))
            return x + norm(name="post_feedforward_layernorm")(mixed), keys, values
        x = x + mixed
        return x + mlp(norm(name="post_attention_layernorm")(x)), keys, values


class Transformer(nn.Module):
    """Embedding, L layers, final norm and LM head (the embedding itself where the two are tied)."""

    config: ModelConfig
    prefix_block: int | None = None

    def setup(self) -> None:
        """Declares every weight once; the paths are the Hugging Face names."""
        config = self.config
        self.embed_tokens = self._table("embed_tokens", 1.0)
        self.layers = [DecoderLayer(config, config.is_sparse(layer)) for layer in range(config.num_layers)]
        self.norm = RMSNorm(config.width, config.norm_eps, zero_centered=config.zero_centered_norms)
        if not config.tie_embeddings:
            self.lm_head = self._table("lm_head", config.width**-0.5)

    def _table(self, name: str, scale: float) -> jax.Array | PackedMatrix:
        """A weight [V, E]."""
        init = nn.with_logical_partitioning(nn.initializers.normal(scale), ("vocab", "embed"))
        shape = (self.config.vocab_size, self.config.width)
        return packed_weight(self, name) or self.param(name, init, shape, jnp.float32)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """i32[...] -> [..., E], not scaled: what heads read."""
        return lookup_rows(self.embed_tokens, tokens)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """[..., E] -> f32[..., V]."""
        return score_rows(self.embed_tokens if self.config.tie_embeddings else self.lm_head, hidden)

    def __call__(self, tokens: jax.Array, positions: jax.Array, cache: KVCache, block_mask: jax.Array) -> TargetOutput:
        """One pass, as `Target.forward` describes it."""
        x = self.embed(tokens)
        if x.dtype != cache.keys[0].dtype:
            raise ValueError(
                f"weights give activations of {x.dtype}, the cache is {cache.keys[0].dtype}: load both alike"
            )
        packed = is_packed(self.variables["params"])
        if self.config.embed_scale != 1.0:
            x = x * jnp.asarray(self.config.embed_scale, x.dtype)
        rope, local_rope = angles(self.config, positions), angles(self.config, positions, local=True)
        inputs, keys, values = [], [], []
        for index, layer in enumerate(self.layers):
            inputs.append(x)
            window = self.config.window(index)
            attend_fn = functools.partial(
                attend,
                mask=block_mask,
                prefix=Prefix(*cache.layer(index), cache.length),
                positions=positions,
                window=window,
                scale=self.config.score_scale,
                block=self.prefix_block,
                kernel=packed,
            )
            x, new_keys, new_values = layer(x, rope if window is None else local_rope, attend_fn)
            keys.append(new_keys)
            values.append(new_values)
        return TargetOutput(
            hidden=self.norm(x),
            taps=jnp.concatenate([inputs[layer] for layer in self.config.taps], axis=-1),
            keys=tuple(keys),
            values=tuple(values),
        )


@functools.cache
def make_target(config: ModelConfig, prefix_block: int | None = None) -> Target:
    """The target as pure functions; equal arguments give the same object, so nothing is compiled twice.

    Args:
      config: shape of the model.
      prefix_block: cache slots attended at a time; by default `attention.block_size`.
    """
    module = Transformer(config, prefix_block)

    def forward(
        params: Params, tokens: jax.Array, positions: jax.Array, cache: KVCache, block_mask: jax.Array
    ) -> TargetOutput:
        return module.apply({"params": params}, tokens, positions, cache, block_mask)

    def embed(params: Params, tokens: jax.Array) -> jax.Array:
        return module.apply({"params": params}, tokens, method="embed")

    def unembed(params: Params, hidden: jax.Array) -> jax.Array:
        return module.apply({"params": params}, hidden, method="unembed")

    def init_cache(batch: int, capacity: int, dtype: DTypeLike = "float32") -> KVCache:
        return caches.init_cache(
            config.num_layers, batch, capacity, config.num_kv_heads, config.head_dim, jnp.dtype(dtype)
        )

    return Target(
        forward=in_full_precision(forward),
        embed=embed,
        unembed=in_full_precision(unembed),
        init_cache=init_cache,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        check=lambda params: check_weights(params, param_shapes(config)),
    )


def lm_head_rows(config: ModelConfig, params: Params) -> jax.Array:
    """The LM head [V, E] among the weights of a target."""
    return params["embed_tokens" if config.tie_embeddings else "lm_head"]


@functools.cache
def param_shapes(config: ModelConfig) -> Params:
    """What `init_params` gives, as `jax.ShapeDtypeStruct`s: no weight is made."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random float32 weights, boxed with their logical axis names (`flax.linen.unbox` strips them)."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    cache = caches.init_cache(config.num_layers, 1, 1, config.num_kv_heads, config.head_dim, jnp.dtype("float32"))
    return Transformer(config).init(key, tokens, tokens, cache, jnp.ones((1, 1, 1), bool))["params"]
