"""Processes of their own for parts of a script, which end in order when the script is told to."""

import signal
import subprocess
from collections.abc import Sequence
from types import FrameType
from typing import IO, Any


def run(command: Sequence[str], stdout: IO[str] | int | None = None) -> int:
    """Run a command to its end; its exit code.

    Ctrl-C and SIGTERM are passed on, and the end of the command is waited for all the same: it may have to save. It
    has a process group of its own, so that a terminal's Ctrl-C does not reach it twice.

    Raises:
      KeyboardInterrupt: a signal came; the command has ended.
    """
    asked: list[int] = []
    child: subprocess.Popen[Any] | None = None

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)
        if child is not None:
            child.send_signal(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        child = subprocess.Popen(command, stdout=stdout, process_group=0)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt
    return code
