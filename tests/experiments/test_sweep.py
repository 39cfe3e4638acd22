"""Sweeps: points, their order, going on, training before measuring. The target is tiny and random."""

import json
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagle_jax.checkpoint import pretrained
from eagle_jax.checkpoint.distilled import save_draft
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.pick_layers import truncate_layers
from eagle_jax.checkpoint.pretrained import load_target
from experiments import evaluate, playback, sweep
from experiments.cli import children, draft_weights, launch
from tests.checkpoint.heads import edit_config, edit_tensors, random_head

ROOT = Path(__file__).parents[2]

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
    add(label="sampled, seed 1", seeds=(1,), temperatures=(1.0,))
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


def test_points_one_after_the_other(
    config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sweep"
    assert run(config, data, output, "--points=depth=1") == 0
    first = capsys.readouterr()
    assert "[1/1] depth=1" in first.err
    assert "Not finished, the same command goes on: base; sampled, seed 1." in first.out
    measured = (output / "points" / "depth=1.jsonl").read_bytes()

    assert run(config, data, output) == 0
    assert (output / "points" / "depth=1.jsonl").read_bytes() == measured
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    cells = [(row["label"], row["temperature"], row["seed"], row["tree"]["nodes"]) for row in rows]
    assert cells == [
        *(("base", temperature, 0, 4) for temperature in (0.0, 1.0)),
        *(("depth=1", temperature, 0, 3) for temperature in (0.0, 1.0)),
        ("sampled, seed 1", 1.0, 1, 4),
    ]
    summary = (output / "summary.md").read_text()
    assert summary == capsys.readouterr().out
    assert "Not finished" not in summary
    assert summary.count("\n| base | 4, 2, 1 | ") == 2
    assert "| sampled, seed 1 | 4, 2, 1 | " in summary.split("T = 1: speed-up (tau)")[1]

    config.write_text(config.read_text().replace('"method.depth": 1', '"method.depth": 0'))
    assert run(config, data, output, "--points=depth=0") == 0  # a new point of the same sweep
    config.write_text(config.read_text().replace("max_new_tokens = 8", "max_new_tokens = 9"))
    line = refused(capsys, config, data, output)
    assert ": point 'base' is another run: its config.max_new_tokens is 8, not 9; nothing was written" in line


def test_answers_are_kept(config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written for the first point, read by the others in other processes; and they must be the target's."""
    output = tmp_path / "sweep"
    assert run(config, data, output, "--replay", "--processes") == 0
    kept = sorted((output / "answers").iterdir())
    assert len(kept) == 3  # T = 0 and T = 1, and the latter with another seed
    times = [path.stat().st_mtime_ns for path in kept]
    rows = (output / "points" / "base.jsonl").read_text()
    (output / "points" / "base.finished").unlink()
    assert run(config, data, output, "--replay") == 0
    assert (output / "points" / "base.jsonl").read_text() == rows
    assert [path.stat().st_mtime_ns for path in kept] == times

    answers = json.loads(kept[0].read_text())
    answers[0][2] += 1
    kept[0].write_text(json.dumps(answers))
    (output / "points" / "base.finished").unlink()
    playback._answers.cache_clear()
    assert "read once more, the target writes another answer from token 2 on" in refused(
        capsys, config, data, output, "--replay", "--points=base"
    )


def test_played_back(config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without times, but otherwise the rows of decoding; and the two kinds are not mixed in one directory."""
    assert run(config, data, tmp_path / "decoded") == 0
    assert run(config, data, tmp_path / "played", "--replay") == 0
    decoded, played = (
        [json.loads(line) for line in (tmp_path / name / "rows.jsonl").read_text().splitlines()]
        for name in ("decoded", "played")
    )
    assert len(played) == len(decoded) == 5
    for one, other in zip(played, decoded, strict=True):
        assert one["speedup"] is None
        same = one.keys() & other.keys() - {"speedup", "commit"}
        assert {name: one[name] for name in same} == {name: other[name] for name in same}
        assert {"label", "tokens", "turns", "rounds", "tau", "n_alpha", "accepted", "tree", "temperature"} <= same
    capsys.readouterr()
    assert "is another run: its replay is" in refused(capsys, config, data, tmp_path / "played")

    other = '"method.rule": "residual", "method.share_noise": False'
    config.write_text(config.read_text().replace('"method.depth": 1', other))
    assert run(config, data, tmp_path / "left_out", "--replay") == 0
    captured = capsys.readouterr()
    assert "left out: the rule 'residual' writes another text" in captured.err
    assert "Left out: rule=residual, share_noise=False (the rule 'residual' writes another text)." in captured.out
    assert "Not finished" not in captured.out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("method.depth", "method.dept", "methods[0] has the unknown field 'dept'"),
        ("method.depth", "methods.depth", "point 'depth=1' changes 'methods.depth', which the config does not have"),
        ("seeds=(1,)", "seed=1", "point 'sampled, seed 1' changes 'seed', which the config does not have"),
        ("seeds=(1,)", '**{"train.seed": 1}', "changes 'train.seed', which the config does not have"),
        ('"sampled, seed 1"', '"depth=1"', "has two points called 'depth=1'"),
        ("def sweep", "def swept", "has no function sweep: it is not a config of an ablation"),
        ("    add()\n", "    return\n", "sweep(add) adds no point"),
    ],
)
def test_configs_that_cannot_be_used(
    old: str, new: str, message: str, config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text().replace(old, new))
    assert message in refused(capsys, config, data, tmp_path / "sweep", "--points=depth=1")


def test_bad_flags(config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "sweep"
    wrong = refused(capsys, config, data, output, "--points=wide")
    assert wrong == "error: no point is called 'wide'; there are base, depth=1, sampled_seed_1"
    assert refused(capsys, tmp_path / "no.py", data, output) == f"error: --config={tmp_path / 'no.py'} names no file"
    assert launch.call(sweep.main, sweep.FLAGS, [f"--config={config}"]) == 2
    assert capsys.readouterr().err == "error: give --data: directory with questions, as for experiments.evaluate\n"
    training = config.with_name("training.py")
    training.write_text(config.read_text().replace("    return config\n", with_training(), 1))
    assert "trains heads: give --answers" in refused(capsys, training, data, output)
    assert not output.exists()
    away = "gs://bucket/sweep"
    assert refused(capsys, config, data, away) == f"error: {away} is an address, give a local or mounted path"


def test_a_process_for_each_point(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def fake(command: list[str], **_: Any) -> int:
        commands.append(command)
        return 3 * (len(commands) == 2)

    monkeypatch.setattr(children, "run", fake)
    assert run(config, data, tmp_path / "sweep", "--processes") == 2
    assert_points_of(commands, answers=None)
    captured = capsys.readouterr()
    assert "points failed: 'depth=1': its process ended with exit code 3" in captured.err
    assert "Not finished" in captured.out


def assert_points_of(commands: list[list[str]], answers: list[str] | None) -> None:
    """Each measures one point, in the order of the config, with flags that the script has."""
    assert [command[1:4] for command in commands] == [
        ["-m", "experiments.sweep", f"--points={name}"] for name in ("base", "depth=1", "sampled_seed_1")
    ]
    for command in commands:
        sweep.FLAGS.unparse_flags()
        assert sweep.FLAGS(["", *command[3:]]) == [""]
        assert (sweep.FLAGS.processes, sweep.FLAGS.quiet, sweep.FLAGS.answers) == (False, True, answers)


TRAIN = ROOT / "configs" / "train" / "eagle3_smollm2.py"


def with_training() -> str:
    """The end of `get_config` of a sweep that trains heads."""
    train = {"config": str(TRAIN), "time_limit": 600.0, "fields": {"epochs": 0.5}}
    method = {"method": "eagle3", "nodes": 4, "depth": 1, "top_k": 2}
    return f"    config.method = {method}\n    config.train = {train}\n    return config\n"


def test_training_before_measuring(
    config: Path,
    data: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = config.read_text().replace("    return config\n", with_training(), 1)
    changed = changed.replace("method.depth", "train.recipe.num_steps")
    config.write_text(changed.replace("    add()\n", "").replace("    add(label", "    return\n    add(label"))
    answers, output = tmp_path / "answers.jsonl", tmp_path / "sweep"
    answers.write_text("{}\n")
    model = load_target(str(tiny_model))
    commands: list[list[str]] = []

    def fake(command: list[str], **_: Any) -> int:
        """Training that finishes at the second visit."""
        commands.append(command)
        if len(commands) == 2:
            given = dict(flag.removeprefix("--").split("=", 1) for flag in command[3:])
            head, params = random_head("eagle3", model.config)
            save_head(given["export"], head, params, model.config, dtype="float32")
        return 0

    monkeypatch.setattr(children, "run", fake)
    flags = [f"--answers={answers}", f"--features={tmp_path / 'features'}"]
    assert run(config, data, output, *flags) == 0
    assert "Not finished, the same command goes on: num_steps=1." in capsys.readouterr().out
    assert run(config, data, output, *flags) == 0
    assert run(config, data, output, *flags) == 0  # nothing is left to do
    assert len(commands) == 2
    folder = output / "heads" / "num_steps=1"
    assert commands[0] == commands[1]
    assert commands[0][1:] == [
        *("-m", "experiments.train", f"--config={TRAIN}"),
        *("--config.epochs=0.5", "--config.recipe.num_steps=1", f"--data={answers}", f"--run={folder / 'run'}"),
        *(f"--export={folder / 'head'}", "--time_limit=600.0", "--quiet=True", f"--features={tmp_path / 'features'}"),
    ]
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    assert [(row["label"], row["method"], row["temperature"]) for row in rows] == [
        ("num_steps=1", "eagle3", 0.0),
        ("num_steps=1", "eagle3", 1.0),
    ]
    assert all(row["identical_prompts"] == 1 for row in rows)


def test_training_that_fails(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text().replace("    return config\n", with_training(), 1))
    answers = tmp_path / "answers.jsonl"
    answers.write_text("{}\n")
    monkeypatch.setattr(children, "run", lambda *_, **__: 2)
    line = refused(capsys, config, data, tmp_path / "sweep", f"--answers={answers}", "--points=base")
    assert line.startswith("error: training failed with exit code 2: ")
    assert f" -m experiments.train --config={TRAIN} " in line
    assert "Not finished" in (tmp_path / "sweep" / "summary.md").read_text()


def test_heads_are_trained_in_processes_that_hold_no_accelerator(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several points that train have a process each; and one that trains and then measures starts with training."""
    config.write_text(config.read_text().replace("    return config\n", with_training(), 1))
    answers = tmp_path / "answers.jsonl"
    answers.write_text("{}\n")
    commands: list[list[str]] = []
    monkeypatch.setattr(children, "run", lambda command, **_: commands.append(command) or 1)
    assert run(config, data, tmp_path / "sweep", f"--answers={answers}") == 2
    assert_points_of(commands, answers=[str(answers)])
    code = """
import sys
from jax._src import xla_bridge
from experiments import children, launch, sweep
children.run = lambda command, **_: print(command[2], sorted(xla_bridge._backends)) or 1
sys.exit(launch.call(sweep.main, sweep.FLAGS, sys.argv[1:]))
"""
    done = subprocess.run([sys.executable, "-c", code, *commands[0][3:]], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "experiments.train []", done.stderr


def test_a_point_that_fails_leaves_the_others_alone(
    config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text().replace('"method.depth": 1', '"method.nodes": 9'))
    line = refused(capsys, config, data, tmp_path / "sweep")
    assert line.startswith("error: points failed: 'nodes=9': the tree of this method is a chain: --depth=2 has 4 nodes")
    rows = (tmp_path / "sweep" / "rows.jsonl").read_text().splitlines()
    assert {json.loads(line)["label"] for line in rows} == {"base", "sampled, seed 1"}
    assert "Not finished, the same command goes on: nodes=9." in (tmp_path / "sweep" / "summary.md").read_text()


def test_bugs_leave_the_others_alone(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake, a library's ValueError and a TypeError beside a point that works; bugs go on as what they are."""

    def fake(config: Any, data: str, rows: str, **_: Any) -> None:
        label = config.methods[0]["label"]
        if label == "base":
            sweep.choose([], ["no such point"])
        if label == "depth=1":
            json.loads("{")
        evaluate.evaluate(config, data, rows, quiet=True)

    output = tmp_path / "sweep"
    monkeypatch.setattr(sweep, "evaluate", fake)
    with pytest.raises(RuntimeError, match=r"^points failed: 'base': no point is .*; 'depth=1': Expecting ") as caught:
        run(config, data, output)
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)
    assert "in fake" in "".join(traceback.format_exception(caught.value))
    assert "Not finished, the same command goes on: base; depth=1." in capsys.readouterr().out
    assert (output / "points" / "sampled_seed_1.finished").exists()
    with pytest.raises(json.JSONDecodeError):
        run(config, data, output, "--points=depth=1")

    monkeypatch.setattr(sweep, "evaluate", lambda: None)  # called with arguments: a TypeError
    with pytest.raises(RuntimeError, match=r"^points failed: 'base': .* 'depth=1': ") as other:
        run(config, data, output)
    assert isinstance(other.value.__cause__, TypeError)


def test_ctrl_c_stops_all_points(
    config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "measure", interrupted)
    assert run(config, data, tmp_path / "sweep") == 130
    assert "[2/3]" not in capsys.readouterr().err


def drafting(config: Path, **method: Any) -> None:
    """Write another method into the config, drop the point that changes its depth."""
    text = config.read_text().replace("    return config\n", f"    config.method = {method}\n    return config\n", 1)
    config.write_text(text.replace('    add(**{"method.depth": 1})\n', ""))


def add_one(tensors: dict[str, Any]) -> None:
    tensors.update({name: tensor + 1 for name, tensor in tensors.items()})


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "token_ranks.npy"])
def test_another_head_of_the_same_name(
    changed: str,
    config: Path,
    data: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, output = tmp_path / "head", tmp_path / "sweep"
    target = load_target(str(tiny_model)).config
    save_head(folder, *random_head("eagle", target), target, frozen_lm_head=True, token_ranks=range(257))
    drafting(config, method="eagle2", head=str(folder), nodes=4, depth=1, top_k=2)
    monkeypatch.setattr(sweep, "measure", lambda *_: None)
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
    line = refused(capsys, config, data, output)
    assert f"point 'base' is another run: its head.{changed} is " in line


@pytest.mark.parametrize("method", ["chain", "ouroboros"])
@pytest.mark.parametrize("ships", [True, False])
def test_another_draft_model_of_the_same_name(
    method: str,
    ships: bool,
    config: Path,
    data: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of one that lies in shards, the second is changed."""
    output = tmp_path / "sweep"
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path)
    model = load_target(str(tiny_model))
    folder = tmp_path / "tiny-distilled"
    save_draft(folder, *truncate_layers(model.config, model.params, 2), shard_bytes=10_000)
    shard = sorted(folder.glob("*.safetensors"))[1]
    config.write_text(config.read_text().replace(str(tiny_model), "tiny"))
    drafting(config, method=method, **({} if ships else {"draft": str(folder)}))
    monkeypatch.setattr(sweep, "measure", lambda *_: None)
    assert run(config, data, output) == run(config, data, output) == 0
    edit_tensors(folder, add_one, shard.name)
    line = refused(capsys, config, data, output)
    assert f"point 'base' is another run: its draft.{shard.name} is " in line


def test_drafts_that_have_no_files(config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's own layers, a model of the hub."""
    drafting(config, method="chain", draft="self:1")
    monkeypatch.setattr(sweep, "measure", lambda *_: None)
    assert run(config, data, tmp_path / "sweep") == 0
    config.write_text(config.read_text().replace("self:1", "owner/model"))
    assert run(config, data, tmp_path / "hub") == 0
    for name in ("sweep", "hub"):
        (points,) = (tmp_path / name / "sweep.json").read_text().splitlines()
        assert all("draft" not in point for point in json.loads(points).values())


def test_a_draft_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "draft.gguf"
    path.touch()
    assert draft_weights.draft_files(str(path), "tiny") == [path]
