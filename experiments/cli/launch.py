"""The one entry point of every experiment: flags in, errors as one line, compiled programs kept between runs.

    FLAGS = flags.FlagValues()
    flags.DEFINE_integer("seed", 0, "of sampling", flag_values=FLAGS)
    ...
    if __name__ == "__main__":
        launch.run(main, FLAGS)

Each script has flags of its own, so that scripts can be imported side by side. A mistake in flags or files ends with
one line on stderr and exit code 2; a bug keeps its traceback and exit code 1.
"""

import contextlib
import os
import pathlib
import re
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any, NoReturn

import jax
from absl import flags
from jax.sharding import Mesh

from eagle_jax.files import check_writable
from eagle_jax.processes import is_primary
from eagle_jax.sharding import check_batch, make_mesh

REFUSED_BY_CONFIG = re.compile(r"flag (\S+): Error whilst parsing config file:.*\nValueError: (.*)", re.DOTALL)
"""How ml_collections passes on what a config says to its argument: the flag, a traceback, the message."""

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
CLOSED_PIPE = 141  # 128 + SIGPIPE

DISTRIBUTED = "several processes: auto, as the cluster says, or HOST:PORT,COUNT,INDEX of the first, of all, of this one"
"""Help of the flag that `join` reads."""

OURS = ("eagle_jax", "experiments", "configs", "__main__")
"""Packages whose `ValueError` speaks to the user; one raised deeper inside a library is a bug."""


def run(main: Callable[[], None], values: flags.FlagValues) -> NoReturn:
    """Parse the command line into `values`, call `main`, and end the process."""
    sys.exit(call(main, values, sys.argv[1:]))


def call(main: Callable[[], None], values: flags.FlagValues, arguments: Sequence[str]) -> int:
    """Do what `run` does for the given arguments, but return the exit code; flags start from their defaults."""
    if any(argument in ("-h", "--help", "-help") for argument in arguments):
        print(_help(sys.modules[main.__module__].__doc__ or "", values))
        return 0
    try:
        _parse(values, arguments)
        keep_compiled_programs()
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except Exception as error:
        if not is_mistake(error):
            raise
        return _refuse(error)
    return 0


def is_mistake(error: Exception) -> bool:
    """Whether it is the user's, in flags, files or values, and no bug."""
    if isinstance(error, flags.Error | OSError):
        return True
    return isinstance(error, ValueError) and _raised_by_us(error.__traceback__)


