"""Acceptance without times: what each method would have needed for plain decoding's answers, teacher-forced.

Every method writes the same text, so plain decoding writes it once and the target's outputs along it are recorded; the
methods then draft and are checked without the target's passes (`teacher_forced`). It takes a fraction of the time of
`side_by_side` and gives the same rounds and tau.
"""

from collections.abc import Mapping, Sequence

from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.decode import Models
from eagle_jax.evaluation.recording import write_recorded
from eagle_jax.evaluation.tasks import Question
from eagle_jax.evaluation.teacher_forced import accept_known, check_playable
from eagle_jax.evaluation.turns import (
    PLAIN,
    check_first_turns,
    longest_conversation,
    plain_generation,
)
from eagle_jax.generator import Generation, Generator, cache_slots
from eagle_jax.give_up import GivingUp
from eagle_jax.sampling import SamplingConfig
from eagle_jax.types import Target


class Acceptance:
    """Methods on the answers of one target; the `turns.Bench` that times nothing.

    Args:
      model: the target's weights, tokenizer and stop ids.
      target: the target as functions.
      methods: by label.
      max_new_tokens: longest answer.
      batch: conversations that are answered together.

    Raises:
      ValueError: a method called as plain decoding is, or one that cannot be teacher-forced (`why_not`).
    """

    def __init__(
        self,
        model: LoadedModel,
        target: Target,
        methods: Mapping[str, Generator],
        *,
        max_new_tokens: int,
        batch: int = 1,
    ) -> None:
        if PLAIN in methods:
            raise ValueError(f"a method cannot be labelled {PLAIN!r}: that is what plain decoding is called")
        for label, method in methods.items():
            if reason := why_not(method.rule, isinstance(method, GivingUp)):
                raise ValueError(f"{label!r} cannot be teacher-forced: {reason}")
            check_playable(method.drafter)
        self.model, self.target, self.methods = model, target, dict(methods)
        self.max_new_tokens, self.batch = max_new_tokens, batch
        self._least = 0  # cache slots of the task

    def check(self, questions: Sequence[Question]) -> None:
        """As `Bench.check`."""
        check_first_turns(self.model, self.target, questions, self.methods, self.max_new_tokens)

    def prepare(self, questions: Sequence[Question], turns: int, sampling: SamplingConfig) -> None:
        """As `Bench.prepare`: one capacity for all conversations of the task, so that one program serves them."""
        del sampling
        longest = longest_conversation(self.model, questions, turns, self.max_new_tokens)
        self._least = self._slots(min(longest, self.target.max_positions))

    def write(
        self,
        prompts: Sequence[list[int]],
        sequences: Sequence[int],
        sampling: SamplingConfig,
        labels: Sequence[str] | None,
    ) -> dict[str, Generation]:
        """As `Bench.write`: plain decoding's answers, and the rounds that each method would have needed for them."""
        capacity = max(self._least, self._slots(max(map(len, prompts)) + self.max_new_tokens))
        options = sampling.options(sequence=sequences, stop_ids=self.model.stop_ids)
        target, params = self.target, self.model.params
        answers, recording = write_recorded(target, params, prompts, capacity=capacity, **options)
        results = {PLAIN: plain_generation(answers)}
        for label in self.methods if labels is None else labels:
            method = self.methods[label]
            models = Models(target, method.drafter, params, method.drafter_params)
            results[label] = accept_known(
                models, prompts, answers, share_noise=method.share_noise, recording=recording, **options
            )
        return results

    def _slots(self, longest: int) -> int:
        deepest = max((method.drafter.max_depth for method in self.methods.values()), default=0)
        return cache_slots(longest, deepest, self.target.max_positions)


def why_not(rule: str, give_up: bool) -> str | None:
    """Why a method cannot be teacher-forced, None where it can."""
    if give_up:
        return "giving up follows the clock, and nothing is timed"
    if rule != "match":
        return f"the rule {rule!r} writes another text"
    return None
