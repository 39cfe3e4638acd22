"""The training loop: steps, checkpoints, metrics, and leaving on request.

A run may be made in pieces: after a time limit, SIGTERM or Ctrl-C the loop finishes its step, saves and returns; after
a kill it goes on from its last checkpoint. Either way the numbers are those of one uninterrupted run. Real tau comes
from a callable, so that the loop knows no decoder.

Of several processes that train together each runs this loop. They stop together, at a step that is logged.
"""

import contextlib
import dataclasses
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from tqdm import tqdm

from eagle_jax import sharding
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.processes import broadcast_text, is_primary
from eagle_jax.training.records import Tally, rates_of
from eagle_jax.training.run import Run
from eagle_jax.training.step import Frozen, RowBatch, TrainState, head_params

Evaluate = Callable[[HeadParams], Mapping[str, float]]
"""Head -> numbers measured with the real decoder; `tau` decides which weights are best."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long, and how often what; 0 is never (and, for the last step, once)."""

    steps: int
    log_every: int = 10
    save_every: int = 100
    heldout_every: int = 100
    evaluate_every: int = 0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.steps < 1 or self.log_every < 1 or self.save_every < 1:
            raise ValueError(
                "steps, log_every and save_every must be at least 1,"
                f" got {self.steps}, {self.log_every} and {self.save_every}"
            )
        if self.heldout_every < 0 or self.evaluate_every < 0:
            raise ValueError(f"intervals must be at least 0, got {self.heldout_every} and {self.evaluate_every}")


Mark = tuple[float, int]
"""Seconds by the clock, and tokens trained on until then."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How the loop ended."""

    state: TrainState
    finished: bool
    reason: str  # why it stopped early; empty where it did not


def train(
    run: Run,
    state: TrainState,
    data: grain.DatasetIterator,
    step: Callable[[TrainState, Frozen, RowBatch], TrainState],
    frozen: Frozen,
    config: LoopConfig,
    *,
    learning_rate: Callable[[int], Any] | None = None,
    heldout: Iterable[Mapping[str, Any]] = (),
    measure: Callable[[dict[str, Any], Frozen, RowBatch], Tally] | None = None,
    evaluate: Evaluate | None = None,
    time_limit: float | None = None,
    started: float | None = None,
    mesh: Mesh | None = None,
    quiet: bool = False,
) -> Outcome:
    """Train until `config.steps`, the time limit or a signal.

    Args:
      run: where checkpoints and metrics go; a run that has begun goes on.
      state: the state before the first step.
      data: an iterator of packed rows, as `data.make_iterator` gives it.
      step: the compiled step.
      frozen: what it reads.
      config: how long and how often.
      learning_rate: by step, for the metrics.
      heldout, measure: rows that are never trained on and the compiled measurement, every `heldout_every` steps.
      evaluate: real tau, every `evaluate_every` steps and at the end.
      time_limit: seconds after which the loop saves and returns.
      started: `time.monotonic` when they began; left out, they begin here.
      mesh: train on these devices, rows sharded over its axis `data`. Weights that are on it stay as they are, all
        others go to every device; a run may go on on another mesh. Several processes need one that has all devices.
      quiet: no progress bar.

    Raises:
      ValueError: a loss or gradient that is not finite (checkpoints are from before), or rows the mesh cannot divide.
    """
    if mesh is not None:
        state, frozen = sharding.place_weights(mesh, (state, frozen))
    state = run.restore(state, data)
    started, done, heldout = time.monotonic() if started is None else started, int(state.step), list(heldout)
    with sharding.active(mesh), _stop_requests() as requests, _bar(config.steps, done, quiet) as bar:
        mark, reason = (time.monotonic(), _tokens(state, run.last_logged("tokens"))), ""
        while done < config.steps and not reason:
            state = step(state, frozen, _on_device(next(data), mesh))
            done += 1
            bar.update()
            if done % config.log_every == 0 or done == config.steps:
                state, mark = _log(run, state, mark, learning_rate, bar)
            if measure is not None and heldout and _due(done, config.heldout_every, config.steps):
                run.log(done, "heldout", _measure(state, frozen, (_on_device(rows, mesh) for rows in heldout), measure))
            if evaluate is not None and _due(done, config.evaluate_every, config.steps):
                _evaluate(run, state, frozen, evaluate)
            if jax.process_count() == 1 or done % config.log_every == 0:
                reason = broadcast_text(requests[0] if requests else _time_up(started, time_limit))
            if done % config.save_every == 0 or done == config.steps or reason:
                _check_finite(state)
                run.save(state, data)
    return Outcome(state, done >= config.steps, "" if done >= config.steps else reason)


