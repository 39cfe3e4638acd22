"""The loop: it learns, and however it is interrupted, the numbers are those of an uninterrupted run."""

import dataclasses
import gc
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.training import step as steps
from eagle_jax.training.data import make_iterator, pack
from eagle_jax.training.loop import LoopConfig, Outcome, train
from eagle_jax.training.recipes.feature_recipe import FeatureConfig, make_feature_recipe
from eagle_jax.training.recipes.unroll_recipe import UnrollConfig, make_unroll_recipe
from eagle_jax.training.run import Run, check_run
from tests.training import small

EXAMPLES = [small.document(seed, 12 + seed % 5, 4) for seed in range(12)]
STEPS = 12


class Setup:
    """A kind of head, its compiled step, and what a run of it starts from."""

    def __init__(self, kind: str, *, accumulate: int = 1, train_lm_head: bool = False) -> None:
        _, target, target_params = small.model()
        self.kind = kind
        head, self.params, vocabulary = small.head(kind, draft_size=40)  # type: ignore[arg-type]
        if kind == "eagle3":
            self.recipe = make_unroll_recipe(head, UnrollConfig(num_steps=2, chunk=16, train_lm_head=train_lm_head))
        else:
            self.recipe = make_feature_recipe(head, FeatureConfig(chunk=16))
        self.optimizer, self.schedule = steps.make_optimizer(steps.OptimizerConfig(steps=STEPS, learning_rate=3e-3))
        self.step = steps.make_train_step(self.recipe, target, self.optimizer, accumulate=accumulate, seed=5)
        self.measure = steps.make_measure(self.recipe, target)
        self.frozen = steps.Frozen(target_params, vocabulary)
        self.train_lm_head = train_lm_head

    def trained(self) -> dict[str, Any]:
        """Fresh copies, since a step donates its state."""
        parts = {"weights": self.params.weights}
        if self.train_lm_head:
            parts["lm_head"] = self.params.lm_head
        return jax.tree.map(jnp.array, parts)

    def run(self, folder: Path, **options: Any) -> Outcome:
        """Train in `folder`, from wherever it stands."""
        data = make_iterator(pack(EXAMPLES, 32), 2, seed=7)
        config = LoopConfig(**{"steps": STEPS, "log_every": 2, "save_every": 3, **options.pop("config", {})})
        state = steps.initial_state(self.trained(), self.optimizer, self.recipe.num_steps)
        with Run(folder, {"kind": self.kind}) as run:
            return train(
                run, state, data, self.step, self.frozen, config, learning_rate=self.schedule, quiet=True, **options
            )


@pytest.fixture(scope="module", params=small.KINDS)
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup(request.param)


