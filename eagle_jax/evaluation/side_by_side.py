"""Plain decoding and drafting methods side by side: the same prompts, in alternation, in one process.

The rules are Spec-Bench's (Xia et al., arXiv 2401.07851, section 4): batch 1, warm-ups before anything is timed, the
same prompts for all; compiling is timed by nobody. A conversation is played out turn by turn, each turn a generation of
its own. Every method continues the conversation as *plain decoding* has written it, so that all of them read the same
prompts even where an answer differs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.decode import Rule
from eagle_jax.drafters import Drafter, make_vanilla
from eagle_jax.evaluation import runner
from eagle_jax.evaluation.tasks import Question
from eagle_jax.generator import Generation, Generator, cache_slots
from eagle_jax.give_up import GivingUp
from eagle_jax.types import Params, Target

PLAIN = "plain"
"""Plain decoding among the labels."""

TURN_STRIDE = 1 << 16
"""Turn t of question i has the sequence id t * TURN_STRIDE + i, so a first turn has the id that `runner.ask` gives."""


class MethodUnderTest(NamedTuple):
    """A drafting method as it is to be run."""

    drafter: Drafter
    params: Params = ()
    rule: Rule = "match"
    share_noise: bool = True
    give_up: bool = False


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a conversation, answered by plain decoding and by the methods."""

    prompt: list[int]
    sequence: int
    answers: dict[str, Generation]  # by label, PLAIN among them


class SideBySide:
    """Generators of one target, compiled and warm for texts up to a length: that of what is asked, as in `Generator`.

    Args:
      model: the target's weights, tokenizer and stop ids.
      target: the target as functions.
      contestants: the methods by label; plain decoding is added.
      max_new_tokens: longest answer.
      warm_ups: whole answers that each generator writes before its times count.

    Raises:
      ValueError: a method called as plain decoding is, or a rule that would not write the target's law.
    """

    def __init__(
        self,
        model: LoadedModel,
        target: Target,
        contestants: Mapping[str, MethodUnderTest],
        *,
        max_new_tokens: int,
        warm_ups: int = 3,
    ) -> None:
        if PLAIN in contestants:
            raise ValueError(f"a method cannot be labelled {PLAIN!r}: that is what plain decoding is called")
        self.model, self.target = model, target
        self.contestants = {PLAIN: MethodUnderTest(make_vanilla()), **contestants}
        self.max_new_tokens, self.warm_ups = max_new_tokens, warm_ups
        self.generators: dict[str, Generator] = self._build(None)
        self.capacity = 0  # of all programs that are used now; those of the task at least
        self._least = 0  # of the task
        self.programs: dict[int, dict[str, Generator]] = {}  # by capacity
        self._warm: set[tuple[int, float]] = set()  # capacities and temperatures that were warmed up for

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions that cannot be asked.

        Args:
          questions: at least one.

        Raises:
          ValueError: a first turn does not fit into the model's context.
        """
        first = [runner.prompt_ids(self.model, question) for question in questions]
        deepest = max((contestant.drafter for contestant in self.contestants.values()), key=lambda one: one.max_depth)
        runner.slots(self.target, first, deepest, self.max_new_tokens)

    def prepare(self, questions: Sequence[Question], turns: int, temperature: float) -> None:
        """Compile for these conversations and warm up; what was compiled before is kept.

        Args:
          questions: at least one; they pass `check`.
          turns: how many of their turns will be played.
          temperature: of sampling.
        """
        longest = max(self._estimate(question, turns) for question in questions)
        self._least = self._slots(min(longest, self.target.max_positions))
        self._make_room(self._least, runner.prompt_ids(self.model, questions[0]), temperature)

    def play(
        self, question: Question, index: int, *, turns: int, temperature: float, seed: int, labels: Sequence[str]
    ) -> list[Turn]:
        """Hold a conversation; fewer turns than asked for where the model's context ends.

        Args:
          question: whose first turn fits (`check`).
          index: of the question in its file, below TURN_STRIDE.
          turns: the most turns to be played.
          temperature, seed: of sampling.
          labels: the methods that take part.
        """
        played: list[Turn] = []
        messages: list[dict[str, str]] = []
        # The one that goes first changes, so that a machine that slows down slows all of them.
        order = [PLAIN, *labels]
        for number, text in enumerate(question.turns[:turns]):
            messages.append({"role": "user", "content": text})
            prompt = runner.conversation_ids(self.model, messages)
            if len(prompt) + self.max_new_tokens > self.target.max_positions:
                break
            slots = max(self._least, self._slots(len(prompt) + self.max_new_tokens))
            self._make_room(slots, prompt, temperature)
            sequence = number * TURN_STRIDE + index
            first = (index + number) % len(order)
            answers = {
                label: self.generators[label].generate(
                    [prompt],
                    temperature=temperature,
                    seed=seed,
                    sequence=[sequence],
                    stop_ids=self.model.stop_ids,
                    max_new_tokens=self.max_new_tokens,
                )
                for label in order[first:] + order[:first]
            }
            played.append(Turn(prompt, sequence, answers))
            text = self.model.tokenizer.decode(answers[PLAIN].tokens[0])
            messages.append({"role": "assistant", "content": text})
        return played

    def _estimate(self, question: Question, turns: int) -> int:
        """Tokens of the whole conversation, if reading an answer takes as many tokens as writing it."""
        said = [{"role": "user", "content": text} for text in question.turns[:turns]]
        silent = {"role": "assistant", "content": ""}
        messages = [message for one in said for message in (one, silent)][:-1]
        return len(runner.conversation_ids(self.model, messages)) + len(said) * self.max_new_tokens

    def _build(self, capacity: int | None) -> dict[str, Generator]:
        return {
            label: (GivingUp if one.give_up else Generator)(
                self.target,
                self.model.params,
                one.drafter,
                one.params,
                rule=one.rule,
                share_noise=one.share_noise,
                capacity=capacity,
            )
            for label, one in self.contestants.items()
        }

    def _slots(self, longest: int) -> int:
        """Slots for texts of `longest` tokens and any method's draft behind them."""
        deepest = max(one.drafter.max_depth for one in self.contestants.values())
        return cache_slots(longest, deepest, self.target.max_positions)

    def _make_room(self, capacity: int, prompt: list[int], temperature: float) -> None:
        """Take the programs with so many slots: slots that nobody needs cost time in every pass."""
        if capacity not in self.programs:
            self.programs[capacity] = self._build(capacity)
        self.capacity, self.generators = capacity, self.programs[capacity]
        if (capacity, temperature) not in self._warm:
            self._warm.add((capacity, temperature))
            law: dict[str, Any] = {"stop_ids": self.model.stop_ids, "max_new_tokens": self.max_new_tokens}
            for generator in self.generators.values():
                generator.warm_up([prompt], temperature=temperature, **law)
                for _ in range(self.warm_ups):
                    generator.generate([prompt], temperature=temperature, **law)
