"""Launches, waits and traffic of a program compiled for a GPU (`launches`) as fields of a row, and a bound on its time.

    seconds >= max(FLOPs / peak, bytes read / HBM bandwidth) + kernels * LAUNCH

The compiler chooses between its kernels by running them (autotuning), which needs a GPU: here it takes its first
choice, so the number of kernels is that of this choice.
"""

from collections import Counter
from typing import Any

import jax

from eagle_jax.accelerators import GPUS
from eagle_jax.types import KVCache
from experiments.scaling.hlo import read_module
from experiments.scaling.launches import Sizes, Work, count_call
from experiments.scaling.programs import Shapes

OPTIONS: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}
"""For the compiler: no kernel is tried out."""

LAUNCH = 1.5e-6
"""Seconds from the start of a short kernel to that of the next one, which needs its result, within a CUDA graph. An
assumption: nothing was run."""

LARGE = 2**16
"""Elements from which on a weight counts as one that is not to be written."""

STEPS = ("prefill", "decode", "plain")
"""Programs whose main loop is what counts: a chunk of the prompt, a round. Of others it is the call."""


def sizes_of(shapes: Shapes) -> Sizes:
    """Elements of the caches and weights of a device, the head's included."""
    nodes = jax.tree.leaves(shapes.state, is_leaf=lambda node: isinstance(node, KVCache))
    caches = [keys for node in nodes if isinstance(node, KVCache) for keys in node.keys]
    weights = [x for x in jax.tree.leaves(shapes.models) if x.ndim > 1 and x.size >= LARGE]
    return Sizes(*(frozenset(map(_elements, arrays)) for arrays in (caches, weights)))


def _elements(x: Any) -> int:
    shard = jax.ShapeDtypeStruct(x.sharding.shard_shape(x.shape), x.dtype)
    return shard.size


def count_launches(name: str, text: str, shapes: Shapes) -> dict[str, Any]:
    """Fields of the row of a program whose optimised HLO is `text`.

    Returns:
      Of a round of `decode` or `plain`, a chunk of `prefill`, a call of other programs: `kernels`, `host_reads`,
      `flops`, `launches` and `moved_bytes` by part, `products` by kind; `sampled`: kernels and host reads where rows
      are sampled with all masks. Of a call: `call_kernels` that are no part of its rounds, and `rewrites`, caches and
      weights written in full anywhere.
    """
    module, sizes = read_module(text), sizes_of(shapes)
    outside, step = count_call(module, sizes)
    sampled_outside, sampled_step = count_call(module, sizes, sampled=True)
    inner, sampled, call_kernels = outside, sampled_outside, 0
    rewrites = outside.rewrites + (step.rewrites if step else Counter())
    if step and sampled_step and name in STEPS:
        inner, sampled, call_kernels = step, sampled_step, outside.kernels
    elif step and sampled_step:
        for work, part in ((inner, step), (sampled, sampled_step)):
            work.add(part)
            work.host_reads += 1
    return _fields(inner, sampled) | {
        "call_kernels": call_kernels,
        "rewrites": {what: rewrites[what] for what in ("caches", "weights")},
    }


def _fields(work: Work, sampled: Work) -> dict[str, Any]:
    return {
        "kernels": work.kernels,
        "host_reads": work.host_reads,
        "flops": work.flops,
        "launches": dict(work.launches),
        "moved_bytes": dict(work.bytes),
        "products": dict(work.products),
        "sampled": {"kernels": sampled.kernels, "host_reads": sampled.host_reads},
    }


def bound_of(kind: str, row: dict[str, Any]) -> float:
    """Seconds that a program takes at least on one of `GPUS`."""
    chip = GPUS[kind]
    return max(row["flops"] / chip.flops, row["least_bytes"] / chip.bandwidth) + row["kernels"] * LAUNCH


def estimate_of(kind: str, row: dict[str, Any]) -> float:
    """The same with all bytes that kernels hand to each other as if none stayed in the GPU's cache."""
    moved = max(sum(row["moved_bytes"].values()), row["least_bytes"])
    chip = GPUS[kind]
    return max(row["flops"] / chip.flops, moved / chip.bandwidth) + row["kernels"] * LAUNCH


def extrapolated(few: Any, more: Any, steps: int) -> Any:
    """Numbers that grow by the layer, `steps` layers after `few`, where `more` has one more; all else as in `more`.

    Of lists of records each that is in both, by all that is no number.
    """
    if isinstance(few, list) and isinstance(more, list):
        before = {_words(one): one for one in few}
        return [extrapolated(before.get(_words(one), one), one, steps) for one in more]
    if isinstance(few, dict):
        names = [*few, *(name for name in more if name not in few)]
        return {name: extrapolated(few.get(name, 0), more.get(name, 0), steps) for name in names}
    if isinstance(few, bool) or not isinstance(few, int | float) or not isinstance(more, int | float):
        return more
    return few + steps * (more - few)


def _words(record: dict[str, Any]) -> tuple[Any, ...]:
    """What tells a record from others."""
    return tuple(value for value in record.values() if isinstance(value, str | bool))
