"""Checks that weights belong to a model, with a one-line error instead of one from deep inside its layers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from eagle_jax.kernels.packed import unpack
from eagle_jax.types import Params


def check_weights(given: Params, wanted: Params) -> None:
    """Compare names and shapes; dtypes are the caller's choice.

    Args:
      given: weights, a tree of arrays.
      wanted: the same tree, of arrays or of their shapes, boxed with names of axes or not.

    Raises:
      ValueError: a weight that is missing, has no place in the model, or has another shape: the first by name.
    """
    actual, expected = _shapes(plain_shapes(given)), _shapes(nn.unbox(wanted))
    for name in sorted(actual.keys() | expected.keys()):
        if actual.get(name) != expected.get(name):
            has, needs = actual.get(name, "missing"), expected.get(name, "nothing")
            raise ValueError(f"weights of another model: {name or 'all of it'} is {has} there, {needs} in this one")


def plain_shapes(params: Params) -> Params:
    """Shapes of weights; of packed ones, the shapes before packing."""
    return jax.eval_shape(unpack, params)


def _shapes(tree: Params) -> dict[str, tuple[int, ...] | str]:
    leaves: Any = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf) for path, leaf in leaves}
