"""Processes of their own: their exit codes, and a signal that they get once and answer in their own time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import children

ROOT = Path(__file__).parents[2]

SAVES = """
import signal, sys, time
asked = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: asked.append(signal.Signals(number).name))
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
time.sleep(0.3)
print("saved after", *asked, flush=True)
"""
PARENT = """
import sys
from experiments import children
try:
    children.run([sys.executable, "-c", sys.argv[1]])
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_exit_codes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert [children.run([sys.executable, "-c", f"exit({code})"]) for code in (0, 3)] == [0, 3]
    assert children.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == -signal.SIGKILL
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_is_passed_on_and_waited_for(number: signal.Signals, group: bool) -> None:
    """To the parent alone, or to its whole group, as a terminal sends it."""
    command = [sys.executable, "-c", PARENT, SAVES]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        (os.killpg if group else os.kill)(parent.pid, number)
        assert parent.stdout.read().splitlines() == [f"saved after {number.name}", "interrupted"]
    assert parent.returncode == 0
