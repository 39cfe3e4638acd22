"""The points of an ablation: a config of configs/ablations, read and checked.

A point is the config with some of its fields changed, those of the training config that it names included
(`experiments.sweep` says how such a file looks).
"""

import importlib.util
import pathlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from eagle_jax.evaluation.checks import check_type
from experiments.cli.method_entries import read_entries
from experiments.evaluate import check_config

TRAIN: dict[str, Any] = {"config": str, "fields": dict, "time_limit": float}
"""What the `train` part of a config holds."""


class Point(NamedTuple):
    """One setting of what is varied."""

    name: str  # of its files
    label: str  # in tables
    config: dict[str, Any]  # an evaluation's, but with one `method`
    train: dict[str, Any] | None  # what to train before: `config`, `fields`, `time_limit`
    recipe: dict[str, Any] | None  # the whole training config that these give

    def evaluation(self, **changes: str) -> ConfigDict:
        """What experiments.evaluate takes; `changes` are of the method."""
        shared = {name: value for name, value in self.config.items() if name != "method"}
        return ConfigDict({**shared, "methods": [{"label": self.label, **self.config["method"], **changes}]})


def read_points(path: str) -> list[Point]:
    """The points of a config file.

    Raises:
      ValueError: the file is no config of an ablation, two points have one name, or a point cannot be measured.
    """
    module = load_module(path)
    for name in ("get_config", "sweep"):
        if not callable(getattr(module, name, None)):
            raise ValueError(f"{path} has no function {name}: it is not a config of an ablation")
    base = module.get_config()
    points: list[Point] = []

    def add(*, label: str = "", **changes: Any) -> None:
        text = label or ", ".join(f"{key.rpartition('.')[2]}={value}" for key, value in changes.items())
        name = re.sub(r"[^A-Za-z0-9.=_-]+", "_", text) or "base"
        if any(point.name == name for point in points):
            raise ValueError(f"{path} has two points called {name!r}")
        points.append(make_point(base, name, text or "base", changes))

    module.sweep(add)
    if not points:
        raise ValueError(f"{path}: sweep(add) adds no point")
    for point in points:
        config = point.evaluation()
        check_config(config)
        read_entries(config.methods, config.dtype, config.temperatures)
    return points


def load_module(path: str, field: str = "--config") -> ModuleType:
    """Run a Python file.

    Raises:
      ValueError: there is no such file; `field` says who named it.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{field}={path} names no file")
    spec = importlib.util.spec_from_file_location("ablation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_point(base: ConfigDict, name: str, label: str, changes: Mapping[str, Any]) -> Point:
    """A point: the base config with some fields changed.

    Raises:
      ValueError: a field that the config does not have, or a part of another type.
    """
    config = base.to_dict()
    train = config.pop("train", None)
    check_type("the config's train", train, dict | None)
    for field, kind in TRAIN.items() if train else ():
        check_type(f"the config's train.{field}", train.get(field), kind)
    whole = {**config}
    if train:
        whole["train"] = load_module(train["config"], "the config's train.config").get_config().to_dict()
    values = {f"train.{field}": value for field, value in train["fields"].items()} if train else {}
    values |= changes
    for key, value in values.items():
        *parents, field = key.split(".")
        holder: Any = whole
        for parent in parents:
            holder = holder.get(parent) if isinstance(holder, dict) else None
        # The fields of a method are known to whoever builds it.
        if not isinstance(holder, dict) or (field not in holder and parents != ["method"]):
            raise ValueError(f"point {label!r} changes {key!r}, which the config does not have")
        holder[field] = value
    check_type(f"the method of point {label!r}", whole.get("method"), dict)
    if train:
        fields = {key.removeprefix("train."): value for key, value in values.items() if key.startswith("train.")}
        train = {**train, "fields": fields}
    recipe = whole.pop("train", None)
    return Point(name, label, whole, train, recipe)
