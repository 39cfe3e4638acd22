"""Two processes with four devices each go on with a run and finish it: metrics and weights of one process alone."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import train
from experiments.cli import launch
from tests.experiments.conftest import write_model
from tests.experiments.training_runs import CONFIG, conversation, metrics, write_lines
from tests.processes import run_two

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def write_task(folder: Path) -> list[str]:
    """A target, conversations and a config; the flags for them."""
    target = write_model(folder / "target")
    (folder / "config.py").write_text(CONFIG.replace("BASE", "eagle3_smollm2").replace("TARGET", repr(str(target))))
    data = write_lines(folder / "data.jsonl", [conversation(number) for number in range(12)])
    return [f"--config={folder / 'config.py'}", f"--data={data}", "--config.steps=3", "--quiet"]


def run(*flags: str) -> int:
    return launch.call(train.main, train.FLAGS, flags)


def join(process: int, port: int, *flags: str) -> None:
    """What each of the processes runs: a step, and as if called anew the last one."""
    assert run(*flags, f"--distributed=127.0.0.1:{port},2,{process}", "--time_limit=0") == 0
    assert run(*flags) == 0


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    alone, shared = ([*task, f"--run={tmp_path / name / 'run'}"] for name in ("alone", "shared"))
    assert run(*alone, f"--export={tmp_path / 'alone' / 'head'}") == 0
    assert run(*shared, "--time_limit=0") == 0
    ended = run_two(__name__, *shared, "--mesh=2x4", f"--export={tmp_path / 'shared' / 'head'}")
    first, second = (
        [line.split(" (")[0] for line in lines if line.startswith(("stopped", "finished", "wrote"))] for lines in ended
    )
    assert first[:2] == ["stopped at step 2 of 3", "finished: 3 steps"]
    assert (len(first), second) == (3, [])
    assert len(metrics(tmp_path / "alone")) == 5  # three steps, held-out text after two and at the end
    for found, wanted in zip(metrics(tmp_path / "shared"), metrics(tmp_path / "alone"), strict=True):
        assert found.pop("kind") == wanted.pop("kind")
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    heads = [load_file(tmp_path / name / "head" / "model.safetensors") for name in ("shared", "alone")]
    assert heads[0].keys() == heads[1].keys()
    for name, weights in heads[1].items():
        np.testing.assert_allclose(heads[0][name].astype(np.float32), weights.astype(np.float32), atol=5e-4, rtol=1e-2)


def test_processes_that_find_nobody(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    task = [*write_task(tmp_path), f"--run={tmp_path / 'run'}"]
    assert run(*task, "--distributed=127.0.0.1,2,0") == 2
    assert run(*task, "--distributed=127.0.0.1:80,2,2") == 2
    said = capsys.readouterr().err.splitlines()
    expected = "error: --distributed is auto or HOST:PORT,COUNT,INDEX with INDEX below COUNT, got "
    assert said == [f"{expected}'127.0.0.1,2,0'", f"{expected}'127.0.0.1:80,2,2'"]


@pytest.mark.parametrize("mesh", [None, "2x2"])
def test_processes_need_one_mesh(monkeypatch: pytest.MonkeyPatch, mesh: str | None) -> None:
    monkeypatch.setattr(launch.jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=f"2 processes work on one mesh of all their 8 devices, got --mesh={mesh}"):
        launch.parse_mesh(mesh, batch=2)