@pytest.fixture(scope="module")
def uninterrupted(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("whole")
    return setup.run(folder), metrics(folder)


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> tuple[Setup, Outcome]:
    """The quicker kind of head, and how its run ends."""
    setup = Setup("eagle")
    return setup, setup.run(tmp_path_factory.mktemp("short"))


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run, without what the clock decides."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def assert_same(one: Outcome, two: Outcome) -> None:
    """Bit for bit."""
    for x, y in zip(jax.tree.leaves(one.state), jax.tree.leaves(two.state), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


class Killed(BaseException):
    """Stands for a kill: nothing after it runs."""


def at_step(wanted: int, action: Callable[[], None]) -> dict[str, Any]:
    """Loop options that do something once, right after a step."""
    count = [0]

    def evaluate(params: object) -> dict[str, float]:
        count[0] += 1
        if count[0] == wanted:
            action()
        return {}

    return {"evaluate": evaluate, "config": {"evaluate_every": 1}}


def kill() -> None:
    raise Killed


def test_it_learns(uninterrupted: tuple[Outcome, list[dict[str, Any]]]) -> None:
    outcome, lines = uninterrupted
    assert outcome.finished
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == STEPS // 2
    assert losses[-1] < 0.9 * losses[0]
    assert lines[-1]["tokens"] == int(outcome.state.tokens) > 0


@pytest.mark.parametrize("when", [5, 6, 7])
def test_resume_after_a_kill(
    setup: Setup, uninterrupted: tuple[Outcome, list[dict[str, Any]]], tmp_path: Path, when: int
) -> None:
    with pytest.raises(Killed):
        setup.run(tmp_path, **at_step(when, kill))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "kind"')  # cut short by the crash
    outcome = setup.run(tmp_path)
    assert outcome.finished
    assert_same(outcome, uninterrupted[0])
    assert [line for line in metrics(tmp_path) if line["kind"] == "train"] == uninterrupted[1]


def test_more_tokens_than_the_state_counts(
    setup: Setup,
    uninterrupted: tuple[Outcome, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Past 2**32 between two lines, and before the checkpoint that the run goes on from."""
    counted = [line["tokens"] for line in uninterrupted[1]]
    first = 2**32 - counted[1] - 1
    make = steps.initial_state
    monkeypatch.setattr(
        steps, "initial_state", lambda *given: dataclasses.replace(make(*given), tokens=jnp.uint32(first))
    )
    with pytest.raises(Killed):
        setup.run(tmp_path, **at_step(7, kill))
    assert int(setup.run(tmp_path).state.tokens) < counted[-1]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["kind"] == "train"]
    assert [line["tokens"] - first for line in lines] == counted
    assert all(line["tokens_per_second"] > 0 for line in lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_resume_after_a_signal(
    setup: Setup,
    uninterrupted: tuple[Outcome, list[dict[str, Any]]],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    stopped = setup.run(tmp_path, **at_step(5, lambda: os.kill(os.getpid(), number)))
    assert (stopped.finished, stopped.reason, int(stopped.state.step)) == (False, number.name, 5)
    assert signal.getsignal(number) is before
    assert_same(setup.run(tmp_path), uninterrupted[0])


def test_in_pieces(setup: Setup, uninterrupted: tuple[Outcome, list[dict[str, Any]]], tmp_path: Path) -> None:
    pieces = 0
    while not (outcome := setup.run(tmp_path, time_limit=0.0)).finished:
        pieces += 1
        assert int(outcome.state.step) == pieces
        assert outcome.reason == "time limit of 0 s"
    assert pieces == STEPS - 1
    assert_same(outcome, uninterrupted[0])


def test_the_clock_may_have_begun_before(tmp_path: Path) -> None:
    """The message has the limit that was asked for."""
    stopped = Setup("eagle").run(tmp_path, time_limit=100.0, started=time.monotonic() - 101)
    assert (int(stopped.state.step), stopped.reason) == (1, "time limit of 100 s")


def test_accumulating_changes_nothing(tmp_path: Path) -> None:
    once, twice = Setup("eagle3", train_lm_head=True), Setup("eagle3", accumulate=2, train_lm_head=True)
    one, two = once.run(tmp_path / "once"), twice.run(tmp_path / "twice")
    assert set(one.state.trained) == {"weights", "lm_head"}
    for x, y in zip(jax.tree.leaves(one.state.trained), jax.tree.leaves(two.state.trained), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4, rtol=1e-3)


def test_heldout_and_best(tmp_path: Path) -> None:
    setup = Setup("eagle3")
    data = make_iterator(pack(EXAMPLES, 32), 2, seed=7)
    heldout = [next(data)]
    taus = iter([1.5, 2.0, 1.75])
    options = {"config": {"evaluate_every": 4, "heldout_every": 6}, "heldout": heldout, "measure": setup.measure}
    setup.run(tmp_path, evaluate=lambda params: {"tau": next(taus)}, **options)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "heldout"] == [6, 12]
    assert [(line["step"], line["tau"]) for line in lines if line["kind"] == "real"] == [(4, 1.5), (8, 2.0), (12, 1.75)]
    with Run(tmp_path, {"kind": "eagle3"}) as run:
        found = run.best(setup.trained())
    assert found is not None
    assert found[0] == 8


def largest(checkpoint: Path) -> Path:
    """The file with most of the weights."""
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.fixture
def dropped_reads() -> Iterator[None]:
    """Where one array cannot be read orbax drops the other reads, which complain when they are collected: here."""
    yield
    gc.collect()


def reads_fail(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test in which checkpoints cannot be read."""
    ignored = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    return pytest.mark.usefixtures("dropped_reads")(ignored(test))


def cut(checkpoint: Path) -> None:
    path = largest(checkpoint)
    os.truncate(path, path.stat().st_size // 2)


def empty_place(checkpoint: Path) -> None:
    """Of the data."""
    (path,) = (checkpoint / "data").glob("*.json")
    path.write_bytes(b"")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "no weights": lambda checkpoint: largest(checkpoint).unlink(),
    "no state": lambda checkpoint: shutil.rmtree(checkpoint / "state"),
    "no data": lambda checkpoint: shutil.rmtree(checkpoint / "data"),
    "empty place": empty_place,
    "nothing": lambda checkpoint: [shutil.rmtree(checkpoint), checkpoint.mkdir()],
}


@reads_fail
@pytest.mark.parametrize("damage", DAMAGE)
def test_the_newest_checkpoint_is_damaged(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, short: tuple[Setup, Outcome]
) -> None:
    """The run goes on from the one before it, says so, and ends as it would have."""
    setup, uninterrupted = short
    with pytest.raises(Killed):
        setup.run(tmp_path, **at_step(7, kill))
    DAMAGE[damage](tmp_path / "checkpoints" / "6")
    outcome = setup.run(tmp_path)
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("eagle_jax")]
    assert message.startswith(f"checkpoint 6 of {tmp_path} cannot be read, going on from 3: ")
    assert len(message) < 400
    assert "\n" not in message
    assert_same(outcome, uninterrupted)
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["6"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["12", "9"]


@reads_fail
def test_all_checkpoints_are_damaged(tmp_path: Path, short: tuple[Setup, Outcome]) -> None:
    """One line, and nothing is moved or begun anew."""
    setup, _ = short
    with pytest.raises(Killed):
        setup.run(tmp_path, **at_step(7, kill))
    for step in ("3", "6"):
        cut(tmp_path / "checkpoints" / step)
    with pytest.raises(ValueError, match=r"checkpoints/6 cannot be read .*, nor any other that") as caught:
        setup.run(tmp_path)
    assert len(str(caught.value)) < 600
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "6"]


@reads_fail
def test_the_best_weights_are_damaged(tmp_path: Path) -> None:
    setup = Setup("eagle")
    setup.run(tmp_path, evaluate=lambda params: {"tau": 1.5}, config={"evaluate_every": 12})
    cut(tmp_path / "best" / "12")
    with (
        Run(tmp_path, {"kind": "eagle"}) as run,
        pytest.raises(ValueError, match="best/12 cannot be read, without it the last weights count"),
    ):
        run.best(setup.trained())


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "not JSON: Expecting value at column 1"), ("[]", "expected a JSON object, got list")],
)
def test_an_empty_description_of_a_run(content: str, message: str, tmp_path: Path) -> None:
    """Whose run it is cannot be known."""
    with Run(tmp_path, {"kind": "eagle"}):
        pass
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match=rf"run\.json: {message}"):
        Run(tmp_path, {"kind": "eagle"})


