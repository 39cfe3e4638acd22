"""A run's directory: who it belongs to, its checkpoints, its metrics.

run.json            the request; another one for the same directory is refused, nothing overwritten
checkpoints/STEP/   train state and iterator state, written atomically by orbax; the newest two
damaged/STEP/       a checkpoint that could not be read when the run went on, from the one before it
best/STEP/          the weights with the best real tau so far
metrics.jsonl       one object a line; lines after the checkpoint that a run continues from are dropped
tensorboard/        the same numbers
exports.json        where finished weights were written to, and of which step

Several processes that train one run see the same directory. Process 0 locks and describes it and writes the metrics.
"""

import json
import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import IO, Any

import grain
import jax
from orbax.checkpoint import v1 as ocp
from tensorboardX import SummaryWriter

from eagle_jax.files import is_filled, local, lock, read_json, read_jsonl, with_fields, write_whole
from eagle_jax.journal import check_recorded, write_settings
from eagle_jax.processes import broadcast_text, is_primary
from eagle_jax.training.step import TrainState

_LOG = logging.getLogger(__name__)

ABOUT, EXPORTS = "run.json", "exports.json"

Directory = str | os.PathLike[str]
"""A path; ~ stands for the home directory."""


def check_run(directory: Directory, identity: Mapping[str, Any], export: Directory | None = None) -> None:
    """Refuse a request before any work goes into it; writes nothing.

    Args:
      directory, identity: as for `Run`.
      export: where the finished weights shall go.

    Raises:
      ValueError: the directory holds something else or another run, or `export` what this run did not write.
    """
    place = local(directory)

    def check() -> None:
        _check_owner(place, identity)
        if export is not None and is_filled(local(export)) and _key(export) not in _exports(place):
            raise ValueError(f"{export} is there already and not empty; nothing is overwritten")

    _together(check)


