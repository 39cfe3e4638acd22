"""A run whose process is killed goes on in another one, and ends bit for bit as if nothing had happened."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.training.test_loop import Setup, assert_same, metrics

ROOT = Path(__file__).parents[2]
WHILE_SAVING = 0
"""In place of a step: die as soon as the first checkpoint begins to appear."""


def die(folder: str, step: int) -> None:
    """What the other process does: the run in `folder`, until it kills itself after `step` steps."""
    setup = Setup("eagle3")
    inner, checkpoints = setup.step, Path(folder) / "checkpoints"

    def deadly(*arguments: Any) -> Any:
        if step != WHILE_SAVING and int(arguments[0].step) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*arguments)

    def watch() -> None:
        while not (checkpoints.is_dir() and any(checkpoints.iterdir())):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    setup.step = deadly
    if step == WHILE_SAVING:
        threading.Thread(target=watch, daemon=True).start()
    setup.run(Path(folder))


def kill(folder: Path, step: int) -> None:
    """Let another process work in `folder` and die."""
    code = f"from tests.experiments.test_kill import die; die({str(folder)!r}, {step})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_killed_twice(tmp_path: Path) -> None:
    setup, folder = Setup("eagle3"), tmp_path / "run"
    whole = setup.run(tmp_path / "whole")
    kill(folder, WHILE_SAVING)
    assert [line["step"] for line in metrics(folder)] == [2]  # the first checkpoint is that of step 3
    kill(folder, 8)
    assert [line["step"] for line in metrics(folder)] == [2, 4, 6, 8]  # its last one that of step 6
    outcome = setup.run(folder)
    assert outcome.finished
    assert_same(outcome, whole)
    assert metrics(folder) == metrics(tmp_path / "whole")
    assert [line["step"] for line in metrics(folder)] == [2, 4, 6, 8, 10, 12]