def test_directory_of_another_run(tmp_path: Path) -> None:
    with Run(tmp_path / "run", {"config": {"lr": 1.0}, "text": "a"}):
        pass
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"is another run: its config.lr is 1.0, not 2.0; nothing was written"):
        Run(tmp_path / "run", {"config": {"lr": 2.0}, "text": "a"})
    with pytest.raises(ValueError, match="is not empty and not a training run"):
        Run(tmp_path, {})
    assert sorted(tmp_path.rglob("*")) == before


def test_a_request_is_checked_before_any_work(tmp_path: Path) -> None:
    """Whose directory it is, and whether the weights may go where they are wanted; nothing is written."""
    head, identity = tmp_path / "head", {"kind": "eagle"}
    check_run(tmp_path / "run", identity, head)
    assert list(tmp_path.iterdir()) == []
    with Run(tmp_path / "run", identity) as run:
        assert run.exported(head) is None
        run.keep_export(head, 7)
        assert run.exported(head) is None  # nothing is there
        head.mkdir()
        (head / "config.json").touch()
        assert run.exported(head) == 7
    check_run(tmp_path / "run", identity, head)
    with pytest.raises(ValueError, match="run is another run: its kind is 'eagle', not 'eagle3'; nothing was written"):
        check_run(tmp_path / "run", {"kind": "eagle3"})
    with pytest.raises(ValueError, match="head is there already and not empty; nothing is overwritten"):
        check_run(tmp_path / "other", identity, head)
    with pytest.raises(ValueError, match="gs://bucket/run is an address, give a local or mounted path"):
        check_run("gs://bucket/run", identity)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Run(tmp_path, {}), pytest.raises(ValueError, match="another process is training this run"):
        Run(tmp_path, {})


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    setup = Setup("eagle3")
    broken = jax.tree.map(lambda x: x * jnp.nan, setup.frozen.vocabulary.lm_head)
    setup.frozen = steps.Frozen(
        setup.frozen.target_params, type(setup.frozen.vocabulary)(broken, setup.frozen.vocabulary.target_ids)
    )
    with pytest.raises(ValueError, match="the loss is nan at step 2"):
        setup.run(tmp_path)


@pytest.mark.parametrize("field", ["loss", "grad_norm"])
@pytest.mark.parametrize(("log_every", "found"), [(2, 4), (100, 6)])
def test_no_checkpoint_of_what_is_not_finite(tmp_path: Path, field: str, log_every: int, found: int) -> None:
    """Neither where steps are logged more often than saved, nor the other way round."""
    setup = Setup("eagle")
    inner = setup.step

    def breaks(state: steps.TrainState, *rest: Any) -> steps.TrainState:
        broken = int(state.step) == 3
        state = inner(state, *rest)
        window = dataclasses.replace(state.window, **({field: jnp.full((), jnp.inf)} if broken else {}))
        return dataclasses.replace(state, window=window)

    setup.step = breaks
    name = {"loss": "loss", "grad_norm": "norm of the gradient"}[field]
    with pytest.raises(ValueError, match=f"the {name} is inf at step {found}: a smaller learning_rate"):
        setup.run(tmp_path, config={"log_every": log_every})
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == ["3"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoopConfig(steps=0), "got 0, 10 and 100"),
        (lambda: LoopConfig(steps=1, evaluate_every=-1), "intervals must be at least 0, got 100 and -1"),
        (lambda: steps.OptimizerConfig(steps=0), "steps must be at least 1, got 0"),
        (lambda: steps.OptimizerConfig(steps=1, learning_rate=0), "got 0, 1.0"),
        (lambda: steps.OptimizerConfig(steps=1, warmup_share=1), r"warmup_share must be in \[0, 1\), got 1"),
    ],
)
def test_misuse(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