def _parse(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Set the flags from their defaults on; fields of a config too, as in --config.optimizer.learning_rate=1e-3.

    Raises:
      flags.Error: an argument that cannot be used.
    """
    for name in [name for name in values if "." in name]:  # fields that an earlier call set
        delattr(values, name)
    values.unparse_flags()
    before = sys.argv
    sys.argv = ["", *arguments]  # where a config looks for fields to set, whatever is parsed
    try:
        rest = values(sys.argv)[1:]
    except (AttributeError, LookupError, ValueError) as error:
        if any(_module(frame).endswith("_config") for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise  # a bug in the config's file, which runs under this name
        reason: Any = error
        while isinstance(reason, Exception) and reason.args:  # one error wraps another
            reason = reason.args[0]
        raise flags.Error(f"the config has no such field: {reason}") from error
    except flags.IllegalFlagValueError as error:
        refused = REFUSED_BY_CONFIG.fullmatch(str(error).strip())
        if not refused:
            raise
        raise flags.Error(f"{refused[1]}: {refused[2]}") from error
    finally:
        sys.argv = before
    if rest:
        raise flags.Error(f"unexpected argument {rest[0]!r}: settings are flags, --name=value")


def need(values: flags.FlagValues, *names: str) -> None:
    """Refuse the first of these flags that says nothing.

    Raises:
      ValueError: a flag without a value, with its help.
    """
    for name in names:
        if not getattr(values, name):
            raise ValueError(f"give --{name}: {values[name].help}")


def check_file(name: str, text: str | None, *, new: bool = False, folders: bool = False) -> None:
    """Refuse a flag with an output file that cannot be written, before any work.

    Args:
      name: of the flag.
      text: its value; nothing is no file.
      new: nothing may be there yet.
      folders: missing ones are made.

    Raises:
      ValueError: an address, a directory, a folder that is not there, or no permission.
    """
    if not text:
        return
    path = check_writable(text)
    if path.is_dir() or (new and path.exists()) or not (folders or path.parent.is_dir()):
        where = "" if folders else " in a folder that exists"
        raise ValueError(f"--{name}={text} must name a {'new ' if new else ''}file{where}")


def keep_compiled_programs() -> None:
    """Turn on jax's persistent compilation cache, in $EAGLE_JAX_CACHE or ~/.cache/eagle_jax/xla.

    jax's own variable JAX_COMPILATION_CACHE_DIR goes first; an empty $EAGLE_JAX_CACHE turns the cache off.
    """
    folder = os.environ.get("EAGLE_JAX_CACHE", "~/.cache/eagle_jax/xla")
    if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    path = pathlib.Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        note(f"compiled programs are not stored: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def mesh_sizes(text: str) -> tuple[int, int]:
    """The two numbers of --mesh=DATAxMODEL.

    Raises:
      ValueError: another form.
    """
    sizes = re.fullmatch(r"(\d+)x(\d+)", text)
    if not sizes:
        raise ValueError(f"--mesh is DATAxMODEL, two numbers of devices such as 1x4, got {text!r}")
    return int(sizes[1]), int(sizes[2])


def parse_mesh(text: str | None, *, batch: int) -> Mesh | None:
    """The devices that --mesh=DATAxMODEL asks for; None without the flag.

    Args:
      text: of the flag.
      batch: rows that decode together.

    Raises:
      ValueError: another form, more devices than there are, rows that do not divide evenly, or several processes
        that would work beside each other.
    """
    mesh = make_mesh(*mesh_sizes(text)) if text is not None else None
    devices = jax.device_count()
    if jax.process_count() > 1 and (mesh is None or mesh.size != devices):
        raise ValueError(
            f"{jax.process_count()} processes work on one mesh of all their {devices} devices, got --mesh={text}"
        )
    if mesh is not None:
        check_batch(mesh, batch)
    return mesh


def say(text: str, end: str = "\n") -> None:
    """Print at once, one time for all processes."""
    if is_primary():
        print(text, end=end, flush=True)


def join(text: str | None) -> None:
    """Become one of several processes that work together, as --distributed says; before jax looks at its devices.

    Args:
      text: `auto`, as the cluster says (TPU pods, Slurm, Open MPI, Kubernetes), or HOST:PORT,COUNT,INDEX: where
        process 0 listens, how many they are, which of them this is. None: alone.

    Raises:
      ValueError: another form, or no cluster that says anything.
    """
    if text is None:
        return
    parts = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", text)
    if parts and int(parts[3]) < int(parts[2]):
        jax.distributed.initialize(parts[1], int(parts[2]), int(parts[3]))
        return
    if text != "auto":
        raise ValueError(f"--distributed is auto or HOST:PORT,COUNT,INDEX with INDEX below COUNT, got {text!r}")
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise ValueError(f"--distributed=auto finds no cluster ({error}): give HOST:PORT,COUNT,INDEX") from error


@contextlib.contextmanager
def status(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show on stderr that `what` is under way and, at the end, how long it took.

    Yields a function to be called with (done, in all); on a terminal it updates the line.
    """
    started, live = time.perf_counter(), sys.stderr.isatty()
    line = f"{what} ..."
    print(line, end="", file=sys.stderr, flush=True)

    def progress(done: int, total: int) -> None:
        if live:
            print(f"\r{line} {done}/{total}", end="", file=sys.stderr, flush=True)

    try:
        yield progress
    except BaseException:
        print(file=sys.stderr)
        raise
    end = f"{time.perf_counter() - started:.1f} s"
    print(f"\r\033[K{line} {end}" if live else f" {end}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Tell a person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _refuse(error: Exception) -> int:
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    note("error: " + (" ".join(text.split()) or type(error).__name__))
    return USER_ERROR


def _raised_by_us(trace: TracebackType | None) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    return bool(frames) and _module(frames[-1]).split(".")[0] in OURS


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "")


def _help(docstring: str, values: flags.FlagValues) -> str:
    """The docstring of a script and its flags, one line each; those that say how to draft, which many share, last."""
    by_module = values.flags_by_module_dict()
    shared = {flag.name for flag in by_module.get("experiments.cli.methods", ())}
    lines = [docstring.strip()]
    for title, names in (("Flags:", set(values) - shared), ("Flags of drafting methods:", shared)):
        if names:
            lines += ["", title, *(_flag_line(values[name]) for name in sorted(names))]
    return "\n".join(lines)


def _flag_line(flag: flags.Flag) -> str:
    """A flag with its default as it would be typed, in lines that fit a terminal."""
    default = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
    shown = "" if default in (None, "") else f" (default: {default})"
    line = f"  --{'[no]' if flag.boolean else ''}{flag.name}: {flag.help}{shown}"
    return textwrap.fill(line, 118, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
