"""Plain decoding and drafting methods side by side: the same prompts, in alternation, in one process, timed.

The rules are Spec-Bench's (Xia et al., arXiv 2401.07851, section 4): warm-ups before anything is timed, the same
prompts for all; compiling is timed by nobody. Times compare best at batch 1; in a batch all rows wait for the longest.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.drafters import make_vanilla
from eagle_jax.evaluation import runner
from eagle_jax.evaluation.tasks import Question
from eagle_jax.evaluation.turns import (
    PLAIN,
    TURN_STRIDE,
    check_first_turns,
    longest_conversation,
)
from eagle_jax.generator import Generation, Generator, cache_slots
from eagle_jax.sampling import SamplingConfig
from eagle_jax.types import Target


class SideBySide:
    """Generators of one target, compiled and warm for texts up to a length; the `turns.Bench` that times.

    Args:
      model: the target's weights, tokenizer and stop ids.
      methods: by label; plain decoding is added.
      target: the target as functions.
      max_new_tokens: longest answer.
      warm_ups: complete answers that each generator writes before its times count.
      batch: conversations that are answered together.

    Raises:
      ValueError: a method called as plain decoding is.
    """

    def __init__(
        self,
        model: LoadedModel,
        target: Target,
        methods: Mapping[str, Generator],
        *,
        max_new_tokens: int,
        warm_ups: int = 3,
        batch: int = 1,
    ) -> None:
        if PLAIN in methods:
            raise ValueError(f"a method cannot be labelled {PLAIN!r}: that is what plain decoding is called")
        self.model, self.target = model, target
        self.methods = {PLAIN: Generator(target, model.params, make_vanilla()), **methods}
        self.max_new_tokens, self.warm_ups, self.batch = max_new_tokens, warm_ups, batch
        self.generators = self.methods
        self.capacity = 0  # of all programs that are used now; those of the task at least
        self._least = 0  # of the task
        self.programs: dict[int, dict[str, Generator]] = {}  # by capacity
        self._warm: set[tuple[int, float]] = set()  # capacities and temperatures that were warmed up for

    def check(self, questions: Sequence[Question]) -> None:
        """As `Bench.check`."""
        check_first_turns(self.model, self.target, questions, self.methods, self.max_new_tokens)

    def prepare(self, questions: Sequence[Question], turns: int, sampling: SamplingConfig) -> None:
        """As `Bench.prepare`; what was compiled before is used again."""
        longest = longest_conversation(self.model, questions, turns, self.max_new_tokens)
        self._least = self._slots(min(longest, self.target.max_positions))
        self._make_room(self._least, runner.prompt_ids(self.model, questions[0]), sampling)

    def write(
        self,
        prompts: Sequence[list[int]],
        sequences: Sequence[int],
        sampling: SamplingConfig,
        labels: Sequence[str] | None,
    ) -> dict[str, Generation]:
        """As `Bench.write`, one method after the other."""
        self._make_room(
            max(self._least, self._slots(max(map(len, prompts)) + self.max_new_tokens)), prompts[0], sampling
        )
        chosen = list(self.methods) if labels is None else [PLAIN, *labels]
        # The one that goes first changes, so that a machine that slows down slows all of them.
        turn, place = divmod(sequences[0], TURN_STRIDE)
        first = (place // self.batch + turn) % len(chosen)
        options = sampling.options(sequence=sequences, stop_ids=self.model.stop_ids)
        return {label: self.generators[label].generate(prompts, **options) for label in chosen[first:] + chosen[:first]}

    def _slots(self, longest: int) -> int:
        """Slots for texts of `longest` tokens and any method's draft after them."""
        deepest = max(method.drafter.max_depth for method in self.methods.values())
        return cache_slots(longest, deepest, self.target.max_positions)

    def _make_room(self, capacity: int, prompt: list[int], sampling: SamplingConfig) -> None:
        """Take the programs with so many slots: slots that nobody needs cost time in every pass."""
        if capacity not in self.programs:
            self.programs[capacity] = {label: with_capacity(one, capacity) for label, one in self.methods.items()}
        self.capacity, self.generators = capacity, self.programs[capacity]
        if (capacity, sampling.temperature) not in self._warm:
            self._warm.add((capacity, sampling.temperature))
            options = sampling.options(stop_ids=self.model.stop_ids)
            for generator in self.generators.values():
                generator.warm_up([prompt] * self.batch, **options)
                for _ in range(self.warm_ups):
                    generator.generate([prompt] * self.batch, **options)


def with_capacity(generator: Generator, capacity: int) -> Generator:
    """The same method with caches of so many slots."""
    return dataclasses.replace(generator, capacity=capacity)
