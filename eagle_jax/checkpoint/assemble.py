"""From named tensors in some file to a parameter tree, strictly.

Both formats end here: a reader says which names and shapes a file holds and how to read one of them; this module checks
them against the table of `names`, converts one tensor at a time, and knows no file format.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.sharding import Sharding

from eagle_jax.checkpoint.names import Path, Slices, TensorSpec, insert, lookup
from eagle_jax.types import Params

DTYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
"""Weight types that a checkpoint can be loaded as."""

Place = Callable[[Path, np.ndarray], Any]
"""(path in the tree, host array) -> the leaf: puts it on a device or a mesh, or leaves it."""

Progress = Callable[[int, int], None]
"""(tensors read, tensors in all)"""


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """The tensors that a reader gives of a checkpoint."""

    origin: str  # what error messages call the checkpoint
    shapes: Mapping[str, Sequence[int]]  # every tensor by name
    read: Callable[[str], np.ndarray]  # one tensor, in any float type
    read_part: Callable[[str, Slices], np.ndarray] | None = None  # some of it, where the format allows


def check_dtype(dtype: str) -> Any:
    """The numpy type of a name."""
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
    shardings: Params | None = None,
    progress: Progress | None = None,
) -> Params:
    """Read every tensor of `specs` into a tree; host memory holds the tree and one leaf more.

    With `shardings` each part of a leaf goes straight to its devices, and the host holds one part at a time, or one
    tensor of a format that is not read in parts. In a run of several processes each reads what its devices hold.

    Args:
      specs: the tensors of the model, by the names that `source` uses.
      source: the checkpoint.
      dtype: type of the weights in the tree, a key of `DTYPES`.
      place: called with each finished leaf; left out, leaves stay numpy arrays.
      shardings: a tree of the same structure: where the leaves go, instead of `place`.
      progress: called after each leaf, with the number of tensors.

    Raises:
      ValueError: a tensor is missing, unknown, misshapen, not finite, or too large for `dtype`; the message names it.
    """
    wanted = check_dtype(dtype)
    check_names(specs, source)
    tree: dict[str, Any] = {}
    leaves: dict[Path, dict[str, TensorSpec]] = collections.defaultdict(dict)
    for name, spec in specs.items():
        leaves[spec.path][name] = spec
    done = 0
    for path, members in leaves.items():
        if shardings is not None:
            leaf: Any = _spread(members, source, wanted, lookup(shardings, path))
        else:
            parts = (
                spec.to_tree(convert(source.read(name), wanted, name, source.origin)) for name, spec in members.items()
            )
            value = _stack(parts, len(members)) if _is_stacked(members) else next(parts)
            leaf = place(path, value) if place else value
        insert(tree, path, leaf)
        done += len(members)
        if progress:
            progress(done, len(specs))
    return tree


def _is_stacked(members: Mapping[str, TensorSpec]) -> bool:
    """Whether the tensors of a leaf are parts of it, in the order of their places, or it is one tensor."""
    places = [spec.place for spec in members.values()]
    assert places in ([None], list(range(len(places))))
    return places != [None]


def _stack(parts: Iterator[np.ndarray], count: int) -> np.ndarray:
    """As `np.stack`, without holding all parts beside their stack."""
    first = next(parts)
    stacked = np.empty((count, *first.shape), first.dtype)
    stacked[0] = first
    for place, part in enumerate(parts, start=1):
        stacked[place] = part
    return stacked


def _spread(members: Mapping[str, TensorSpec], source: TensorSource, wanted: Any, sharding: Sharding) -> jax.Array:
    """One leaf, each part of it read once and put on the devices that hold it."""
    readers = [_reader(name, spec, source, wanted) for name, spec in members.items()]
    shape: tuple[int, ...] = next(iter(members.values())).shape
    read = readers[0]
    if _is_stacked(members):
        shape = (len(members), *shape)

        def read(index: Slices) -> np.ndarray:
            some = readers[index[0]]
            return _stack((one(index[1:]) for one in some), len(some))

    devices: dict[Any, list[jax.Device]] = collections.defaultdict(list)
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        devices[tuple((cut.start, cut.stop) for cut in index or ())].append(device)
    placed: list[jax.Array] = []
    for bounds, holders in devices.items():
        part = read(tuple(slice(*cut) for cut in bounds))
        placed += [jax.device_put(part, device) for device in holders]
        jax.block_until_ready(placed)  # else the host holds all parts that are still on their way
    return jax.make_array_from_single_device_arrays(shape, sharding, placed)


def _reader(name: str, spec: TensorSpec, source: TensorSource, wanted: Any) -> Callable[[Slices], np.ndarray]:
    """Index -> that part of the tree's tensor, from the file, or from the tensor read at once."""
    read_part = source.read_part
    if read_part is None:
        return spec.to_tree(convert(source.read(name), wanted, name, source.origin)).__getitem__

    def read(index: Slices) -> np.ndarray:
        stored, part = spec.part(index)
        return part.to_tree(convert(read_part(name, stored), wanted, name, source.origin))

    return read


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
