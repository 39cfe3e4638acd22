"""Peak numbers of accelerators, from which lower bounds on the time of a program follow.

TPUs: compute, memory and its bandwidth as in the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU
documentation; links as in Austin et al., How to Scale Your Model (2025), part 2. GPUs: NVIDIA's data sheets of H100 and
H200 SXM, dense bfloat16, 18 links of NVLink 4 through a switch, so all at a time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
    """Peak numbers of one chip."""

    flops: float  # FLOP/s in bfloat16
    hbm: float  # bytes of memory
    bandwidth: float  # of the memory, bytes/s
    link: float  # of one link between chips, one way, bytes/s
    latency: float  # seconds that a collective takes beside its bytes: an assumption


HOP, NCCL = 1e-6, 1e-5
"""Latencies: about one hop between neighbouring TPUs; a small sum over the GPUs of a host."""

TPUS: dict[str, Chip] = {
    "v4": Chip(275e12, 32 * GIB, 1200e9, 4.5e10, HOP),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 5e10, HOP),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 1e11, HOP),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 1e11, HOP),
}

NVLINK = 4.5e11
GPUS: dict[str, Chip] = {
    "h100": Chip(989e12, 80e9, 3350e9, NVLINK, NCCL),
    "h200": Chip(989e12, 141e9, 4800e9, NVLINK, NCCL),
}

_KINDS = {
    **{"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p"},
    **{"TPU v6 lite": "v6e", "TPU v6e": "v6e"},
}
"""Names of TPUs by what jax calls the kind of a device."""


def chip_of(device: jax.Device) -> Chip | None:
    """The numbers of a device; None of a CPU and of accelerators that are not listed."""
    kind = device.device_kind
    if kind in _KINDS:
        return TPUS[_KINDS[kind]]
    return next((chip for name, chip in GPUS.items() if name.upper() in kind.upper().split()), None)


def links_of(sizes: Sequence[int]) -> int:
    """Links of every chip of a layout: one along each axis, two along one that is closed to a ring.

    Cubes of 4x4x4 and layouts made of them are closed along all axes, flat layouts along an axis of 16 (How to Scale
    Your Model, part 2). In the middle of an open axis there are two as well, but its ends set the pace.
    """
    cubes = len(sizes) == 3 and all(size % 4 == 0 for size in sizes)
    return sum(2 if cubes or (len(sizes) == 2 and size == 16) else 1 for size in sizes if size > 1)


def links_between(devices: Sequence[jax.Device]) -> int:
    """Links of every chip of a box of TPUs by their coordinates; 1 for devices without coordinates, such as GPUs."""
    places = [getattr(device, "coords", None) for device in devices]
    if None in places or not places:
        return 1
    sizes = [max(along) - min(along) + 1 for along in zip(*places, strict=True)]
    return max(1, links_of(sizes if sizes[-1] > 1 else sizes[:-1]))
