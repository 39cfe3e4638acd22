"""Answers to questions by a drafting method and by plain decoding: one at a time in alternation, or in batches.

Knows questions, generators and the model's tokenizer; not where they come from, nor what becomes of the answers.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from eagle_jax.chat import Message, TextStream
from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.continuous import write_all
from eagle_jax.drafters.base import Drafter
from eagle_jax.evaluation import metrics
from eagle_jax.evaluation.tasks import Question
from eagle_jax.generator import Generation, Generator, cache_slots
from eagle_jax.sampling import SamplingConfig, SamplingOptions
from eagle_jax.types import Target

Show = Callable[[str], None]
"""Takes the next piece of text; pieces end in whole characters."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """One question's answer, and plain decoding's where that was compared; generations of one row."""

    question_id: int | str
    prompt: str
    text: str
    written: Generation
    plain: Generation | None = None

    @property
    def identical(self) -> bool:
        """Whether both ways of decoding wrote the same tokens."""
        return self.plain is not None and self.plain.tokens == self.written.tokens


def prompt_ids(model: LoadedModel, question: Question) -> list[int]:
    """The first turn as a prompt: by the model's chat template, or as plain text where it has none."""
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


def stream_answers(
    model: LoadedModel,
    method: Generator,
    plain: Generator | None,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    sampling: SamplingConfig,
    *,
    show: Show,
) -> Iterator[Answer]:
    """Yield the answers one by one; the sequence id of a question is its index.

    Args:
      model: for its tokenizer and stop ids.
      method: writes the answers.
      plain: writes each of them once more, without `show`; None leaves that out.
      questions: with one prompt each.
      prompts: their token ids.
      sampling: of all answers.
      show: called with each piece of text as rounds finish.
    """
    for index, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
        options = sampling.options(sequence=[index], stop_ids=model.stop_ids)
        # Every other time plain decoding goes first, so that a machine that slows down slows both.
        early = complete_answer(plain, prompt, options) if plain and index % 2 else None
        stream, pieces, shown = TextStream(model.tokenizer.decode), [], 0
        for written in method.stream([prompt], **options):
            pieces.append(stream.push(written.tokens[0][shown:]))
            shown = len(written.tokens[0])
            show(pieces[-1])
        pieces.append(stream.finish())
        show(pieces[-1])
        late = complete_answer(plain, prompt, options) if plain and not index % 2 else None
        yield Answer(
            question_id=question.question_id,
            prompt=question.turns[0],
            text="".join(pieces),
            written=written,
            plain=early or late,
        )


def complete_answer(writer: Generator, prompt: list[int], options: SamplingOptions) -> Generation:
    """A complete answer, in as many calls as one that is shown on the way."""
    *_, last = writer.stream([prompt], **options)
    return last


def batched_answers(
    model: LoadedModel,
    method: Generator,
    plain: Generator | None,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    sampling: SamplingConfig,
    *,
    batch: int,
) -> list[Answer]:
    """The answers, `batch` of them in progress at a time: all of the method's, then all of plain decoding's.

    Seconds belong to no single answer: each has an even share, and together they come to what passed.

    Args:
      model, method, plain, questions, prompts, sampling: as for `stream_answers`; so are the sequence ids.
      batch: rows that decode together.
    """
    options = sampling.options(stop_ids=model.stop_ids)
    written = _split_rows(write_all(method, prompts, batch=batch, **options))
    reference = _split_rows(write_all(plain, prompts, batch=batch, **options)) if plain else [None] * len(prompts)
    answers = []
    for question, one, other in zip(questions, written, reference, strict=True):
        stream = TextStream(model.tokenizer.decode)
        text = stream.push(one.tokens[0]) + stream.finish()
        answers.append(
            Answer(question_id=question.question_id, prompt=question.turns[0], text=text, written=one, plain=other)
        )
    return answers


def _split_rows(batch: Generation) -> list[Generation]:
    """Each row as a generation of its own."""
    count = len(batch.tokens)
    even = dataclasses.replace(
        batch, prefill_seconds=batch.prefill_seconds / count, decode_seconds=batch.decode_seconds / count
    )
    return [
        dataclasses.replace(
            even,
            tokens=[batch.tokens[row]],
            rounds=[batch.rounds[row]],
            accepted=batch.accepted[row][None],
            logprobs=batch.logprobs and [batch.logprobs[row]],
        )
        for row in range(count)
    ]


def first_margin(
    method: Generator, prompts: Sequence[list[int]], answers: Sequence[Answer], sampling: SamplingConfig
) -> float | None:
    """Margin of the target's best score where an answer first differs from plain decoding.

    None where none does, and under the rule `residual`, which writes another text by design.
    """
    if method.rule == "residual":
        return None
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if answer.plain is None:
            continue
        texts = answer.plain.tokens[0], answer.written.tokens[0]
        margin = metrics.margin_at_difference(
            method.target, method.target_params, prompt, *texts, sampling=sampling, sequence=index
        )
        if margin is not None:
            return margin
    return None
