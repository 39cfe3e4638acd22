"""The training script: conversations in, weights out that load; in pieces as at once; mistakes are one line."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from eagle_jax.checkpoint.pretrained import load_pretrained_head, load_target
from eagle_jax.checkpoint.validate_head import validate
from eagle_jax.models.taps import layers_of
from eagle_jax.training.run import Run
from eagle_jax.training.step import TrainState, initial_state
from experiments import train
from experiments.cli import launch

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

DRAFT_SIZE = 40
STEPS = 2
CONFIG = f"""
from configs.train import BASE as base

def get_config():
    config = base.get_config()
    config.target = TARGET
    config.epochs = 0.8
    config.optimizer.name = "adamw"  # compiles sooner
    config.data.update(length=64, slots=48, batch=2, heldout=2)
    config.features.update(dtype="float32", length=64, batch=3)
    config.loop.update(log_every=1, save_every=2, heldout_every=2, evaluate_every=2)
    config.evaluation.update(num_prompts=2, max_new_tokens=6, nodes=4, depth=1, top_k=2)
    if "head" in config:
        config.head.draft_vocab_size = {DRAFT_SIZE}
    if "block" in config.get("head", {{}}):
        config.head.update(num_layers=2, block=3, edge_rank=4)
        config.recipe.num_anchors = 5
    if "num_steps" in config.get("recipe", {{}}):
        config.recipe.num_steps = 2
    if "draft" in config:
        config.draft.layers, config.draft.vocab_size = (0, -1), 40
    return config
"""
BASES = {"eagle3": "eagle3_smollm2", "gpu": "eagle3_gpu", "eagle": "eagle_smollm2", "draft": "distill_draft"}
BASES |= {"one_pass": "one_pass_smollm2"}


def conversation(number: int) -> dict[str, Any]:
    answer = " ".join(str(number + step) for step in range(6))
    return {"messages": [{"role": "user", "content": f"Count from {number}"}, {"role": "assistant", "content": answer}]}


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


class Task(NamedTuple):
    """What is trained on what."""

    target: Path
    data: Path
    configs: Path  # a folder, one file a kind


@pytest.fixture(scope="module")
def task(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("train")
    for kind, base in BASES.items():
        (folder / f"{kind}.py").write_text(CONFIG.replace("BASE", base).replace("TARGET", repr(str(tiny_model))))
    records = [conversation(number) for number in range(12)]
    records[0] |= {"answer_ids": [*b"0 1 2 3"], "finished": False}
    return Task(tiny_model, write_lines(folder / "data.jsonl", records), folder)


def run(task: Task, folder: Path, *more: str, kind: str = "eagle3") -> int:
    """Train in `folder`; later flags go first."""
    flags = [f"--config={task.configs / kind}.py", f"--data={task.data}", f"--run={folder / 'run'}", "--quiet", *more]
    return launch.call(train.main, train.FLAGS, flags)


def refused(capsys: pytest.CaptureFixture[str], task: Task, folder: Path, *more: str, kind: str = "eagle3") -> str:
    """The one line of a run that must fail."""
    assert run(task, folder, *more, kind=kind) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, without what the clock decides."""
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an EAGLE-3 run with features on disk that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(task, folder, f"--features={folder / 'features'}", f"--export={folder / 'head'}") == 0
    return folder


def test_metrics(whole: Path) -> None:
    lines = metrics(whole)
    assert [(line["step"], line["kind"]) for line in lines] == [
        (1, "train"),
        (2, "train"),
        (2, "heldout"),
    ]
    assert all(np.isfinite(line["cross_entropy_1"]) and 0 < line["coverage"] <= 1 for line in lines)
    assert lines[1]["tokens"] > lines[0]["tokens"] > 0


def test_an_exported_head_loads(task: Task, whole: Path) -> None:
    model = load_target(str(task.target))
    config, params = load_pretrained_head(str(whole / "head"), model)
    assert config.kind == "eagle3"
    assert params.target_ids is not None
    assert len(params.target_ids) == DRAFT_SIZE
    wanted = {*model.tokenizer.encode("0123456789 "), *model.stop_ids}
    assert wanted <= set(params.target_ids.tolist())
    assert validate(whole / "head", target=model.config) == []


