"""Files of runs: in this machine's file system, one process at a time, never half written after a crash."""

import fcntl
import os
import pathlib
from typing import IO, Any


def local(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path as it is given, ~ written out.

    Raises:
      ValueError: the address of something outside the file system.
    """
    text = os.fspath(path)
    if "://" in text:
        raise ValueError(f"{text} is an address, give a local or mounted path")
    return pathlib.Path(text).expanduser()


CACHE = "EAGLE_JAX_CACHE"
"""Environment variable: where kernels and measured costs are stored, `~/.cache/eagle_jax` by default."""


def cache_directory() -> pathlib.Path:
    """Directory for what is derived from the machine alone and may be deleted at any time."""
    if given := os.environ.get(CACHE):
        return pathlib.Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "eagle_jax"


def lock(file: IO[Any], refusal: str) -> None:
    """Take an exclusive lock on a file, held until it is closed.

    Raises:
      ValueError: another process has it; `refusal` says so.
      OSError: a file system without locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(refusal) from None


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replace a file atomically: a crash leaves the old content or the new one."""
    path = pathlib.Path(path)
    new = path.with_name(path.name + ".new")
    with new.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def allocate(path: str | os.PathLike[str], size: int) -> None:
    """Create a file of `size` zeros whose blocks are allocated on the disk.

    A file with holes would kill the process that fills it through a memory map once the disk is full.

    Raises:
      OSError: there is not as much room.
    """
    path = pathlib.Path(path)
    with path.open("wb") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # macOS has none
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            path.unlink()
            raise OSError(error.errno, error.strerror, str(path)) from None
