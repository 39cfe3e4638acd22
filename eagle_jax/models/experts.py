"""A mixture of experts: every token goes through the few MLPs that its router scores highest.

The router is a softmax over all experts, as in Qwen3 (arXiv 2505.09388, section 2). Pairs of a token and an expert are
sorted by expert and multiplied in groups (MegaBlocks, arXiv 2211.15841, section 4): shapes are static, no token is
dropped, and none depends on its company.

    token 0 chooses 2, 0        sorted: 0 (token 0), 0 (token 1), 1 (token 1), 2 (token 0)
    token 1 chooses 0, 1        groups of 2, 1 and 1 rows, each times the matrices of its expert

TPUs multiply groups as they are. Elsewhere XLA multiplies every row by the matrices of every expert and masks.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from eagle_jax.models.config import Experts, ModelConfig
from eagle_jax.models.layers import ACTIVATIONS, WEIGHTS_AXIS, Projection, axis_names
from eagle_jax.sampling import ROWS_AXIS

Matrices = tuple[jax.Array, jax.Array, jax.Array]
"""Gate and up [X, E, F] and down [X, F, E] of X experts."""


class SparseMLP(nn.Module):
    """Router and experts in place of an MLP."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, E] -> [B, T, E]."""
        experts = self.config.experts
        assert experts is not None
        logits = Projection({"embed": self.config.width}, {"experts": experts.count}, name="gate")(x)
        matrices = ExpertMatrices(self.config, name="experts")()
        work = functools.partial(route_and_mix, experts, ACTIVATIONS[self.config.activation])
        return _by_device(work, len(x), experts.width)(x, logits, *matrices)


class ExpertMatrices(nn.Module):
    """The weights of all experts of a layer, one array for each of the three matrices of an MLP."""

    config: ModelConfig

    @nn.compact
    def __call__(self) -> Matrices:
        """As `Matrices`."""
        experts, width = self.config.experts, self.config.width
        assert experts is not None

        def matrices(name: str, inputs: tuple[str, int], outputs: tuple[str, int]) -> jax.Array:
            init = axis_names(nn.initializers.normal(inputs[1] ** -0.5), ["experts", inputs[0], outputs[0]])
            return self.param(name, init, (experts.count, inputs[1], outputs[1]), jnp.float32)

        outer, inner = ("embed", width), ("mlp", experts.width)
        return (
            matrices("gate_proj", outer, inner),
            matrices("up_proj", outer, inner),
            matrices("down_proj", inner, outer),
        )


def route_and_mix(
    experts: Experts,
    activation: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    logits: jax.Array,
    gate: jax.Array,
    up: jax.Array,
    down: jax.Array,
    *,
    axis: str | None = None,
) -> jax.Array:
    """Send each token through its experts.

    Args:
      experts: how many there are, and how many a token goes through.
      activation: of the experts.
      x: [B, T, E].
      logits: [B, T, X], what the router gives.
      gate, up, down: `Matrices`, or the part of their F that this device has.
      axis: mesh axis over which F is split.

    Returns:
      [B, T, E].
    """
    shares, chosen = route(logits.reshape(-1, experts.count), experts)
    mixed = mix_experts(x.reshape(-1, x.shape[-1]), shares, chosen, (gate, up, down), activation)
    mixed = mixed if axis is None else lax.psum(mixed, axis)
    return mixed.reshape(x.shape)


def route(logits: jax.Array, experts: Experts) -> tuple[jax.Array, jax.Array]:
    """The k experts that each of M tokens chooses: logits [M, X] -> their shares f32[M, k] and their ids i32[M, k]."""
    shares, chosen = lax.top_k(jax.nn.softmax(logits.astype(jnp.float32)), experts.per_token)
    return (shares / shares.sum(-1, keepdims=True) if experts.renormalize else shares), chosen


def mix_experts(
    x: jax.Array,
    shares: jax.Array,
    chosen: jax.Array,
    matrices: Matrices,
    activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Each token of x [M, E] through the experts `chosen` i32[M, k], weighted by `shares` f32[M, k]: [M, E]."""
    gate, up, down = (matrix.astype(x.dtype) for matrix in matrices)
    pairs = chosen.reshape(-1)
    order = jnp.argsort(pairs)
    group_sizes = jnp.bincount(pairs, length=len(gate))
    # The TPU's compiler refuses grouped products of half precision at `in_full_precision`'s precision.
    precision = None if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    multiply = functools.partial(lax.ragged_dot, group_sizes=group_sizes, precision=precision)
    rows = x[order // chosen.shape[1]]
    inner = activation(multiply(rows, gate)) * multiply(rows, up)
    outer = multiply(inner, down, preferred_element_type=jnp.float32)
    outer = outer[jnp.argsort(order)].reshape(*chosen.shape, -1)  # back in the order of tokens
    return jnp.einsum("mke,mk->me", outer, shares).astype(x.dtype)


def _by_device(work: Callable[..., jax.Array], batch: int, width: int) -> Callable[..., jax.Array]:
    """`route_and_mix` as each device of a mesh does it, on its rows and its part of each expert.

    XLA's partitioner sees neither that sorted rows stay in their group of devices nor how to split grouped products.
    Axes that do not divide, or that are split already, are left to it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))

    def splits(axis: str, size: int) -> bool:
        return kinds.get(axis) is AxisType.Auto and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0

    rows = ROWS_AXIS if splits(ROWS_AXIS, batch) else None
    part = WEIGHTS_AXIS if splits(WEIGHTS_AXIS, width) else None
    work = functools.partial(work, axis=part)
    if rows is None and part is None:
        return work
    by_row, columns = PartitionSpec(rows), PartitionSpec(None, None, part)
    return jax.shard_map(
        work,
        in_specs=(by_row, by_row, columns, columns, PartitionSpec(None, part)),
        out_specs=by_row,
        axis_names={axis for axis in (rows, part) if axis is not None},
        check_vma=False,
    )