def test_a_head_on_one_layer(task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On half of the text, with other norms and EAGLE's feature loss, on features that another head has left."""
    features = whole / "features"
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


def test_on_a_mesh(task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows over two devices, the target over two: the numbers of one device; a mesh that cannot be is one line."""
    features = f"--features={tmp_path / 'features'}"
    line = refused(capsys, task, tmp_path, "--mesh=2x2", features)
    assert line == "error: a batch of 3 rows does not divide over the 2 devices of mesh axis data"
    assert run(task, tmp_path, "--mesh=2x2", features, "--config.features.batch=4") == 0
    assert_same_numbers(tmp_path, whole)
    line = refused(capsys, task, tmp_path, "--mesh=4x2")
    assert line == "error: a batch of 2 rows does not divide over the 4 devices of mesh axis data"


def assert_same_numbers(one: Path, other: Path) -> None:
    for found, wanted in zip(metrics(one), metrics(other), strict=True):
        assert found.pop("kind") == wanted.pop("kind")
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_a_split_head(
    task: Task, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step with it and, on another mesh, one with the head whole: the numbers of one device."""
    seen: list[Any] = []

    def watched(first: Any, *rest: Any) -> TrainState:
        seen.append({leaf.sharding.spec for leaf in jax.tree.leaves(first)})
        return initial_state(first, *rest)

    monkeypatch.setattr(train.step, "initial_state", watched)
    assert run(task, tmp_path, "--mesh=2x2", "--split_head", "--time_limit=0") == 0
    assert run(task, tmp_path, "--mesh=1x4") == 0
    assert_same_numbers(tmp_path, whole)
    assert PartitionSpec(None, "model") in seen[0]
    assert seen[1] == {PartitionSpec()}
    line = refused(capsys, task, tmp_path, "--split_head")
    assert line == "error: --split_head needs --mesh, the devices to split over"
    line = refused(capsys, task, tmp_path, "--split_head", "--mesh=1x2", kind="draft")
    assert line == "error: --split_head takes a config of a head, this one trains layers [0, -1]"


def test_in_pieces(task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert metrics(tmp_path) == metrics(whole)
    here, there = (
        {path.name: path.read_bytes() for path in (folder / "head").iterdir()} for folder in (tmp_path, whole)
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


def test_features_of_another_kind(task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of conversations and by row: each is one line for the other, and nothing is written."""
    before = contents(whole)
    features = f"--features={whole / 'features'}"
    line = refused(capsys, task, tmp_path, features, "--features_budget=1")
    kind = "holds features of conversations: leave --features_budget out, or give another directory"
    assert line == f"error: {whole / 'features'} {kind}"
    assert "its features is 'float32', not 'float32, by row'" in refused(
        capsys, task, whole, f"--features={tmp_path / 'new'}", "--features_budget=1"
    )
    assert contents(whole) == before
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


def test_the_finished_command_again(
    task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finds what it has written; what it has not it leaves alone, and looks before it works."""
    before = contents(whole / "head")
    assert run(task, whole, f"--features={whole / 'features'}", f"--export={whole / 'head'}") == 0
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said == [f"finished: {STEPS} steps", f"the weights of step {STEPS} are in {whole / 'head'} already"]
    assert contents(whole / "head") == before
    line = refused(capsys, task, tmp_path, f"--features={tmp_path / 'features'}", f"--export={whole / 'head'}")
    assert line == f"error: {whole / 'head'} is there already and not empty; nothing is overwritten"
    assert not contents(tmp_path)


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


def test_a_one_pass_head(task: Task, whole: Path, tmp_path: Path) -> None:
    """From the features that an EAGLE-3 head has left, with the real tau; exported, it loads and goes on."""
    questions = write_lines(tmp_path / "questions.jsonl", [{"question_id": 1, "turns": ["Add"]}] * 2)
    given = [f"--features={whole / 'features'}", f"--prompts_file={questions}"]
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


def test_a_trained_head_goes_on(task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights are where the run starts; another kind of head is refused."""
    flags = [f"--config.start.head={whole / 'head'}", f"--export={tmp_path / 'head'}", "--config.steps=1"]
    assert run(task, tmp_path, *flags, "--config.optimizer.learning_rate=1e-12") == 0
    model = load_target(str(task.target))
    before, after = (load_pretrained_head(str(folder / "head"), model)[1].weights for folder in (whole, tmp_path))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    line = refused(capsys, task, tmp_path / "other", flags[0], kind="eagle")
    assert line.endswith("its kind is eagle3, here it would be eagle")


def test_questions_that_are_trained_on_are_refused(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best weights would be those that remember them; prompts as `regenerate` takes them count too."""
    asked = [{"role": "user", "content": f"Count from {number}"} for number in (3, 40)]
    prompts = write_lines(tmp_path / "asked.jsonl", [{"id": "a", "messages": [message]} for message in asked])
    line = refused(capsys, task, tmp_path, f"--prompts_file={prompts}", "--config.data.heldout=0")
    assert f"1 of 2 questions of {prompts} are prompts of --data, the first: 'Count from 3'; " in line


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


def test_another_request_for_the_same_run(task: Task, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(whole)
    flags = [f"--features={whole / 'features'}"]
    line = refused(capsys, task, whole, *flags, "--config.optimizer.learning_rate=1e-5")
    assert line.endswith("is another run: its config.optimizer.learning_rate is 0.002, not 1e-05; nothing was written")
    other = write_lines(task.configs / "other.jsonl", [conversation(number) for number in range(30, 42)])
    elsewhere = f"--features={whole.with_name('elsewhere')}"
    assert "is another run: its text_and_target is " in refused(capsys, task, whole, f"--data={other}", elsewhere)
    line = refused(capsys, task, whole, *flags, f"--data={other}")
    assert f"{whole / 'features'} is another set of features: its identity is " in line
    assert "is another run: its features is 'float32', not None" in refused(capsys, task, whole)
    prompts = write_lines(task.configs / "prompts.jsonl", 2 * [{"prompt": "Count from 30"}])
    line = refused(capsys, task, whole, *flags, f"--prompts_file={prompts}")
    assert "is another run: its evaluation_prompts is None, not " in line
    assert contents(whole) == before


def test_a_run_of_another_split(task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As runs were begun before text was split by prompt."""
    shutil.copytree(whole / "run", tmp_path / "run")
    about = tmp_path / "run" / "run.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "split": None}))
    line = refused(capsys, task, tmp_path, f"--features={whole / 'features'}")
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


def test_broken_lines_that_are_left_out_are_counted(
    task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_lines(tmp_path / "data.jsonl", ["{", *(conversation(number) for number in range(4))])
    assert run(task, tmp_path, f"--data={data}", "--skip_broken", "--config.data.heldout=4") == 2
    assert f"left out 1 broken lines, the first: {data}, line 1: not JSON" in capsys.readouterr().out


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
