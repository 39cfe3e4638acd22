"""Sweeps: points, their order, continuing, training before measuring. The target is tiny and random."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagle_jax.checkpoint import pretrained
from eagle_jax.checkpoint.distilled import save_draft
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.pick_layers import truncate_layers
from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.evaluation.rows import TIMINGS
from experiments import sweep
from experiments.cli import draft_weights, launch
from tests.checkpoint.heads import edit_config, edit_tensors, random_head

ROOT = Path(__file__).parents[2]
ABLATIONS = sorted((ROOT / "configs" / "ablations").glob("*.py"))

CONFIG = """
import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.target = "TARGET"
    config.dtype = "float32"
    config.tasks = ("sums",)
    config.num_prompts = 1
    config.turns = "first"
    config.max_new_tokens = 8
    config.temperatures = (0.0, 1.0)
    config.seeds = (0,)
    config.warm_ups = 0
    config.method = {"method": "prompt_lookup", "depth": 2}
    return config


def sweep(add):
    add()
    add(**{"method.depth": 1})
    add(label="sampled, plain top-k", **{"method.share_noise": False, "method.temperatures": (1.0,)})
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "sums").mkdir()
    (folder / "sums" / "question.jsonl").write_text('{"prompt": "1 + 1 = 2, 2 + 2 ="}\n{"prompt": "3 + 4 ="}')
    return folder


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "ablation.py"
    path.write_text(CONFIG.replace("TARGET", str(tiny_model)))
    return path


