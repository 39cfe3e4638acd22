"""Files of runs: local paths, one writer at a time, complete after every crash; and JSON lines as they are read."""

import codecs
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple, TypeVar

Record = dict[str, Any]
"""A JSON object."""

Parsed = TypeVar("Parsed")


class Location(NamedTuple):
    """A line of a file, as messages name it."""

    path: str | os.PathLike[str]
    number: int  # from 1

    def __str__(self) -> str:
        return f"{os.fspath(self.path)}, line {self.number}"


def local(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path in the file system, with ~ expanded.

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
      ValueError: another process holds the lock; the message is `refusal`.
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


LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the small text begins that a clone without Git LFS has in place of a large file."""


def check_fetched(path: str | os.PathLike[str]) -> None:
    """Refuse a file of which only the Git LFS pointer is there.

    Raises:
      ValueError: one line with the command that fetches it.
      OSError: no such file.
    """
    path = pathlib.Path(path)
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{path} is a Git LFS pointer, not the file: run git lfs pull in {path.parent}")


def read_json(path: str | os.PathLike[str]) -> Record:
    """A JSON object from a file in UTF-8, with or without a byte order mark.

    Raises:
      ValueError: no such file, or none that holds an object; one line with its path.
    """
    path = pathlib.Path(path)
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise ValueError(f"{path.parent} has no {path.name}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return _object_of(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_text(path: str | os.PathLike[str]) -> str:
    """A text in UTF-8, with or without a byte order mark.

    Raises:
      ValueError: another encoding; one line with the path.
    """
    path = pathlib.Path(path)
    try:
        check_fetched(path)
        return _decode(path.read_bytes())
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path}: {text}") from error


def is_filled(path: pathlib.Path) -> bool:
    """Whether there is something that must not be overwritten: a file, or a directory that is not empty."""
    return path.exists() and (not path.is_dir() or any(path.iterdir()))


def check_writable(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path in which something can be written, missing folders made; nothing is written here.

    Raises:
      ValueError: an address, a place in something that is no folder, or no permission.
    """
    path = local(path)
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if there != path.absolute() and not there.is_dir():
        raise ValueError(f"{path} cannot be written: {there} is not a directory")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{path} cannot be written: no permission in {there}")
    return path


def check_directory(path: str | os.PathLike[str]) -> pathlib.Path:
    """`check_writable` of a directory, which may be there."""
    path = check_writable(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, expected a directory to write in")
    return path


def check_new_directory(path: str | os.PathLike[str]) -> pathlib.Path:
    """`check_writable` of a directory in whose place there is nothing yet."""
    path = check_writable(path)
    if is_filled(path):
        raise ValueError(f"{path} is there already and not empty; nothing is overwritten")
    return path


@contextlib.contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A directory to fill, which appears under its name when it is complete, for everybody to read.

    Raises:
      ValueError: there is something of that name already, or the name is an address.
    """
    path = check_new_directory(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder
        folder.chmod(0o755)  # temporary folders, and files of safetensors, are their owner's alone
        for inner in folder.rglob("*"):
            inner.chmod(0o755 if inner.is_dir() else 0o644)
        folder.replace(path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


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


def read_jsonl(
    path: str | os.PathLike[str],
    parse: Callable[[Record, Location], Parsed],
    *,
    what: str = "",
    broken: list[str] | None = None,
) -> list[Parsed]:
    """What `parse` makes of each JSON object of a file, one a line; blank lines are skipped.

    Args:
      path: the file, in UTF-8.
      parse: takes an object and its place in the file; raises a ValueError that says what is wrong with the object.
      what: what a line should be, as in "a row"; replaces the reason in messages.
      broken: collects a message for each line that cannot be read; without it the first one is raised.

    Raises:
      ValueError: "PATH, line N: REASON".
    """
    check_fetched(path)
    with pathlib.Path(path).open("rb") as file:
        return parse_jsonl(file, path, parse, what=what, broken=broken)


def parse_jsonl(
    lines: Iterable[bytes],
    path: str | os.PathLike[str],
    parse: Callable[[Record, Location], Parsed],
    *,
    what: str = "",
    broken: list[str] | None = None,
) -> list[Parsed]:
    """`read_jsonl` of lines that were read from `path` already."""
    parsed = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        location = Location(path, number)
        try:
            parsed.append(parse(_object_of(_decode(line).rstrip("\r\n")), location))
        except ValueError as error:
            message = f"{location}: {f'not {what}' if what else error}"
            if broken is None:
                raise ValueError(message) from error
            broken.append(message)
    return parsed


def check_fields(record: Record, names: Iterable[str]) -> None:
    """Raise a ValueError that lists the fields that a record lacks."""
    missing = sorted(set(names) - record.keys())
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")


def with_fields(*names: str) -> Callable[[Record, Location], Record]:
    """A `parse` that takes records as they are, if they have these fields."""

    def parse(record: Record, location: Location) -> Record:
        del location
        check_fields(record, names)
        return record

    return parse


def _object_of(text: str) -> Record:
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise ValueError(f"not JSON: {error.msg} at {place}") from error
    except RecursionError as error:
        raise ValueError(f"nested too deeply to be read: {text[:20]!r}...") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    return record


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("it is UTF-16, save it as UTF-8") from error
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
