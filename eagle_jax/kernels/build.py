"""Compiles the kernels with the system's C++ compiler when they are first needed, and registers them with JAX.

The library is cached on disk under a key of everything that decides its code: source, jaxlib, compiler and processor.
Where it cannot be built, one log line says why and what to do, and products run through XLA as on other platforms.
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile

import jax
import jaxlib.version

from eagle_jax.files import cache_directory

SWITCH = "EAGLE_JAX_CPU_KERNEL"
"""Environment variable: 0 leaves all products to XLA."""

MATMUL, ATTENTION, THREEFRY = "eagle_jax_packed_matmul", "eagle_jax_attention", "eagle_jax_threefry"
"""Names of the custom calls."""

_FILES = ("block.h", "matmul.cc", "attention.cc", "threefry.cc")
HEADER, *SOURCES = (pathlib.Path(__file__).with_name(name) for name in _FILES)
COMPILERS = ("c++", "g++", "clang++")

_LOG = logging.getLogger(__name__)


class BuildError(Exception):
    """The kernels cannot be built here; the message is one line."""


@functools.cache
def available() -> bool:
    """Whether the kernels are registered in this process; the first call builds them where they are not cached."""
    if os.environ.get(SWITCH, "") == "0" or jax.default_backend() != "cpu":
        return False
    try:
        library = ctypes.CDLL(str(build()))
        handlers = {
            MATMUL: library.EagleJaxPackedMatmul,
            ATTENTION: library.EagleJaxAttention,
            THREEFRY: library.EagleJaxThreefry,
        }
        for name, handler in handlers.items():
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
    except (BuildError, OSError, AttributeError) as error:
        _LOG.warning(
            "CPU kernels not available (%s): drafting will be slower than it could be; %s=0 silences this",
            error,
            SWITCH,
        )
        return False
    return True


def build() -> pathlib.Path:
    """The compiled library, from the cache or new.

    Raises:
      BuildError: no compiler, or it fails.
      OSError: the cache cannot be written.
    """
    compiler = find_compiler()
    flags = ["-std=c++17", "-O3", "-shared", "-fPIC", "-w", _native(), f"-I{jax.ffi.include_dir()}"]
    library = cache_directory() / f"kernels-{_key(compiler, flags)}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    # Processes that start together each write a file of their own; the last rename wins, and all are the same.
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=library.parent)
    os.close(handle)
    try:
        # Compiled as one source, so that the headers, which take longest, are parsed once.
        *included, last = map(str, SOURCES)
        command = [compiler, *flags, *(f"-include{path}" for path in included), last, "-o", temporary]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            reason = next((line for line in lines if "error" in line), lines[0])
            raise BuildError(f"{compiler} failed: {reason}; it takes GCC 9, Clang 10 or later")
        os.replace(temporary, library)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{compiler} did not end within {error.timeout:.0f} s") from error
    finally:
        pathlib.Path(temporary).unlink(missing_ok=True)
    return library


def find_compiler() -> str:
    """Path of $CXX or of the first of `COMPILERS` that is installed.

    Raises:
      BuildError: none is.
    """
    named = os.environ.get("CXX")
    for name in (named,) if named else COMPILERS:
        if path := shutil.which(name):
            return path
    raise BuildError(f"no C++ compiler: neither of {named or ', '.join(COMPILERS)} is installed; g++ will do")


def _native() -> str:
    """The compiler flag for all instructions of this processor."""
    return "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"


def _key(compiler: str, flags: list[str]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [
        *(path.read_text(encoding="utf-8") for path in (HEADER, *SOURCES)),
        jaxlib.version.__version__,
        compiler,
        version,
        *flags,
        _processor(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """Description of the processor, which decides the instructions that `_native` allows."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("flags", "features", "cpu family", "model", "cpu implementer", "cpu part")
    return "\n".join(sorted({line for line in lines if line.split("\t")[0].strip().lower() in wanted}))
