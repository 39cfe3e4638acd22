"""What experiments.train refuses, in one line, and what it leaves as it was."""

import json
import shutil
from pathlib import Path

import pytest

from experiments import train
from experiments.cli import launch
from tests.experiments.training_runs import (
    Task,
    contents,
    conversation,
    refused,
    write_lines,
)

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_features_of_another_kind(
    task: Task, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of conversations and by row: each is one line for the other, and nothing is written."""
    before = contents(finished)
    features = f"--features={finished / 'features'}"
    line = refused(capsys, task, tmp_path, features, "--features_budget=1")
    kind = "holds features of conversations: leave --features_budget out, or give another directory"
    assert line == f"error: {finished / 'features'} {kind}"
    assert "its features is 'float32', not 'float32, by row'" in refused(
        capsys, task, finished, f"--features={tmp_path / 'new'}", "--features_budget=1"
    )
    assert contents(finished) == before
    assert not contents(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--features_budget=1"], "--features_budget needs --features, the directory that it limits"),
        (["--features_budget=-1", "--features=x"], "--features_budget must be at least 0, got -1"),
        (
            ["--features_budget=1", "--features=x", "--mesh=2x2"],
            "--features_budget computes rows on one device: leave --mesh and --distributed out",
        ),
    ],
)
def test_budgets_that_cannot_be(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert refused(capsys, task, tmp_path, *flags) == f"error: {message}"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.evaluation.max_new_tokens=160", "the model's context is 160"),
        ("--config.evaluation.max_new_tokens=0", "max_new_tokens must be between 1 and 2147483647, got 0"),
        ("--config.features.length=8", "tokens, features.length is 8"),
        ("--config.loop.log_every=0", "log_every and save_every must be at least 1, got 2, 0 and 2"),
        ("--mesh=4x1", "a batch of 2 rows does not divide over the 4 devices of mesh axis data"),
    ],
)
def test_what_is_cheap_is_checked_before_features_are_computed(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, message: str
) -> None:
    prompts = write_lines(task.configs / "asked.jsonl", [{"prompt": "Count from 30"}, {"prompt": "Count"}])
    places = [f"--features={tmp_path / 'features'}", f"--prompts_file={prompts}"]
    batches = ["--config.data.batch=4", "--config.features.batch=4"] if "--mesh" in flag else []
    assert message in refused(capsys, task, tmp_path, *places, *batches, flag)
    assert not list(tmp_path.iterdir())


def test_questions_that_are_trained_on_are_refused(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best weights would be those that remember them; prompts as `regenerate` takes them count too."""
    asked = [{"role": "user", "content": f"Count from {number}"} for number in (3, 40)]
    prompts = write_lines(tmp_path / "asked.jsonl", [{"id": "a", "messages": [message]} for message in asked])
    line = refused(capsys, task, tmp_path, f"--prompts_file={prompts}", "--config.data.heldout=0")
    assert f"1 of 2 questions of {prompts} are prompts of --data, the first: 'Count from 3'; " in line


def test_another_request_for_the_same_run(task: Task, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    flags = [f"--features={finished / 'features'}"]
    line = refused(capsys, task, finished, *flags, "--config.optimizer.learning_rate=1e-5")
    assert line.endswith("is another run: its config.optimizer.learning_rate is 0.002, not 1e-05; nothing was written")
    other = write_lines(task.configs / "other.jsonl", [conversation(number) for number in range(30, 42)])
    elsewhere = f"--features={finished.with_name('elsewhere')}"
    assert "is another run: its text_and_target is " in refused(capsys, task, finished, f"--data={other}", elsewhere)
    line = refused(capsys, task, finished, *flags, f"--data={other}")
    assert f"{finished / 'features'} is another set of features: its identity is " in line
    assert "is another run: its features is 'float32', not None" in refused(capsys, task, finished)
    prompts = write_lines(task.configs / "prompts.jsonl", 2 * [{"prompt": "Count from 30"}])
    line = refused(capsys, task, finished, *flags, f"--prompts_file={prompts}")
    assert "is another run: its evaluation_prompts is None, not " in line
    assert contents(finished) == before


def test_a_run_of_another_split(task: Task, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As runs were begun before text was split by prompt."""
    shutil.copytree(finished / "run", tmp_path / "run")
    about = tmp_path / "run" / "run.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "split": None}))
    line = refused(capsys, task, tmp_path, f"--features={finished / 'features'}")
    assert line.endswith("is another run: its split is None, not 'by prompt'; nothing was written")


def test_a_directory_of_something_else(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    line = refused(capsys, task, tmp_path)
    assert line == f"error: {tmp_path / 'run'} is not empty and not a training run: nothing was written"
    assert list(contents(tmp_path).values()) == [b"mine"]


def test_broken_lines(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [conversation(number) for number in range(4)]
    data = write_lines(tmp_path / "data.jsonl", [good[0], "{", *good[1:], {"messages": []}])
    line = refused(capsys, task, tmp_path, f"--data={data}")
    assert line.startswith(f"error: 2 broken lines, the first is {data}, line 2: not JSON: Expecting property name")
    assert line.endswith("; skip_broken leaves them out")
    assert not (tmp_path / "run").exists()
    # The next mistake shows that reading went well.
    line = refused(capsys, task, tmp_path, f"--data={data}", "--skip_broken", "--config.data.heldout=4")
    assert line == "error: cannot hold out 4 of 4 conversations"


@pytest.mark.parametrize("flag", ["run", "features", "export"])
def test_addresses_are_refused_before_anything_is_loaded(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    line = refused(capsys, task, tmp_path, "--config.target=no/such", f"--{flag}=gs://bucket/it")
    assert line == "error: gs://bucket/it is an address, give a local or mounted path"


def test_no_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.call(train.main, train.FLAGS, []) == 2
    assert capsys.readouterr().err.startswith("error: give --config: ")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data=", "give --data"),
        ("--run=", "give --run"),
        ("--config.dtype=float16", "training in float16 needs a scaled loss, which is not done here: give bfloat16 or"),
        ("--config=no/such.py", "no/such.py"),
        ("--data=no/such.jsonl", "no/such.jsonl: No such file or directory"),
        ("--config.target=no/such/model", "target 'no/such/model' is neither"),
        ("--config.epochs=x", "flag --config.epochs=x: "),
        ("--config.data.heldout=12", "cannot hold out 12 of 12 conversations"),
        ("--config.data.share=0", "data.share must be above 0 and at most 1, got 0.0"),
        ("--config.head.taps=(3,)", "inputs of layers [3], the target gives [1, 1, 0] and 2, its last"),
        ("--config.data.length=8", "none of 12 documents has a supervised token within the first 8"),
        ("--config.head.draft_vocab_size=300", "must have at most 257 tokens, got 300"),
        ("--config.optimizer.name=sgd", "optimizer must be adamw or muon, got 'sgd'"),
        ("--config.recipe.num_steps=0", "num_steps must be at least 1, got 0"),
        ("--config.epochs=0.1", "steps must be at least 1, got 0"),
    ],
)
def test_bad_flags(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, message: str) -> None:
    assert message in refused(capsys, task, tmp_path, flag)
    assert not contents(tmp_path)