def _bar(steps: int, done: int, quiet: bool) -> tqdm:
    """Progress on stderr, one for all processes."""
    hidden = quiet or not is_primary()
    return tqdm(total=steps, initial=done, disable=hidden, unit="step", dynamic_ncols=True, file=sys.stderr)


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _on_device(rows: Mapping[str, Any], mesh: Mesh | None) -> RowBatch:
    if mesh is not None:
        return sharding.place_rows(mesh, dict(rows))
    return {name: jnp.asarray(values) for name, values in rows.items()}


def _log(
    run: Run, state: TrainState, mark: Mark, learning_rate: Callable[[int], Any] | None, bar: tqdm
) -> tuple[TrainState, Mark]:
    """Log means since the last log, which was at `mark`; the state with an empty window, and the mark of this log.

    Raises:
      ValueError: the loss or the gradient is not finite.
    """
    _check_finite(state)
    done, window = int(state.step), jax.device_get(state.window)
    steps = max(int(window.steps), 1)
    numbers = {
        "loss": float(window.loss) / steps,
        "grad_norm": float(window.grad_norm) / steps,
        **rates_of(window.tally),
    }
    if learning_rate is not None:
        numbers["learning_rate"] = float(learning_rate(done - 1))
    now = (time.monotonic(), _tokens(state, mark[1]))
    rate = (now[1] - mark[1]) / max(now[0] - mark[0], 1e-9)
    run.log(done, "train", {**numbers, "tokens": now[1], "tokens_per_second": rate})
    bar.set_postfix(loss=f"{numbers['loss']:.3f}", tau=f"{numbers['simulated_tau']:.3f}")
    return dataclasses.replace(state, window=jax.tree.map(jnp.zeros_like, state.window)), now


def _tokens(state: TrainState, before: int) -> int:
    """Tokens trained on, of which the state counts 32 bits; `before` were logged last."""
    return before + (int(state.tokens) - before) % 2**32


def _check_finite(state: TrainState) -> None:
    """Refuse a state whose numbers are not finite, before it is logged, measured or saved.

    Raises:
      ValueError: a loss or a gradient since the last log is not finite.
    """
    for name, total in (("loss", state.window.loss), ("norm of the gradient", state.window.grad_norm)):
        if not math.isfinite(float(total)):
            advice = "a smaller learning_rate, or float32 features"
            raise ValueError(f"the {name} is {float(total)} at step {int(state.step)}: {advice}")


def _measure(
    state: TrainState,
    frozen: Frozen,
    heldout: Iterable[RowBatch],
    measure: Callable[[dict[str, Any], Frozen, RowBatch], Tally],
) -> dict[str, float]:
    tallies = [measure(state.trained, frozen, rows) for rows in heldout]
    return rates_of(jax.tree.map(lambda *sums: sum(sums[1:], start=sums[0]), *tallies))


def _evaluate(run: Run, state: TrainState, frozen: Frozen, evaluate: Evaluate) -> None:
    """Log what the real decoder says, and keep the weights if they are the best so far."""
    _check_finite(state)
    measured = dict(evaluate(head_params(state.trained, frozen.vocabulary)))
    run.log(int(state.step), "real", measured)
    if "tau" in measured:
        run.keep_best(state, measured["tau"])


def _time_up(started: float, time_limit: float | None) -> str:
    """The reason to stop once the time limit has passed; empty until then."""
    if time_limit is None or time.monotonic() - started <= time_limit:
        return ""
    return f"time limit of {time_limit:g} s"


@contextlib.contextmanager
def _stop_requests() -> Iterator[list[str]]:
    """A list that gets the name of a signal once one asks for an end; the second one interrupts."""
    requests: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield requests  # signals reach the main thread alone
        return

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        if requests:
            raise KeyboardInterrupt
        requests.append(signal.Signals(number).name)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
