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

from eagle_jax.accelerators import GPUS, TPUS, Chip, links_of
from eagle_jax.checkpoint.pretrained import PIP_INSTALL

DEVICES = pathlib.Path(__file__).parent / "devices"
"""Descriptions of GPUs for the compiler."""
LIBTPU = "jax[tpu]>=0.10.2"
"""The requirement that brings the TPU compiler."""


class Layouts(NamedTuple):
    """What topologies of one kind of TPU there are."""

    host: tuple[int, ...]  # chips that share a host; a smaller topology is part of one host
    options: dict[str, Any]  # for the compiler
    names: tuple[str, ...]  # that can be had, from the smallest on


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")
MEGACORE = {"chip_config_name": "megacore"}  # else the compiler counts cores, not chips
LAYOUTS: dict[str, Layouts] = {
    "v4": Layouts((2, 2, 1), MEGACORE, CUBES),
    "v5e": Layouts((2, 2), {}, FLAT),
    "v5p": Layouts((2, 2, 1), {}, CUBES),
    "v6e": Layouts((2, 2), {}, FLAT),
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
    kinds = (*TPUS, *GPUS, "cpu")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", layout) or kind not in kinds:
        raise ValueError(f"topology {name!r} is not KIND:LAYOUT, as v5p:2x2x2 or cpu:8; kinds are {', '.join(kinds)}")
    sizes = tuple(map(int, layout.split("x")))
    if kind == "cpu":
        return Topology(name, _cpus(math.prod(sizes)), None, 1)
    if kind in GPUS:
        return Topology(name, _gpus(name, kind, math.prod(sizes)), GPUS[kind], 1)
    return Topology(name, _tpus(name, kind, sizes), TPUS[kind], links_of(sizes))


def _cpus(count: int) -> Sequence[jax.Device]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # jax has been started already, with a fixed number of devices
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(f"topology cpu:{count} asks for {count} devices, jax has been started with {len(devices)}")
    return devices[:count]


def _tpus(name: str, kind: str, sizes: tuple[int, ...]) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(f'topology {name} needs libtpu, which is not installed: {PIP_INSTALL} "{LIBTPU}"')
    # libtpu expects a local TPU and allows one process; for compiling alone neither matters.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", name.replace(":", "-"))
    options = dict(LAYOUTS[kind].options)
    if math.prod(sizes) < math.prod(LAYOUTS[kind].host):
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
