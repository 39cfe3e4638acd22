"""From named tensors in some file to a parameter tree, strictly.

Both formats end here: a reader says which names and shapes a file holds and how to read one of them; this module checks
them against the table of `names`, converts one tensor at a time, and knows no file format.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from eagle_jax.checkpoint.names import Path, TensorSpec, insert
from eagle_jax.types import Params

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
"""Weight types that a checkpoint can be loaded as."""

Place = Callable[[Path, np.ndarray], Any]
"""(path in the tree, host array) -> the leaf: puts it on a device or a mesh, or leaves it."""

Progress = Callable[[int, int], None]
"""(tensors read, tensors in all)"""


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """What a reader found in a checkpoint."""

    origin: str  # what error messages call the checkpoint
    shapes: Mapping[str, Sequence[int]]  # every tensor by name
    read: Callable[[str], np.ndarray]  # one tensor, in any float type


def check_dtype(dtype: str) -> Any:
    """The numpy type behind a name."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def check_names(specs: Mapping[str, TensorSpec], source: TensorSource) -> None:
    """Raise for the first missing, unknown or misshapen tensor, counting the others of its kind."""
    missing = [name for name in specs if name not in source.shapes]
    unknown = [name for name in source.shapes if name not in specs]
    if missing:
        raise ValueError(f"{source.origin}: tensor {missing[0]} is missing{_others(missing)}")
    if unknown:
        shape = tuple(source.shapes[unknown[0]])
        raise ValueError(f"{source.origin}: tensor {unknown[0]} {shape} has no place in this model{_others(unknown)}")
    for name, spec in specs.items():
        shape = tuple(source.shapes[name])
        if shape != spec.stored_shape:
            raise ValueError(f"{source.origin}: tensor {name} has shape {shape}, expected {spec.stored_shape}")


def assemble(
    specs: Mapping[str, TensorSpec],
    source: TensorSource,
    *,
    dtype: str = "float32",
    place: Place | None = None,
    progress: Progress | None = None,
) -> Params:
    """Read every tensor of `specs` into a tree; host memory holds the tree and one tensor more.

    Args:
      specs: the tensors of the model, by the names that `source` uses.
      source: the checkpoint.
      dtype: type of the weights in the tree, a key of `DTYPES`.
      place: called with each finished leaf; left out, leaves stay numpy arrays.
      progress: called after each tensor.

    Raises:
      ValueError: a tensor is missing, unknown, misshapen, not finite, or too large for `dtype`; the message names it.
    """
    wanted = check_dtype(dtype)
    check_names(specs, source)
    tree: dict[str, Any] = {}
    for done, (name, spec) in enumerate(specs.items(), start=1):
        value = spec.to_tree(convert(source.read(name), wanted, name, source.origin))
        insert(tree, spec.path, place(spec.path, value) if place else value)
        if progress:
            progress(done, len(specs))
    return tree


def convert(stored: np.ndarray, wanted: Any, name: str, origin: str) -> np.ndarray:
    """To the wanted type; every value must be finite before and after.

    Raises:
      ValueError: one is not; the message names `name` and `origin`.
    """
    if not np.isfinite(stored).all():
        bad = int(stored.size - np.isfinite(stored).sum())
        raise ValueError(f"{origin}: tensor {name} holds {bad} values of {stored.size} that are NaN or infinite")
    if stored.dtype == wanted:
        return stored
    with np.errstate(over="ignore"):  # reported in the next line, by name
        converted = stored.astype(wanted)
    if not np.isfinite(converted).all():
        largest = float(np.abs(stored).max())
        raise ValueError(f"{origin}: tensor {name} reaches {largest:g}, too large for {np.dtype(wanted).name}")
    return converted


def _others(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
