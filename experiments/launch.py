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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import NoReturn

import jax
from absl import flags

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
CLOSED_PIPE = 141  # 128 + SIGPIPE

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
        values.unparse_flags()
        rest = values(["", *arguments])[1:]
        if rest:
            raise flags.Error(f"unexpected argument {rest[0]!r}: settings are flags, --name=value")
        keep_compiled_programs()
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except (flags.Error, OSError) as error:
        return _refuse(error)
    except ValueError as error:
        if not _raised_by_us(error.__traceback__):
            raise
        return _refuse(error)
    return 0


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
        _say(f"compiled programs are not kept: {error}")
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


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


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _refuse(error: Exception) -> int:
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    _say("error: " + (" ".join(text.split()) or type(error).__name__))
    return USER_ERROR


def _raised_by_us(traceback: TracebackType | None) -> bool:
    name = ""
    while traceback is not None:
        name = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return name.split(".")[0] in OURS


def _help(docstring: str, values: flags.FlagValues) -> str:
    """The docstring of a script and its flags, one line each."""
    lines = [docstring.strip(), "", "Flags:"]
    for name in sorted(values):
        default = "" if values[name].default in (None, "") else f" (default: {values[name].default})"
        lines.append(f"  --{name}: {values[name].help}{default}")
    return "\n".join(lines)
