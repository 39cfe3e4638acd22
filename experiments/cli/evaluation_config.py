"""The config of an evaluation, checked: what is measured, how, and by which methods."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, Literal

from ml_collections import ConfigDict

from eagle_jax.evaluation.checks import read_record
from eagle_jax.sampling import SamplingConfig

TURNS = {"first": 1, "all": sys.maxsize}
"""How many turns of a conversation are played."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The fields of a file of configs/eval."""

    target: str
    dtype: str
    tasks: tuple[str, ...]
    num_prompts: int  # of each task
    turns: str  # "first" or "all"
    max_new_tokens: int
    temperatures: tuple[float, ...]
    seeds: tuple[int, ...]
    warm_ups: int
    methods: tuple[dict, ...]  # each as `method_entries` takes it
    spread: bool = False  # prompts from all categories of a task alike, where False takes the first of its file
    mode: Literal["timed", "teacher_forced"] = "timed"
    batch: int = 1
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        for name in ("tasks", "temperatures", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"the config's {name} must be distinct, one at least, got {values!r}")
        for task in self.tasks:
            if "," in task:
                raise ValueError(f"the config's tasks are names, several as --config.tasks=\"('a','b')\", got {task!r}")
        for temperature in self.temperatures:
            self.sampling(temperature, 0)
        for seed in self.seeds:
            self.sampling(0.0, seed)
        if self.turns not in TURNS:
            raise ValueError(f"the config's turns must be one of {', '.join(TURNS)}, got {self.turns!r}")
        if self.warm_ups < 0:
            raise ValueError(f"the config's warm_ups must be at least 0, got {self.warm_ups}")
        if self.batch < 1:
            raise ValueError(f"the config's batch must be at least 1, got {self.batch}")

    @property
    def num_turns(self) -> int:
        """The most turns of a conversation."""
        return TURNS[self.turns]

    def sampling(self, temperature: float, seed: int) -> SamplingConfig:
        """How the answers of a block are sampled."""
        return SamplingConfig(temperature, self.top_k, self.top_p, self.min_p, seed, self.max_new_tokens)

    def identity(self) -> dict[str, Any]:
        """What decides the rows, methods apart; of the fields with a default those that differ from it."""
        fields = {field.name: field for field in dataclasses.fields(self) if field.name != "methods"}
        values = {name: getattr(self, name) for name in fields}
        return {name: value for name, value in values.items() if value != fields[name].default}


def read_config(config: ConfigDict | Mapping[str, Any]) -> EvaluationConfig:
    """A config as a file or flags give it.

    Raises:
      ValueError: a config that says too little, too much or something impossible.
    """
    return read_record(EvaluationConfig, "the config", dict(config.items()))
