"""Asks questions of a drafting method and of plain decoding: one at a time and in alternation, or many together.

Knows questions, generators and the model's tokenizer; not where they come from, nor what becomes of the answers.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from eagle_jax.chat import Message, TextStream
from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.continuous import write_all
from eagle_jax.drafters.base import Drafter
from eagle_jax.evaluation import metrics
from eagle_jax.evaluation.summary import Answer
from eagle_jax.evaluation.tasks import Question
from eagle_jax.generator import Generation, Generator, cache_slots
from eagle_jax.types import Target

Show = Callable[[str], None]
"""Takes the next piece of text; pieces end in whole characters."""


def prompt_ids(model: LoadedModel, question: Question) -> list[int]:
    """The first turn as the model is asked: by its chat template, or as plain text where it has none."""
    return conversation_ids(model, [{"role": "user", "content": question.turns[0]}])


def conversation_ids(model: LoadedModel, messages: Sequence[Message]) -> list[int]:
    """A conversation up to the next answer; without a chat template its texts in lines of their own."""
    if model.tokenizer.has_chat_template:
        return model.tokenizer.chat(messages)
    return model.tokenizer.encode("\n".join(message["content"] for message in messages))


def slots(target: Target, prompts: Sequence[Sequence[int]], drafter: Drafter, max_new_tokens: int) -> int:
    """Cache slots that serve every prompt, so that one program does.

    Raises:
      ValueError: the longest text does not fit into the model's context.
    """
    prompt = max(map(len, prompts))
    longest = prompt + max_new_tokens
    if longest > target.max_positions:
        raise ValueError(
            f"a prompt of {prompt} tokens and {max_new_tokens} new ones come to {longest}, "
            f"the model's context is {target.max_positions}"
        )
    return cache_slots(longest, drafter.max_depth, target.max_positions)


def ask(
    model: LoadedModel,
    method: Generator,
    plain: Generator | None,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    *,
    show: Show,
    **sampling: Any,
) -> Iterator[Answer]:
    """Yield the answers one by one; the sequence id of a question is its index.

    Args:
      model: for its tokenizer and stop ids.
      method: writes the answers.
      plain: writes each of them once more, unseen; None leaves that out.
      questions: with one prompt each.
      prompts: their token ids.
      show: called with each piece of text as rounds finish.
      **sampling: as `make_sampling` takes it, without `sequence` and `stop_ids`.
    """
    for index, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
        options = {**sampling, "sequence": [index], "stop_ids": model.stop_ids}
        # Every other time plain decoding goes first, so that a machine that slows down slows both.
        early = whole(plain, prompt, options) if plain and index % 2 else None
        stream, pieces, shown = TextStream(model.tokenizer.decode), [], 0
        for written in method.stream([prompt], **options):
            pieces.append(stream.push(written.tokens[0][shown:]))
            shown = len(written.tokens[0])
            show(pieces[-1])
        pieces.append(stream.finish())
        show(pieces[-1])
        late = whole(plain, prompt, options) if plain and not index % 2 else None
        yield Answer(
            question_id=question.question_id,
            prompt=question.turns[0],
            text="".join(pieces),
            written=written,
            plain=early or late,
        )


def whole(writer: Generator, prompt: list[int], options: dict[str, Any]) -> Generation:
    """A complete answer, in as many calls as one that is shown on the way."""
    *_, last = writer.stream([prompt], **options)
    return last


def ask_together(
    model: LoadedModel,
    method: Generator,
    plain: Generator | None,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    *,
    batch: int,
    **sampling: Any,
) -> list[Answer]:
    """The answers, `batch` of them under way at a time: all of the method's, then all of plain decoding's.

    Seconds belong to no single answer: each has an even share, and together they come to what passed.

    Args:
      model, method, plain, questions, prompts: as for `ask`; sequence ids too are those of `ask`.
      batch: rows that decode together.
      **sampling: as for `ask`.
    """
    options = {**sampling, "batch": batch, "stop_ids": model.stop_ids}
    written = _apart(write_all(method, prompts, **options))
    reference = _apart(write_all(plain, prompts, **options)) if plain else [None] * len(prompts)
    answers = []
    for question, one, other in zip(questions, written, reference, strict=True):
        stream = TextStream(model.tokenizer.decode)
        text = stream.push(one.tokens[0]) + stream.finish()
        answers.append(
            Answer(question_id=question.question_id, prompt=question.turns[0], text=text, written=one, plain=other)
        )
    return answers


def _apart(whole: Generation) -> list[Generation]:
    """Each row as a generation of its own."""
    count = len(whole.tokens)
    whole = dataclasses.replace(
        whole, prefill_seconds=whole.prefill_seconds / count, decode_seconds=whole.decode_seconds / count
    )
    return [
        dataclasses.replace(whole, tokens=[tokens], rounds=[rounds], accepted=accepted[None])
        for tokens, rounds, accepted in zip(whole.tokens, whole.rounds, whole.accepted, strict=True)
    ]


def margin_at_difference(
    method: Generator, prompts: Sequence[list[int]], answers: Sequence[Answer], **law: Any
) -> float | None:
    """Margin of the target's best score where an answer first differs from plain decoding.

    None where none does, and under the rule `residual`, which writes another text by design.
    """
    if method.rule == "residual":
        return None
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if answer.plain is None or answer.identical:
            continue
        reference = answer.plain.tokens[0]
        common = reference[: metrics.first_difference(answer.written.tokens[0], reference)]
        return metrics.margin(method.target, method.target_params, prompt + common, sequence=index, **law)
    return None
