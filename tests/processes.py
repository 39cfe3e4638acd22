"""Two processes of four CPU devices each, joined over the loopback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_two(module: str, *arguments: object) -> list[list[str]]:
    """Call `join(process, port, *arguments)` of a test module in both; the lines that each prints."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"from {module} import join; join(*{(process, port, *arguments)!r})"],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    return [output.splitlines() for output, _ in ended]


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
