"""How far apart two computations of the same numbers may be, on any processor.

Processors add in another order, fuse a product with a sum and have an exp of their own. What all of them keep is that
an operation is off by at most eps / 2 of what it returns. Roundings are as good as independent, so `terms` of them in a
row are off by about sqrt(terms) * eps / 2 of the largest number on the way; four times that is not met in practice
(Higham and Mary, "A new approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019, whose bound
is lambda * sqrt(terms) * eps / 2). Both computations may be off by that much, one in each direction:

    4 * eps * sqrt(terms) * size

The size is that of the whole array, not of each element: an element made small by cancellation has the error of
the numbers that cancelled.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadConfig


def rounding(*arrays: Any, terms: int, dtype: Any = np.float32) -> float:
    """The largest difference between two computations in `dtype` that rounding explains.

    Args:
      *arrays: what is compared; where terms cancel that are larger than that, an array of their size too.
      terms: operations in a row: the lengths of the sums that a number goes through, one after the other.
      dtype: what is computed in.
    """
    size = max(float(np.abs(np.asarray(array, np.float64)).max(initial=0)) for array in arrays)
    return 4 * float(jnp.finfo(dtype).eps) * math.sqrt(terms) * size


def assert_close(actual: Any, wanted: Any, terms: int, *on_the_way: Any) -> None:
    """Every leaf of one tree, computed in float32, is that of the other but for rounding; see `rounding`.

    Whole numbers and truth values are equal.
    """
    for (path, one), other in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(wanted), strict=True):
        if not jnp.issubdtype(np.asarray(one).dtype, jnp.floating):
            np.testing.assert_array_equal(one, other, err_msg=jax.tree_util.keystr(path))
        else:
            allowed = rounding(one, other, *on_the_way, terms=terms)
            np.testing.assert_allclose(one, other, atol=allowed, rtol=0, err_msg=jax.tree_util.keystr(path))


def written(*arrays: Any, digits: int = 6) -> float:
    """One step in the last digit of numbers that were written with so many: rounding may turn it."""
    size = max(float(np.abs(array).max()) for array in arrays)
    return 10.0 ** (math.floor(math.log10(size)) + 1 - digits)


def layer_terms(config: ModelConfig, length: int) -> int:
    """Terms of one layer over a text: norm, query, score, mixed values, output; norm, MLP up and down."""
    attention = 2 * config.width + config.head_dim + length + config.num_heads * config.head_dim
    experts = config.experts
    mlp = config.mlp_width if experts is None else max(config.mlp_width, experts.width + experts.per_token)
    return attention + 2 * config.width + mlp


def pass_terms(config: ModelConfig, length: int) -> int:
    """Terms of a pass through all layers, the final norm and the LM head."""
    return config.num_layers * layer_terms(config, length) + 2 * config.width


def head_terms(config: HeadConfig, length: int, steps: int) -> int:
    """Terms of a draft head on its own outputs: the features fused, a layer a step, the norm and the LM head."""
    return (
        config.feature_width + steps * (config.layer.width + layer_terms(config.layer, length)) + 2 * config.layer.width
    )


def block_terms(config: HeadConfig, length: int) -> int:
    """Terms of a one-pass head: the features fused and normed, its layers, the norm and the LM head."""
    layers = config.num_layers * layer_terms(config.layer, length)
    return config.feature_width + layers + 4 * config.layer.width


def gradient_terms(terms: int, rows: int) -> int:
    """Terms of a gradient: there, back through sums as long, and the sum over the rows of the loss."""
    return 2 * terms + rows
