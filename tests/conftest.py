"""What every test runs under: the CPU as eight virtual devices, no silent rank promotion, warnings as errors.

Warnings become errors through `filterwarnings` in pyproject.toml. The environment is set before jax is imported.
"""

import os
from pathlib import Path

from tests.xla import fusion_emitters

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests run many programs a few times on tiny arrays: what counts is how long they take to compile.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",  # programs are small, and another worker has the other core
        *(f"--{name}={str(value).lower()}" for name, value in fusion_emitters(False).items()),
    ]
)
# No test may reach for the network; what is not on this machine is an error, and a quick one.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Programs that take seconds to compile are kept between runs. Tests that count compilations listen for
# `/jax/core/compile/backend_compile_duration`, which jax reports whether a program was compiled or found on disk.
# jax does not lock its folder, so each worker of pytest-xdist has one of its own.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(__file__).parents[1] / ".cache" / "xla" / os.environ.get("PYTEST_XDIST_WORKER", "")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1"

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

MAPS = Path("/proc/self/maps")
MANY_MAPS = 25_000
"""Linux allows a process 65,530 memory maps, a compiled program takes several, and jax aborts where none is left."""


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Forget compiled programs between files once there are many."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY_MAPS:
        jax.clear_caches()
