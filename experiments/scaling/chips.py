"""The devices that programs are compiled for: TPU chips of a named topology, GPUs, or virtual CPU devices.

A topology is `KIND:LAYOUT`, as in v5p:2x2x2 or v6e:2x4: chips and their arrangement, of GPUs their number, as in
h200:8. The TPU compiler comes with the package `libtpu` and needs no TPU, that for GPUs with the CUDA plugin of jax; it
needs no GPU but a description of one (`devices/`). `cpu:8` is eight virtual devices of this machine's CPU, to inspect
shapes and for tests.
"""

import contextlib
import importlib.util
import math
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from eagle_jax.checkpoint.pretrained import PIP_INSTALL

GIB = 2**30
DEVICES = pathlib.Path(__file__).parent / "devices"
"""Descriptions of GPUs for the compiler."""
LIBTPU = "jax[tpu]>=0.10.2"
"""The requirement that brings the TPU compiler."""


class Chip(NamedTuple):
    """Peak numbers of one chip."""

    flops: float  # FLOP/s in bfloat16
    hbm: float  # bytes
    bandwidth: float  # of the HBM, bytes/s
    link: float  # of one link between chips, one way, bytes/s
    host: tuple[int, ...]  # chips that share a host; a smaller topology is part of one host
    options: dict[str, Any]  # for the compiler
    layouts: tuple[str, ...]  # that can be had, from the smallest on


# Compute, HBM and its bandwidth: the pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation.
# Links: Austin et al., How to Scale Your Model (2025), part 2.
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")
MEGACORE = {"chip_config_name": "megacore"}  # else the compiler counts cores, not chips
CHIPS: dict[str, Chip] = {
    "v4": Chip(275e12, 32 * GIB, 1200e9, 4.5e10, (2, 2, 1), MEGACORE, CUBES),
    "v5e": Chip(197e12, 16 * GIB, 819e9, 5e10, (2, 2), {}, FLAT),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 1e11, (2, 2, 1), {}, CUBES),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 1e11, (2, 2), {}, FLAT),
}


# NVIDIA's data sheets of H100 and H200 SXM: dense bfloat16, 18 links of NVLink 4 through a switch, so all at a time.
NVLINK = 4.5e11
GPUS: dict[str, Chip] = {
    "h100": Chip(989e12, 80e9, 3350e9, NVLINK, (8,), {}, ("1", "2", "4", "8")),
    "h200": Chip(989e12, 141e9, 4800e9, NVLINK, (8,), {}, ("1", "2", "4", "8")),
}

CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
CUDA_PLUGIN = "jax[cuda13-local]>=0.11"
"""The requirement that brings the compiler for GPUs, without the libraries that running needs."""


class Topology(NamedTuple):
    """Devices to compile for."""

    name: str
    devices: Sequence[jax.Device]
    chip: Chip | None  # None: a CPU
    links: int  # of a chip that collectives can use

    @property
    def platform(self) -> str:
        """As jax names it."""
        platform: str = self.devices[0].platform
        return platform


def get_topology(name: str) -> Topology:
    """The devices of a named topology.

    Raises:
      ValueError: an unknown kind, a layout that the compiler does not know, TPUs without `libtpu`, GPUs without jax's
        CUDA plugin, or more CPU devices than there are.
    """
    kind, _, layout = name.partition(":")
    kinds = (*CHIPS, *GPUS, "cpu")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", layout) or kind not in kinds:
        raise ValueError(f"topology {name!r} is not KIND:LAYOUT, as v5p:2x2x2 or cpu:8; kinds are {', '.join(kinds)}")
    sizes = tuple(map(int, layout.split("x")))
    if kind == "cpu":
        return Topology(name, _cpus(math.prod(sizes)), None, 1)
    if kind in GPUS:
        return Topology(name, _gpus(name, kind, math.prod(sizes)), GPUS[kind], 1)
    chip = CHIPS[kind]
    return Topology(name, _tpus(name, sizes, chip), chip, links_of(sizes))


def links_of(sizes: tuple[int, ...]) -> int:
    """Links of every chip of a layout: one along each axis, two along one that is closed to a ring.

    Cubes of 4x4x4 and layouts made of them are closed along all axes, flat layouts along an axis of 16 (How to Scale
    Your Model, part 2). In the middle of an open axis there are two as well, but its ends set the pace.
    """
    cubes = len(sizes) == 3 and all(size % 4 == 0 for size in sizes)
    return sum(2 if cubes or (len(sizes) == 2 and size == 16) else 1 for size in sizes if size > 1)


def _cpus(count: int) -> Sequence[jax.Device]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # jax has been started already, with a fixed number of devices
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(f"topology cpu:{count} asks for {count} devices, jax has been started with {len(devices)}")
    return devices[:count]


def _tpus(name: str, sizes: tuple[int, ...], chip: Chip) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f'topology {name} needs libtpu, which is not installed: {PIP_INSTALL} "{LIBTPU}"')
    # libtpu expects a local TPU and allows one process; for compiling alone neither matters.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", name.replace(":", "-"))
    options = dict(chip.options)
    if math.prod(sizes) < math.prod(chip.host):
        options["chips_per_host_bounds"] = sizes + (1,) * (3 - len(sizes))
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the TPU compiler knows no topology {name}: {error}") from error


def _gpus(name: str, kind: str, count: int) -> Sequence[jax.Device]:
    if not any(map(importlib.util.find_spec, CUDA_PLUGINS)):
        raise ValueError(
            f'topology {name} needs the CUDA plugin of jax, which is not installed: {PIP_INSTALL} "{CUDA_PLUGIN}"'
        )
    described = (DEVICES / f"{kind}.txtpb").read_text(encoding="utf-8")
    return topologies.get_topology_desc("", "cuda", topology=f"1x1x{count}", target_config=described).devices
