"""The training script: conversations in, weights out that load; in pieces as at once."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from eagle_jax.checkpoint.distilled import ranking_of
from eagle_jax.checkpoint.pretrained import load_pretrained_head, load_target
from eagle_jax.checkpoint.validate_head import validate
from eagle_jax.models.taps import layers_of
from eagle_jax.training.run import Run
from eagle_jax.training.step import TrainState, initial_state
from experiments import train
from tests.experiments.training_runs import (
    DRAFT_SIZE,
    STEPS,
    Task,
    contents,
    conversation,
    metrics,
    refused,
    run,
    write_lines,
)

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def test_metrics(finished: Path) -> None:
    lines = metrics(finished)
    assert [(line["step"], line["kind"]) for line in lines] == [
        (1, "train"),
        (2, "train"),
        (2, "heldout"),
    ]
    assert all(np.isfinite(line["cross_entropy_1"]) and 0 < line["coverage"] <= 1 for line in lines)
    assert lines[1]["tokens"] > lines[0]["tokens"] > 0


def test_an_exported_head_loads(task: Task, finished: Path) -> None:
    model = load_target(str(task.target))
    config, params = load_pretrained_head(str(finished / "head"), model)
    assert config.kind == "eagle3"
    assert params.target_ids is not None
    assert len(params.target_ids) == DRAFT_SIZE
    wanted = {*model.tokenizer.encode("0123456789 "), *model.stop_ids}
    assert wanted <= set(params.target_ids.tolist())
    assert validate(finished / "head", target=model.config) == []


def test_a_head_on_one_layer(task: Task, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On half of the text, with other norms and EAGLE's feature loss, on features that another head has left."""
    features = finished / "features"
    before = contents(features)
    fields = ["head.taps=(-1,)", "recipe.feature_weight=10", "data.share=0.5", "steps=1"]
    fields += ["head.norm_before_residual=True", "head.norm_before_fc=True"]
    flags = [f"--features={features}", f"--export={tmp_path / 'head'}", *(f"--config.{field}" for field in fields)]
    assert run(task, tmp_path, *flags) == 0
    said = capsys.readouterr().out
    assert "data: 5 conversations" in said
    assert "finished: 1 steps" in said
    assert contents(features) == before
    assert all(line["feature_error"] > 0 for line in metrics(tmp_path))
    model = load_target(str(task.target))
    config, params = load_pretrained_head(str(tmp_path / "head"), model)
    assert layers_of(config, model.config) == (model.config.num_layers,)
    assert (config.norm_before_residual, config.norm_before_fc) == (True, True)  # exported as vLLM has them
    assert params.weights["fc"]["kernel"].shape == (model.config.width, model.config.width)