class Run:
    """An open run; a context manager, one process at a time, or all of those that train it together.

    Args:
      directory: new, empty, or that of the same run.
      identity: JSON-able description of everything that decides the numbers: config, data, target.

    Raises:
      ValueError: the directory holds something else, another run, or a run that another process works on.
    """

    def __init__(self, directory: Directory, identity: Mapping[str, Any]) -> None:
        self.directory = local(directory).absolute()
        self._lock: IO[str] | None = None
        _together(lambda: self._claim(identity))
        keep = ocp.training.preservation_policies.LatestN
        self._checkpoints = ocp.training.Checkpointer(
            self.directory / "checkpoints", preservation_policy=keep(2), cleanup_tmp_directories=True
        )
        self._best = ocp.training.Checkpointer(
            self.directory / "best", preservation_policy=keep(1), cleanup_tmp_directories=True
        )
        self._board: SummaryWriter | None = None
        self._metrics = self.directory / "metrics.jsonl"

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._checkpoints.close()
        self._best.close()
        if self._board is not None:
            self._board.close()
        if self._lock is not None:
            self._lock.close()

    def save(self, state: TrainState, data: grain.DatasetIterator) -> None:
        """Write a checkpoint, unless there is one of this step."""
        step = int(state.step)
        latest = self._checkpoints.latest
        if latest is None or latest.step != step:
            self._checkpoints.save_checkpointables(step, {"state": state, "data": data})

    def restore(self, state: TrainState, data: grain.DatasetIterator) -> TrainState:
        """The newest checkpoint that can be read, or `state` where there is none at all.

        Sets `data`, and takes later metrics back. Checkpoints that cannot be read are named in the log and set aside.

        Raises:
          ValueError: there are checkpoints, but none that can be read; or the newest of several processes cannot be.
        """
        step = 0
        damaged: dict[int, str] = {}
        steps = [checkpoint.step for checkpoint in reversed(self._checkpoints.checkpoints)]
        for newest in steps if jax.process_count() == 1 else steps[:1]:  # processes would have to agree on it
            try:
                state, step = self._load(newest, state, data), newest
                break
            except Exception as error:  # whatever orbax does with damaged files
                damaged[newest] = " ".join(str(error).split())[:200] or type(error).__name__
        if damaged and not step:
            number, reason = next(iter(damaged.items()))
            folder = self.directory / "checkpoints"
            raise ValueError(f"{folder / str(number)} cannot be read ({reason}), nor any other that could replace it")
        for number, reason in damaged.items():
            _LOG.warning(
                "checkpoint %d of %s cannot be read, going on from %d: %s", number, self.directory, step, reason
            )
            self._set_aside(number)
        if is_primary():
            self._forget_after(step)
            self._board = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step + 1)
        return state

    def _load(self, step: int, state: TrainState, data: grain.DatasetIterator) -> TrainState:
        """The state of a checkpoint; sets `data`."""
        state = self._checkpoints.load_checkpointables(step, {"state": _abstract(state)})["state"]
        # Every process reads all rows, so that one's place is that of all, however many there are now.
        (place,) = (self.directory / "checkpoints" / str(step) / "data").glob("process_0-of-*.json")
        data.set_state(read_json(place))
        return state

    def _set_aside(self, step: int) -> None:
        """Move a damaged checkpoint to where it is in nobody's way."""
        folder = self.directory / "damaged"
        folder.mkdir(exist_ok=True)
        place, number = folder / str(step), 1
        while place.exists():
            place, number = folder / f"{step}.{number}", number + 1
        (self.directory / "checkpoints" / str(step)).rename(place)
        self._checkpoints.reload()

    def log(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Append a line of metrics, and show it in TensorBoard under `kind`/."""
        if not is_primary():
            return
        rounded = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in values.items()}
        line = json.dumps({"step": step, "kind": kind, **rounded})
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
            self._board.flush()

    def last_logged(self, name: str) -> int:
        """The newest number of this name among the metrics; 0 where there is none, and in processes that write none."""
        if not is_primary() or not self._metrics.is_file():
            return 0
        lines = read_jsonl(self._metrics, with_fields("step"))
        return next((line[name] for line in reversed(lines) if name in line), 0)

    def keep_best(self, state: TrainState, tau: float) -> bool:
        """Keep the weights if `tau` is above that of those kept; whether it was."""
        latest, step = self._best.latest, int(state.step)
        if latest is not None and (latest.metrics or {}).get("tau", 0.0) >= tau:
            return False
        if latest is not None and latest.step == step:
            return False
        self._best.save_checkpointables(step, {"state": state.trained}, metrics={"tau": tau})
        return True

    def best(self, trained: Any) -> tuple[int, Any] | None:
        """Step and weights of the best real tau, shaped like `trained`; None where none was measured.

        Raises:
          ValueError: they cannot be read.
        """
        latest = self._best.latest
        if latest is None:
            return None
        try:
            return latest.step, self._best.load_checkpointables(latest.step, {"state": _abstract(trained)})["state"]
        except Exception as error:  # whatever orbax does with damaged files
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            place = self.directory / "best" / str(latest.step)
            raise ValueError(f"{place} cannot be read, without it the last weights count: {reason}") from error

    def exported(self, directory: Directory) -> int | None:
        """The step whose weights this run wrote to `directory`, where they still are; None where it wrote none."""
        return _exports(self.directory).get(_key(directory)) if is_filled(local(directory)) else None

    def keep_export(self, directory: Directory, step: int) -> None:
        """Remember that `directory` has the weights of `step`."""
        if is_primary():
            known = {**_exports(self.directory), _key(directory): step}
            write_whole(self.directory / EXPORTS, json.dumps(known, indent=1) + "\n")

    def _claim(self, wanted: Mapping[str, Any]) -> None:
        """Lock the directory and say whose it is, or find that it is another's."""
        _check_owner(self.directory, wanted)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = (self.directory / "lock").open("w")
        try:
            lock(self._lock, f"{self.directory}: another process is training this run")
        except (ValueError, OSError):
            self._lock.close()
            raise
        about = self.directory / ABOUT
        if not about.is_file():
            write_settings(about, wanted)

    def _forget_after(self, step: int) -> None:
        """Drop metrics of steps that are going to be repeated, and a line that a crash cut short."""
        if not self._metrics.is_file():
            return
        broken: list[str] = []  # a line that a crash cut short is left out
        lines = read_jsonl(self._metrics, with_fields("step"), broken=broken)
        write_whole(self._metrics, "".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step))


def _together(work: Callable[[], None]) -> None:
    """Let process 0 do something; what it cannot do, all refuse."""
    failure: Exception | None = None
    if is_primary():
        try:
            work()
        except (ValueError, OSError) as error:
            failure = error
    refusal = broadcast_text(str(failure or ""))  # the other processes wait for it
    if failure:
        raise failure
    if refusal:
        raise ValueError(refusal)


def _check_owner(directory: pathlib.Path, wanted: Mapping[str, Any]) -> None:
    """Refuse the directory of something else or of another run."""
    if check_recorded(directory / ABOUT, wanted, directory) is None and is_filled(directory):
        raise ValueError(f"{directory} is not empty and not a training run: nothing was written")


def _exports(directory: pathlib.Path) -> dict[str, int]:
    """Steps of the weights that a run has written, by `_key` of where they are."""
    path = directory / EXPORTS
    return read_json(path) if path.is_file() else {}


def _key(directory: Directory) -> str:
    return str(local(directory).absolute())


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
