"""Building blocks of a decoder layer, as Flax linen modules with logical axis names on every weight.

The names (`embed`, `heads`, `kv_heads`, `head_dim`, `mlp`, `vocab`) are mapped to mesh axes by `sharding.RULES`.
Submodules carry the names of the Hugging Face checkpoints, so that a weight's path here is its name there.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from eagle_jax.kernels.packed import PackedMatrix
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.rope import rotate
from eagle_jax.platforms import platform

Init = jax.nn.initializers.Initializer
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
}
"""Activations of MLPs, by their names in published configs."""

WEIGHTS_AXIS = "model"
"""The axis of a mesh that weights are split over."""

AttendFn = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(queries [B, T, H, D], keys and values [B, T, K, D]) -> attention output, [B, T, H, D]."""

LayerOutput = tuple[jax.Array, jax.Array, jax.Array]
"""Output [B, T, E], new keys and new values [B, T, K, D]."""


def in_full_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`function` with products of float32 matrices in float32, where any of its arguments are float32.

    By default TPUs round float32 operands to bfloat16 and newer GPUs to TF32, and differently for one token than for
    many, so that the text would depend on how it was drafted. Models in half precision are left alone: at "highest"
    XLA for GPUs computes a product with one row by multiplying in half precision and writing that out.
    """

    @functools.wraps(function)
    def run(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        leaves = jax.tree.leaves((arguments, named))
        is_float32 = any(getattr(leaf, "dtype", None) == jnp.float32 for leaf in leaves)
        with jax.default_matmul_precision("highest") if is_float32 else contextlib.nullcontext():
            return function(*arguments, **named)

    return run


def axis_names(init: Init, names: Sequence[str]) -> Init:
    """`init` whose arrays are boxed with the logical names of their axes."""
    return nn.with_logical_partitioning(init, tuple(names))


def _like(weight: jax.Array, x: jax.Array) -> jax.Array:
    """`weight` cast to the dtype of `x` and expanded to its rank, aligned with its last axes."""
    return jnp.expand_dims(weight.astype(x.dtype), tuple(range(x.ndim - weight.ndim)))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 (arXiv 1910.07467).

    `zero_centered`: times 1 + weight, in float32 too, as Gemma has it.
    """

    size: int
    eps: float
    axis_name: str = "embed"
    zero_centered: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., size] -> [..., size]."""
        init = nn.initializers.zeros if self.zero_centered else nn.initializers.ones
        weight = self.param("weight", axis_names(init, [self.axis_name]), (self.size,), jnp.float32)
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        if self.zero_centered:
            return (wide * (1.0 + _like(weight, wide))).astype(x.dtype)
        return wide.astype(x.dtype) * _like(weight, x)


class Projection(nn.Module):
    """A linear map from the axes `inputs` to the axes `outputs`, each a {logical name: size}."""

    inputs: dict[str, int]
    outputs: dict[str, int]
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, product: jax.Array | None = None) -> jax.Array:
        """[..., *inputs] -> [..., *outputs]; `product` is x times the kernel where others were computed with it."""
        y = self.product(x) if product is None else product
        if self.use_bias:
            init = axis_names(nn.initializers.zeros, list(self.outputs))
            y = y + _like(self.param("bias", init, tuple(self.outputs.values()), jnp.float32), y)
        return y

    def product(self, x: jax.Array) -> jax.Array:
        """x times the kernel."""
        packed = packed_weight(self, "kernel")
        if packed is not None:
            return packed.multiply(x)[0]
        fan_in = math.prod(self.inputs.values())
        init = axis_names(nn.initializers.normal(fan_in**-0.5), [*self.inputs, *self.outputs])
        kernel = self.param("kernel", init, (*self.inputs.values(), *self.outputs.values()), jnp.float32)
        return in_rows(functools.partial(jnp.tensordot, axes=len(self.inputs)), x, kernel.astype(x.dtype), fan_in)


def in_rows(product: Callable[..., jax.Array], x: jax.Array, weight: jax.Array, fan_in: int) -> jax.Array:
    """`product(x, weight)` with x [B, ..., inputs]; on a GPU a single row of `fan_in` numbers is computed as two.

    XLA for GPUs takes a product of one row with less than ten million weights for a product of vectors: it multiplies
    in half precision, rounds, then sums, with the weights transposed at the start of each call. With two rows it is a
    matrix product like that of a tree's nodes, at the same cost.
    """
    if platform() != "gpu" or x.size != fan_in or x.ndim == 1:
        return product(x, weight)
    return product(jnp.broadcast_to(x, (2, *x.shape[1:])), weight)[:1]


def packed_weight(module: nn.Module, name: str) -> PackedMatrix | None:
    """The weight of a module under this name where it is packed for the CPU kernel, else None."""
    weight = module.get_variable("params", name)
    return weight if isinstance(weight, PackedMatrix) else None


def joint_products(module: nn.Module, x: jax.Array, *names: str) -> list[jax.Array] | list[None]:
    """x times the kernels of a module's projections `names`, where these are packed as one."""
    packed = packed_weight(module, "+".join(names))
    return [None] * len(names) if packed is None else packed.multiply(x)