def run(config: Path, data: Path, output: Path | str, *more: str) -> int:
    arguments = [f"--config={config}", f"--data={data}", f"--output={output}", "--quiet", *more]
    return launch.call(sweep.main, sweep.FLAGS, arguments)


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The last line of a run that must fail."""
    assert run(*arguments) == 2
    return capsys.readouterr().err.splitlines()[-1]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_points_one_after_the_other(
    config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sweep"
    assert run(config, data, output, "--points=depth=1") == 0
    first = capsys.readouterr()
    assert "Not finished, the same command continues: base; sampled, plain top-k." in first.out
    measured = read(output / "rows.jsonl")
    assert {row["label"] for row in measured} == {"depth=1"}

    assert run(config, data, output) == 0
    rows = read(output / "rows.jsonl")
    assert [row for row in rows if row["label"] == "depth=1"] == measured  # not measured again
    cells = [(row["label"], row["temperature"], row["seed"], row["tree"]["nodes"]) for row in rows]
    assert cells == [
        ("base", 0.0, 0, 4),
        ("depth=1", 0.0, 0, 3),
        ("base", 1.0, 0, 4),
        ("depth=1", 1.0, 0, 3),
        ("sampled, plain top-k", 1.0, 0, 4),
    ]
    summary = (output / "summary.md").read_text()
    assert summary == capsys.readouterr().out
    assert "Not finished" not in summary
    assert summary.count("\n| base | 4, 2, 1 | ") == 2
    assert "| sampled, plain top-k | 4, 2, 1 | " in summary.split("T = 1: speed-up (tau)")[1]

    text = config.read_text()
    config.write_text(text + '    add(**{"method.depth": 0})\n')
    assert run(config, data, output, "--points=depth=0") == 0  # a further point of the same sweep
    assert [row for row in read(output / "rows.jsonl") if row["label"] != "depth=0"] == rows
    config.write_text(text)
    assert "its methods.depth=0 is {" in refused(capsys, config, data, output)
    config.write_text(text.replace("max_new_tokens = 8", "max_new_tokens = 9"))
    assert "its max_new_tokens is 8, not 9; nothing was written" in refused(capsys, config, data, output)


def test_teacher_forced(config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without times, but otherwise the rows of decoding; and the two modes are not mixed in one directory."""
    assert run(config, data, tmp_path / "timed") == 0
    assert run(config, data, tmp_path / "forced", "--mode=teacher_forced") == 0
    timed, forced = (read(tmp_path / name / "rows.jsonl") for name in ("timed", "forced"))
    assert len(forced) == len(timed) == 5
    for one, other in zip(forced, timed, strict=True):
        assert (one["mode"], other["mode"]) == ("teacher_forced", "timed")
        assert all(one[name] is None for name in (*TIMINGS, "identical_prompts"))
        assert (one["batch"], other["batch"]) == (10, 1)
        same = one.keys() - {*TIMINGS, "identical_prompts", "mode", "batch", "commit"}
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
        assert {"label", "tokens", "turns", "rounds", "tau", "n_alpha", "accepted", "tree", "temperature"} <= same
    capsys.readouterr()
    assert "is another run: its batch is 10, not None" in refused(capsys, config, data, tmp_path / "forced")

    other = '"method.rule": "residual", "method.share_noise": False'
    config.write_text(config.read_text().replace('"method.depth": 1', other))
    assert run(config, data, tmp_path / "left_out", "--mode=teacher_forced") == 0
    captured = capsys.readouterr()
    assert "Left out: rule=residual, share_noise=False (the rule 'residual' writes another text)." in captured.out
    assert "Not finished" not in captured.out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"method.depth": 1', '"method.dept": 1', "methods[1] has the unknown field 'dept'"),
        ('"method.depth": 1', '"methods.depth": 1', "point 'depth=1' changes 'methods.depth'; it may change method.X"),
        ('"method.depth": 1', '"seeds": (1,)', "point 'seeds=(1,)' changes 'seeds'; it may change method.X"),
        ('"method.depth": 1', '"train.seed": 1', "point 'seed=1' changes 'train.seed'; it may change method.X"),
        ('"method.depth": 1', '"method.nodes": 9', "the tree of this method is a chain: --depth=2 has 4 nodes, got"),
        ('"sampled, plain top-k"', '"depth=1"', "has two points called 'depth=1'"),
        ("def sweep", "def swept", "has no function sweep: it is not a config of an ablation"),
        ("    add()\n", "    return\n", "sweep(add) adds no point"),
    ],
)
def test_configs_that_cannot_be_used(
    old: str, new: str, message: str, config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before anything is measured."""
    config.write_text(config.read_text().replace(old, new))
    assert message in refused(capsys, config, data, tmp_path / "sweep")
    assert not (tmp_path / "sweep" / "rows.jsonl.journal").exists()


def test_bad_flags(config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sweep"
    wrong = refused(capsys, config, data, output, "--points=wide")
    assert wrong == "error: no point is called 'wide'; there are base, depth=1, sampled_plain_top-k"
    assert refused(capsys, tmp_path / "no.py", data, output) == f"error: --config={tmp_path / 'no.py'} names no file"
    assert launch.call(sweep.main, sweep.FLAGS, [f"--config={config}"]) == 2
    assert capsys.readouterr().err == "error: give --data: directory with questions, as for experiments.evaluate\n"
    training = config.with_name("training.py")
    training.write_text(config.read_text().replace("    return config\n", with_training(), 1))
    assert "trains heads: give --answers" in refused(capsys, training, data, output)
    assert not output.exists()
    away = "gs://bucket/sweep"
    assert refused(capsys, config, data, away) == f"error: {away} is an address, give a local or mounted path"


def test_reading_initialises_no_backend() -> None:
    """Training runs in other processes, from which this one would keep the accelerator."""
    code = """
import sys
from jax._src import xla_bridge
from experiments.sweep import read_points
for path in sys.argv[1:]:
    read_points(path)
print(sorted(xla_bridge._backends))
"""
    command = [sys.executable, "-c", code, *map(str, ABLATIONS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_training_config_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "ablation.py"
    text = (ROOT / "configs" / "ablations" / "unrolled_steps.py").read_text()
    changed = text.replace("    return config\n", '    config.train.config = "no/such.py"\n    return config\n', 1)
    path.write_text(changed)
    with pytest.raises(ValueError, match=r"^the config's train\.config=no/such\.py names no file$"):
        sweep.read_points(str(path))
    with pytest.raises(ValueError, match=r"^--config=no/such\.py names no file$"):
        sweep.read_points("no/such.py")


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("del config.method; config.method = 'eagle3'", "the config's method must be dict, got 'eagle3'"),
        ("del config.method", "the config's method must be dict, got None"),
        ("config.method = {'method': 'eagle3', 'nodes': '16'}", "methods[0]: nodes must be int or None, got '16'"),
        ("config.train = 'a.py'", "the config's train must be dict or None, got 'a.py'"),
        ("config.train = {'config': 'a.py'}", "the config's train.fields must be dict, got None"),
        (
            "config.train = {'config': 'a.py', 'fields': {}, 'time_limit': '9'}",
            "the config's train.time_limit must be float, got '9'",
        ),
        (
            "config.train = {'config': 'configs/train/eagle3_smollm2.py', 'fields': {'epoch': 1}, 'time_limit': 9.0}",
            "point 'base' changes 'train.epoch', which configs/train/eagle3_smollm2.py does not have",
        ),
    ],
)
def test_parts_of_other_types(ending: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "ablation.py"
    base = "from configs.ablations import tree_sizes\ndef get_config():\n    config = tree_sizes.get_config()\n"
    path.write_text(f"{base}    {ending}\n    return config\ndef sweep(add):\n    add()\n")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sweep.read_points(str(path))


TRAIN = ROOT / "configs" / "train" / "eagle3_smollm2.py"


def with_training() -> str:
    """The end of `get_config` of a sweep that trains heads."""
    train = {"config": str(TRAIN), "time_limit": 600.0, "fields": {"epochs": 0.5}}
    method = {"method": "eagle3", "nodes": 4, "depth": 1, "top_k": 2}
    return f"    config.method = {method}\n    config.train = {train}\n    return config\n"


@pytest.fixture
def training(config: Path) -> Path:
    """A sweep that trains two heads."""
    changed = config.read_text().replace("    return config\n", with_training(), 1)
    changed = changed.replace("method.depth", "train.recipe.num_steps").replace("    add()\n", "")
    sampled = '    add(label="sampled, plain top-k", **{"method.share_noise": False, "method.temperatures": (1.0,)})\n'
    config.write_text(changed.replace(sampled, '    add(**{"train.recipe.num_steps": 2})\n'))
    return config


def test_training_before_measuring(
    training: Path,
    data: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first head needs two visits; whatever is trained is measured, and what was measured is left alone."""
    answers, output = tmp_path / "answers.jsonl", tmp_path / "sweep"
    answers.write_text("{}\n")
    model = load_target(str(tiny_model))
    commands: list[list[str]] = []

    def fake(command: list[str]) -> int:
        commands.append(command)
        if len(commands) in (2, 3):
            given = dict(flag.removeprefix("--").split("=", 1) for flag in command[3:])
            head, params = random_head("eagle3", model.config)
            save_head(given["export"], head, params, model.config, dtype="float32")
            lines = ({"step": step, "kind": "train", "tokens": 50 * step * len(commands)} for step in (1, 2))
            Path(given["run"]).mkdir()
            Path(given["run"], "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return 0

    monkeypatch.setattr(sweep, "run_process", fake)
    flags = [f"--answers={answers}", f"--features={tmp_path / 'features'}"]
    assert run(training, data, output, *flags) == 0
    captured = capsys.readouterr()
    assert "[1/2] num_steps=1" in captured.err
    assert "Not finished, the same command continues: num_steps=1." in captured.out
    before = read(output / "rows.jsonl")
    assert {row["label"] for row in before} == {"num_steps=2"}
    assert run(training, data, output, *flags) == 0
    assert run(training, data, output, *flags) == 0  # nothing is left to do
    assert len(commands) == 3
    folder = output / "heads" / "num_steps=1"
    assert commands[0] == commands[2]
    assert commands[0][1:] == [
        *("-m", "experiments.train", f"--config={TRAIN}"),
        *("--config.epochs=0.5", "--config.recipe.num_steps=1", f"--data={answers}", f"--run={folder / 'run'}"),
        *(f"--export={folder / 'head'}", "--time_limit=600.0", "--quiet=True", f"--features={tmp_path / 'features'}"),
    ]
    rows = read(output / "rows.jsonl")
    assert [row for row in rows if row["label"] == "num_steps=2"] == before
    assert {(row["label"], row["method"], row["temperature"]) for row in rows} == {
        (label, "eagle3", temperature) for label in ("num_steps=1", "num_steps=2") for temperature in (0.0, 1.0)
    }
    assert all(row["identical_prompts"] == 1 for row in rows)
    curve = {point["label"]: point for point in read(output / "tau_by_tokens.jsonl")}
    assert {label: point["tokens"] for label, point in curve.items()} == {"num_steps=1": 300, "num_steps=2": 200}
    for row in rows:
        assert curve[row["label"]]["tau"][f"{row['temperature']:g}"] == pytest.approx(row["tau"], abs=1e-3)
    answers.write_text("{}\n{}\n")
    assert "is another run: its answers is" in refused(capsys, training, data, output, *flags)


def test_training_that_fails(
    training: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other points are trained all the same."""
    answers = tmp_path / "answers.jsonl"
    answers.write_text("{}\n")
    commands: list[list[str]] = []
    monkeypatch.setattr(sweep, "run_process", lambda command: commands.append(command) or 2)
    line = refused(capsys, training, data, tmp_path / "sweep", f"--answers={answers}")
    assert line.startswith("error: 'num_steps=1': training failed with exit code 2: ")
    assert f" -m experiments.train --config={TRAIN} " in line
    assert "; 'num_steps=2': training failed" in line
    assert len(commands) == 2
    assert "Not finished" in (tmp_path / "sweep" / "summary.md").read_text()


def test_training_comes_before_the_accelerator_is_touched(training: Path, data: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text("{}\n")
    code = """
import sys
from jax._src import xla_bridge
from experiments import sweep
from experiments.cli import launch
sweep.run_process = lambda command: print(command[2], sorted(xla_bridge._backends)) or 1
sys.exit(launch.call(sweep.main, sweep.FLAGS, sys.argv[1:]))
"""
    flags = [f"--config={training}", f"--data={data}", f"--output={tmp_path / 'sweep'}", f"--answers={answers}"]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[:2] == ["experiments.train []"] * 2, done.stderr


def test_ctrl_c_stops_all_points(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "evaluate", interrupted)
    assert run(config, data, tmp_path / "sweep") == 130


def drafting(config: Path, **method: Any) -> None:
    """Write another method into the config, drop the point that changes its depth."""
    text = config.read_text().replace("    return config\n", f"    config.method = {method}\n    return config\n", 1)
    config.write_text(text.replace('    add(**{"method.depth": 1})\n', ""))


def add_one(tensors: dict[str, Any]) -> None:
    tensors.update({name: tensor + 1 for name, tensor in tensors.items()})


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "token_ranks.npy"])
def test_another_head_of_the_same_name(
    changed: str, config: Path, data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "head", tmp_path / "sweep"
    target = load_target(str(tiny_model)).config
    save_head(folder, *random_head("eagle", target), target, frozen_lm_head=True, token_ranks=range(257))
    drafting(config, method="eagle2", head=str(folder), nodes=4, depth=1, top_k=2)
    (folder / "README.md").write_text("Trained on nothing.")
    assert run(config, data, output) == 0
    (folder / "README.md").write_text("Random.")  # decides nothing
    assert run(config, data, output) == 0
    if changed == "model.safetensors":
        edit_tensors(folder, add_one)
    elif changed == "config.json":
        edit_config(folder, rms_norm_eps=1e-3)
    else:
        np.save(folder / changed, np.arange(257, dtype=np.int32)[::-1])
    assert f"is another run: its files.base.{changed} is " in refused(capsys, config, data, output)


@pytest.mark.parametrize("ships", [True, False])
def test_another_draft_model_of_the_same_name(
    ships: bool,
    config: Path,
    data: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one in shards, the second is changed."""
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path)
    model = load_target(str(tiny_model))
    folder = tmp_path / "tiny-distilled"
    save_draft(folder, *truncate_layers(model.config, model.params, 2), shard_bytes=10_000)
    shard = sorted(folder.glob("*.safetensors"))[1]
    given = {} if ships else {"draft": str(folder)}
    (entry,) = sweep.read_entries([{"label": "base", "method": "chain", **given}], "float32", (0.0,))
    before = entry.files("tiny")
    assert shard.name in before
    edit_tensors(folder, add_one, shard.name)
    after = entry.files("tiny")
    assert {name for name in before if before[name] != after[name]} == {shard.name}


def test_drafts_that_have_no_files(tmp_path: Path) -> None:
    """The target's own layers, a model of the hub; and a draft that is one file."""
    for draft in ("self:1", "owner/model"):
        (entry,) = sweep.read_entries([{"label": "base", "method": "chain", "draft": draft}], "float32", (0.0,))
        assert entry.files("tiny") == {}
    path = tmp_path / "draft.gguf"
    path.touch()
    assert draft_weights.draft_files(str(path), "tiny") == [path]


SAVES = """
import signal, sys, time
received = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: received.append(signal.Signals(number).name))
print("ready", flush=True, file=sys.stderr)
while not received:
    time.sleep(0.01)
time.sleep(0.3)
print("saved after", *received, flush=True, file=sys.stderr)
"""
PARENT = """
import sys
from experiments import sweep
try:
    sweep.run_process([sys.executable, "-c", sys.argv[1]])
except KeyboardInterrupt:
    print("interrupted", flush=True, file=sys.stderr)
"""


def test_exit_codes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert [sweep.run_process([sys.executable, "-c", f"exit({code})"]) for code in (0, 3)] == [0, 3]
    assert sweep.run_process([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == -signal.SIGKILL
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_is_passed_on_and_waited_for(number: signal.Signals, group: bool) -> None:
    """To the parent alone, or to its whole group, as a terminal sends it."""
    command = [sys.executable, "-c", PARENT, SAVES]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stderr is not None
        assert parent.stderr.readline() == "ready\n"
        (os.killpg if group else os.kill)(parent.pid, number)
        assert parent.stderr.read().splitlines() == [f"saved after {number.name}", "interrupted"]
    assert parent.returncode == 0
