"""Work on rows of a batch where they lie: each group of devices of mesh axis `data` on its own.

Where a program picks the rows that count (`nonzero`), XLA's partitioner cannot see that they stay in their group: left
to itself it gathers all rows, and every group does the work of all.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from eagle_jax.sharding import DATA

ROWS, EVERYWHERE = PartitionSpec(DATA), PartitionSpec()
"""Rows in front, dealt out; the same in every group."""


def by_group(work: Callable[..., Any], num_rows: int, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`work` as each group does it on its own rows, or on all of them without a mesh or where they do not divide.

    Args:
      work: takes arrays by position, and by name `axis`: that of the mesh, or None where it has all rows.
      num_rows: rows over which arrays are dealt out.
      in_specs, out_specs: which axes of what `work` takes and gives are rows, in terms of mesh axis `data`.
    """
    groups = dict(jax.sharding.get_abstract_mesh().shape).get(DATA, 1)
    if groups == 1 or num_rows % groups:
        return functools.partial(work, axis=None)
    work = functools.partial(work, axis=DATA)
    # Weights stay split over the other axis. What is the same in every group `work` itself sums up.
    return jax.shard_map(work, in_specs=in_specs, out_specs=out_specs, axis_names={DATA}, check_vma=False)


def max_over_groups(count: jax.Array, axis: str | None) -> jax.Array:
    """The largest of the groups' counts: loops of one length, so that all come to the next sum together."""
    return count if axis is None else jax.lax.pmax(count, axis)