def test_on_a_mesh(task: Task, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows over two devices, the target over two: the numbers of one device; a mesh that cannot be is one line."""
    features = f"--features={tmp_path / 'features'}"
    line = refused(capsys, task, tmp_path, "--mesh=2x2", features)
    assert line == "error: a batch of 3 rows does not divide over the 2 devices of mesh axis data"
    assert run(task, tmp_path, "--mesh=2x2", features, "--config.features.batch=4") == 0
    assert_same_numbers(tmp_path, finished)
    line = refused(capsys, task, tmp_path, "--mesh=4x2")
    assert line == "error: a batch of 2 rows does not divide over the 4 devices of mesh axis data"


def assert_same_numbers(one: Path, other: Path) -> None:
    for found, wanted in zip(metrics(one), metrics(other), strict=True):
        assert found.pop("kind") == wanted.pop("kind")
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_a_split_head(
    task: Task, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step with it and, on another mesh, one with the head whole: the numbers of one device."""
    seen: list[Any] = []

    def watched(first: Any, *rest: Any) -> TrainState:
        seen.append({leaf.sharding.spec for leaf in jax.tree.leaves(first)})
        return initial_state(first, *rest)

    monkeypatch.setattr(train.step, "initial_state", watched)
    assert run(task, tmp_path, "--mesh=2x2", "--split_head", "--time_limit=0") == 0
    assert run(task, tmp_path, "--mesh=1x4") == 0
    assert_same_numbers(tmp_path, finished)
    assert PartitionSpec(None, "model") in seen[0]
    assert seen[1] == {PartitionSpec()}
    line = refused(capsys, task, tmp_path, "--split_head")
    assert line == "error: --split_head needs --mesh, the devices to split over"
    line = refused(capsys, task, tmp_path, "--split_head", "--mesh=1x2", kind="draft")
    assert line == "error: --split_head takes a config of a head, this one trains layers [0, -1]"


def test_in_pieces(task: Task, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--features={tmp_path / 'features'}", f"--export={tmp_path / 'head'}", "--time_limit=0"]
    said = []
    for _ in range(STEPS + 1):
        assert not (tmp_path / "head").exists()
        assert run(task, tmp_path, *flags) == 0
        said.append(capsys.readouterr().out.splitlines())
    goes_on = "the same command goes on"
    assert said[0] == [
        f"features take 0.0 GiB in {tmp_path / 'features'}",
        f"stopped while computing features; {goes_on}",
    ]
    for step in range(1, STEPS):
        assert said[step][-1] == f"stopped at step {step} of {STEPS} (time limit of 0 s); {goes_on}"
    assert said[STEPS][-2:] == [f"finished: {STEPS} steps", f"wrote the weights of step {STEPS} to {tmp_path / 'head'}"]
    assert metrics(tmp_path) == metrics(finished)
    here, there = (
        {path.name: path.read_bytes() for path in (folder / "head").iterdir()} for folder in (tmp_path, finished)
    )
    assert here == there


def test_any_budget_of_features_gives_the_same_weights(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit: all kept, none, and some in pieces, each with another budget; rows come by more than once."""
    flags = ["--config.epochs=2.5", "--config.loop.save_every=1", "--config.loop.heldout_every=1"]

    def head(name: str, *budgets: float, more: tuple[str, ...] = ()) -> dict[str, bytes]:
        folder = tmp_path / name
        for budget in budgets:
            given = [f"--features={folder / 'features'}", f"--features_budget={budget}", f"--export={folder / 'head'}"]
            assert run(task, folder, *flags, *given, *more) == 0
        return {path.name: path.read_bytes() for path in (folder / "head").iterdir()}

    wanted = head("all", 1)
    rows = len([*(tmp_path / "all" / "features").glob("*.bin")])
    said = capsys.readouterr().out
    assert f"features of {rows} of {rows} rows are stored in {tmp_path / 'all' / 'features'}, 0.0 GB; the" in said
    assert head("none", 0) == wanted
    assert not [*(tmp_path / "none" / "features").glob("*.bin")]
    size = next((tmp_path / "all" / "features").glob("*.bin")).stat().st_size / 1e9
    assert rows > 3
    assert head("some", 2.5 * size, 3.5 * size, 1.5 * size, 0, 1, 1, 1, more=("--time_limit=0",)) == wanted
    assert metrics(tmp_path / "some") == metrics(tmp_path / "none") == metrics(tmp_path / "all")


def test_the_finished_command_again(
    task: Task, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finds what it has written; what it has not it leaves alone, and looks before it works."""
    before = contents(finished / "head")
    assert run(task, finished, f"--features={finished / 'features'}", f"--export={finished / 'head'}") == 0
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said == [f"finished: {STEPS} steps", f"the weights of step {STEPS} are in {finished / 'head'} already"]
    assert contents(finished / "head") == before
    line = refused(capsys, task, tmp_path, f"--features={tmp_path / 'features'}", f"--export={finished / 'head'}")
    assert line == f"error: {finished / 'head'} is there already and not empty; nothing is overwritten"
    assert not contents(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_its_lm_head(task: Task, tmp_path: Path, dtype: str) -> None:
    """Its rows are trained, the target's stay as they are."""
    flags = [f"--export={tmp_path / 'head'}", "--config.recipe.train_lm_head=True", f"--config.dtype={dtype}"]
    assert run(task, tmp_path, *flags, "--config.steps=2", "--config.optimizer.learning_rate=1e-2") == 0
    assert all(np.isfinite(line["loss"]) for line in metrics(tmp_path) if line["kind"] == "train")
    model = load_target(str(task.target))
    _, params = load_pretrained_head(str(tmp_path / "head"), model)
    assert params.lm_head is not None
    assert params.lm_head.shape[0] == DRAFT_SIZE
    rows = model.params["lm_head"][params.target_ids]
    assert float(jnp.abs(params.lm_head - rows).max()) > 5e-3


def test_the_config_for_accelerators(task: Task, tmp_path: Path) -> None:
    """Here on a CPU; features along the way."""
    assert run(task, tmp_path, f"--export={tmp_path / 'head'}", "--config.steps=1", kind="gpu") == 0
    assert all(np.isfinite(line["loss"]) for line in metrics(tmp_path) if line["kind"] == "train")
    assert validate(tmp_path / "head", target=load_target(str(task.target)).config) == []


def test_an_eagle_head(task: Task, tmp_path: Path) -> None:
    """With the real tau, which picks the weights that are written, and features computed along the way."""
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": "Count from 30"}, {"prompt": "Count"}])
    flags = [f"--prompts_file={prompts}", f"--export={tmp_path / 'head'}", "--config.data.heldout=0"]
    assert run(task, tmp_path, *flags, kind="eagle") == 0
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2]
    (real,) = [line for line in lines if line["kind"] == "real"]
    assert real["step"] == 2
    assert min(real["tau"], real["tau_at_temperature_1"]) >= 1
    model = load_target(str(task.target))
    config, params = load_pretrained_head(str(tmp_path / "head"), model)
    assert config.kind == "eagle"
    with Run(tmp_path / "run", json.loads((tmp_path / "run" / "run.json").read_text())) as kept:
        best = kept.best({"weights": params.weights})
    assert best is not None
    assert best[0] == 2
    written = jnp.asarray(best[1]["weights"]["fc"]["kernel"], jnp.bfloat16)
    np.testing.assert_array_equal(params.weights["fc"]["kernel"], written.astype(jnp.float32))
    assert validate(tmp_path / "head", engines=["sglang"], target=model.config) == []


def test_a_one_pass_head(task: Task, finished: Path, tmp_path: Path) -> None:
    """From the features that an EAGLE-3 head has left, with the real tau; exported, it loads and goes on."""
    questions = write_lines(tmp_path / "questions.jsonl", [{"question_id": 1, "turns": ["Add"]}] * 2)
    given = [f"--features={finished / 'features'}", f"--prompts_file={questions}"]
    assert run(task, tmp_path, *given, f"--export={tmp_path / 'head'}", kind="one_pass") == 0
    lines = metrics(tmp_path)
    assert [line["kind"] for line in lines] == ["train", "train", "heldout", "real"]
    assert all(np.isfinite(line[f"cross_entropy_{slot}"]) for line in lines[:3] for slot in range(3))
    assert 1 <= lines[3]["tau"] <= 4
    model = load_target(str(task.target))
    config, params = load_pretrained_head(str(tmp_path / "head"), model)
    assert (config.kind, config.num_layers, config.block, config.edge_rank) == ("one_pass", 2, 3, 4)
    assert params.lm_head is not None
    assert len(params.lm_head) == DRAFT_SIZE
    assert float(jnp.abs(params.weights["edges"]["following"]).max()) > 0
    assert validate(tmp_path / "head", target=model.config) == []
    more = (f"--config.start.head={tmp_path / 'head'}", "--config.steps=1")
    assert run(task, tmp_path / "more", given[0], *more, kind="one_pass") == 0


def test_a_trained_head_goes_on(task: Task, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights are where the run starts; another kind of head is refused."""
    flags = [f"--config.start.head={finished / 'head'}", f"--export={tmp_path / 'head'}", "--config.steps=1"]
    assert run(task, tmp_path, *flags, "--config.optimizer.learning_rate=1e-12") == 0
    model = load_target(str(task.target))
    before, after = (load_pretrained_head(str(folder / "head"), model)[1].weights for folder in (finished, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    line = refused(capsys, task, tmp_path / "other", flags[0], kind="eagle")
    assert line.endswith("its kind is eagle3, here it would be eagle")


def test_a_draft_model(task: Task, tmp_path: Path) -> None:
    assert (
        run(
            task,
            tmp_path,
            f"--export={tmp_path / 'model'}",
            "--config.epochs=0.5",
            "--config.data.heldout=0",
            kind="draft",
        )
        == 0
    )
    model = load_target(str(task.target))
    student = load_target(str(tmp_path / "model"))
    assert student.config.num_layers == 2
    assert student.config.vocab_size == model.config.vocab_size
    assert student.tokenizer.encode("Count") == model.tokenizer.encode("Count")
    ranking = ranking_of(tmp_path / "model", model.config.vocab_size)
    assert ranking is not None
    assert (ranking.size, len(ranking.ranks)) == (40, model.config.vocab_size)


def test_going_on_from_a_draft_model(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first weights are those of its directory, as stored; another shape is refused."""
    small = ["--config.epochs=0.5", "--config.data.heldout=0"]
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(task, tmp_path / "a", f"--export={first}", *small, kind="draft") == 0
    start = f"--config.draft.start={first}"
    small.append("--config.optimizer.learning_rate=1e-12")
    assert run(task, tmp_path / "b", start, f"--export={second}", *small, kind="draft") == 0
    before, after = (load_target(str(folder), "bfloat16").params for folder in (first, second))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    line = refused(capsys, task, tmp_path / "c", start, "--config.draft.layers=(0,)", kind="draft")
    assert line == f"error: config.draft.start={first}: its num_layers is 2, here it would be 1"


def test_broken_lines_that_are_left_out_are_counted(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "data.jsonl", ["{", *(conversation(number) for number in range(4))])
    assert run(task, tmp_path, f"--data={data}", "--skip_broken", "--config.data.heldout=4") == 2
    assert f"left out 1 broken lines, the first: {data}, line 1: not JSON" in capsys.readouterr().out


def test_what_benchmarks_ask_is_not_trained_on(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [conversation(number) for number in range(4)]
    data = write_lines(tmp_path / "data.jsonl", records)
    asked = records[2]["messages"][0]["content"]
    questions = write_lines(tmp_path / "question.jsonl", [{"prompt": asked.upper()}])
    # The next mistake comes once the text is read.
    flags = [f"--data={data}", f"--benchmarks={questions}", "--config.data.heldout=3"]
    assert run(task, tmp_path, *flags) == 2
    output = capsys.readouterr()
    assert "left out 1 conversations that repeat a question of a benchmark" in output.out.splitlines()
    assert "cannot hold out 3 of 3 conversations" in output.err


@pytest.mark.parametrize("wanted", [True, False])
def test_loops_are_cut_and_counted(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: bool
) -> None:
    records = [conversation(number) for number in range(4)]
    records[1] |= {"answer_ids": [*(20 * b"1 2 ")], "finished": True}
    data = write_lines(tmp_path / "data.jsonl", records)
    # The next mistake comes once the text is read.
    flags = [f"--data={data}", f"--config.data.cut_loops={wanted}", "--config.data.heldout=4"]
    assert run(task, tmp_path, *flags) == 2
    said = "cut 1 answers where they begin to loop: 76 tokens less"
    assert (said in capsys.readouterr().out.splitlines()) == wanted
