"""Conversations played out turn by turn: every method continues what *plain decoding* has written.

So all methods read the same prompts even where an answer differs. A group of conversations is answered together, as one
batch; a turn is a generation of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.evaluation import runner
from eagle_jax.evaluation.tasks import Question
from eagle_jax.generator import Generation, Generator
from eagle_jax.sampling import SamplingConfig
from eagle_jax.types import Target

PLAIN = "plain"
"""Plain decoding among the labels."""

TURN_STRIDE = 1 << 16
"""Turn t of question i has the sequence id t * TURN_STRIDE + i, so a first turn has the id that `runner` gives."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of some conversations, answered by plain decoding and by the methods."""

    rows: list[int]  # the conversations of the group that have this turn
    prompts: list[list[int]]  # one for each of `rows`, as everything below
    sequences: list[int]
    answers: dict[str, Generation]  # by label, PLAIN among them


class Bench(Protocol):
    """What answers for all methods: timed (`side_by_side`), or by acceptance alone (`acceptance`)."""

    model: LoadedModel
    target: Target
    max_new_tokens: int  # longest answer
    batch: int  # conversations that are answered together

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse questions whose first turn does not fit into the model's context (ValueError)."""

    def prepare(self, questions: Sequence[Question], turns: int, sampling: SamplingConfig) -> None:
        """Compile and warm up for these conversations, of which `turns` turns will be played."""

    def write(
        self,
        prompts: Sequence[list[int]],
        sequences: Sequence[int],
        sampling: SamplingConfig,
        labels: Sequence[str] | None,
    ) -> dict[str, Generation]:
        """Answers to `batch` prompts by label, those of `PLAIN` and of `labels` (None: of all methods)."""


def play(
    bench: Bench,
    questions: Sequence[Question],
    places: Sequence[int],
    *,
    turns: int,
    sampling: SamplingConfig,
    labels: Sequence[str] | None = None,
) -> list[Turn]:
    """Play a group of conversations; fewer turns than `turns` where they or the model's context end.

    Args:
      bench: answers.
      questions: at most `bench.batch`, whose first turns fit into the context. Where fewer rows are live, the first one
        is repeated and its copies are dropped.
      places: of the questions in their file, below TURN_STRIDE.
      turns: the most turns to be played.
      sampling: of all answers.
      labels: the methods that take part, all where None.
    """
    model = bench.model
    played: list[Turn] = []
    histories: list[list[dict[str, str]]] = [[] for _ in questions]
    live = list(range(len(questions)))
    for number in range(max(len(question.turns) for question in questions)):
        if number == turns:
            break
        live = [row for row in live if number < len(questions[row].turns)]
        for row in live:
            histories[row].append({"role": "user", "content": questions[row].turns[number]})
        prompts = {row: runner.conversation_ids(model, histories[row]) for row in live}
        live = [row for row in live if len(prompts[row]) + bench.max_new_tokens <= bench.target.max_positions]
        if not live:
            break
        padded = live + live[:1] * (bench.batch - len(live))
        sequences = [number * TURN_STRIDE + places[row] for row in padded]
        answers = bench.write([prompts[row] for row in padded], sequences, sampling, labels)
        turn = Turn(
            rows=list(live),
            prompts=[prompts[row] for row in live],
            sequences=sequences[: len(live)],
            answers={label: first_rows(answer, len(live)) for label, answer in answers.items()},
        )
        played.append(turn)
        for row, tokens in zip(live, turn.answers[PLAIN].tokens, strict=True):
            histories[row].append({"role": "assistant", "content": model.tokenizer.decode(tokens)})
    return played


def first_rows(generation: Generation, count: int) -> Generation:
    """A generation without the rows after the first `count`; the seconds stay those of all rows."""
    return dataclasses.replace(
        generation,
        tokens=generation.tokens[:count],
        rounds=generation.rounds[:count],
        accepted=generation.accepted[:count],
    )


def check_first_turns(
    model: LoadedModel,
    target: Target,
    questions: Sequence[Question],
    generators: Mapping[str, Generator],
    max_new_tokens: int,
) -> None:
    """Refuse questions that leave no room for an answer.

    Raises:
      ValueError: a first turn does not fit into the model's context.
    """
    prompts = [runner.prompt_ids(model, question) for question in questions]
    deepest = max((one.drafter for one in generators.values()), key=lambda drafter: drafter.max_depth)
    runner.slots(target, prompts, deepest, max_new_tokens)


def longest_conversation(model: LoadedModel, questions: Sequence[Question], turns: int, max_new_tokens: int) -> int:
    """Tokens of the longest conversation, if reading an answer takes as many tokens as writing it."""

    def estimate(question: Question) -> int:
        users = [{"role": "user", "content": text} for text in question.turns[:turns]]
        silent = {"role": "assistant", "content": ""}
        messages = [message for user in users for message in (user, silent)][:-1]
        return len(runner.conversation_ids(model, messages)) + len(users) * max_new_tokens

    return max(map(estimate, questions))


def plain_generation(tokens: list[list[int]]) -> Generation:
    """What plain decoding would report for these answers, without times."""
    rounds = [len(row) - 1 for row in tokens]
    return Generation(
        tokens=tokens,
        rounds=rounds,
        accepted=np.array(rounds, np.int32)[:, None],
        prefill_seconds=0.0,
        decode_seconds=0.0,
        complete=True,
    )