def lookup_rows(table: jax.Array | PackedMatrix, ids: jax.Array) -> jax.Array:
    """Rows i32[...] of a table [V, E]: [..., E]; those of a packed one in float32, as its activations are."""
    if isinstance(table, PackedMatrix):
        return table.rows(ids)
    return jnp.take(table, ids, axis=0)


def score_rows(table: jax.Array | PackedMatrix, hidden: jax.Array) -> jax.Array:
    """Products of hidden states [..., E] with every row of a table [V, E]: f32[..., V]."""
    if isinstance(table, PackedMatrix):
        return table.multiply(hidden)[0]
    product = functools.partial(jnp.einsum, "...e,ve->...v", preferred_element_type=jnp.float32)
    return in_rows(product, hidden, table.astype(hidden.dtype), hidden.shape[-1])


class Attention(nn.Module):
    """Projections, rotation and output of grouped-query attention; masking is left to the caller's `attend_fn`."""

    config: ModelConfig
    input_width: int | None = None  # 2E in an EAGLE-3 head, else E

    @nn.compact
    def __call__(self, x: jax.Array, angles: tuple[jax.Array, jax.Array], attend_fn: AttendFn) -> LayerOutput:
        """[B, T, input width] -> [B, T, E], and the new keys (after RoPE) and values, [B, T, K, D] each."""
        config = self.config
        inputs = {"embed": self.input_width or config.width}
        heads = {"heads": config.num_heads, "head_dim": config.head_dim}
        kv_heads = {"kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
        q, k, v = joint_products(self, x, "q_proj", "k_proj", "v_proj")
        queries = Projection(inputs, heads, config.qkv_bias, name="q_proj")(x, q)
        keys = Projection(inputs, kv_heads, config.qkv_bias, name="k_proj")(x, k)
        values = Projection(inputs, kv_heads, config.qkv_bias, name="v_proj")(x, v)
        if config.qk_norm:
            norm = functools.partial(RMSNorm, config.head_dim, config.norm_eps, "head_dim", config.zero_centered_norms)
            queries, keys = norm(name="q_norm")(queries), norm(name="k_norm")(keys)
        queries, keys, values = rotate(queries, *angles), whole_heads(rotate(keys, *angles)), whole_heads(values)
        output = Projection(heads, {"embed": config.width}, config.output_bias, name="o_proj")
        return output(attend_fn(queries, keys, values)), keys, values


def whole_heads(x: jax.Array) -> jax.Array:
    """Keys or values [B, T, K, D], all of them on every device of a mesh that K does not divide over; else as they are.

    Left to itself, XLA (of jax 0.12) computes a part of the heads on each device and sends it to all others.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if x.shape[2] % mesh.shape.get(WEIGHTS_AXIS, 1) == 0:
        return x
    free = PartitionSpec.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, PartitionSpec(free, free, None, free))


class MLP(nn.Module):
    """SwiGLU or GeGLU: down(activation(gate(x)) * up(x)) (arXiv 2002.05202)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., E] -> [..., E]."""
        config = self.config
        outer, inner = {"embed": config.width}, {"mlp": config.mlp_width}
        gate, up = joint_products(self, x, "gate_proj", "up_proj")
        gate = Projection(outer, inner, config.mlp_bias, name="gate_proj")(x, gate)
        up = Projection(outer, inner, config.mlp_bias, name="up_proj")(x, up)
        return Projection(inner, outer, config.mlp_bias, name="down_proj")(ACTIVATIONS[config.activation](gate) * up)
