"""Reads prompts: `question.jsonl` files in the format of Spec-Bench, one prompt per line, or conversations.

Spec-Bench (Xia et al., arXiv 2401.07851, section 4) and the EAGLE repository have one JSON object per line:

    {"question_id": 81, "category": "writing", "turns": ["Compose ...", "Rewrite ..."], "reference": [...]}
    {"prompt": "Compose ..."}
    {"id": "a-1", "messages": [{"role": "user", "content": "Compose ..."}]}      as training prompts are stored

The id may be a text and only names the question in results. Knows no tokenizer and no model.
"""

import collections
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from eagle_jax.evaluation.checks import check_type
from eagle_jax.files import Record, read_jsonl
from eagle_jax.training.conversations import check_messages


@dataclasses.dataclass(frozen=True)
class Question:
    """One conversation: the user's message in each turn."""

    question_id: int | str
    category: str
    turns: tuple[str, ...]


def from_prompt(prompt: str, question_id: int = 0) -> Question:
    """A question of one turn.

    Raises:
      ValueError: nothing but white space.
    """
    if not prompt.strip():
        raise ValueError(f"the prompt is empty: {prompt!r}")
    return Question(question_id, "", (prompt,))


def read_questions(path: str | os.PathLike[str], num_prompts: int | None = None) -> list[Question]:
    """The questions of a file in its order, blank lines left out.

    Args:
      path: JSON lines; a `{"prompt": ...}` or a conversation gets its index in the file as `question_id`. Of a
        conversation the user's messages are the turns.
      num_prompts: how many to take from the start; None takes all.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a line that is no question (the message gives its number), a file without any, or `num_prompts` below
        1 or above what the file holds.
    """
    index = itertools.count()
    questions = read_jsonl(path, lambda record, _: _parse(record, next(index)))
    if not questions:
        raise ValueError(f"{path} holds no question")
    if num_prompts is None:
        return questions
    if not 1 <= num_prompts <= len(questions):
        raise ValueError(f"num_prompts is {num_prompts}, {path} holds {len(questions)} questions")
    return questions[:num_prompts]


def read_task(
    directory: str | os.PathLike[str], name: str, num_prompts: int, *, spread: bool = False
) -> dict[int, Question]:
    """Some questions of `directory`/`name`/question.jsonl by their index in the file.

    Args:
      directory: with a folder for each task.
      name: of the task.
      num_prompts: how many.
      spread: as many of each category as of any other (`over_categories`), where False takes the first of the file.
        Benchmarks are sorted by category, so those are alike: the first ten of MT-bench are writing tasks.

    Raises:
      ValueError: no such task (the message lists those there are), a broken file, or a number of prompts that the file
        cannot give.
    """
    directory = pathlib.Path(directory)
    path = directory / name / "question.jsonl"
    if not path.is_file():
        tasks = sorted(other.parent.name for other in directory.glob("*/question.jsonl"))
        raise ValueError(f"task {name!r} has no {path}; the tasks in {directory} are {', '.join(tasks) or 'none'}")
    first = read_questions(path, num_prompts)
    if not spread:
        return dict(enumerate(first))
    questions = read_questions(path)
    return {index: questions[index] for index in over_categories(questions, num_prompts)}


def over_categories(questions: Sequence[Question], num_prompts: int) -> list[int]:
    """Indices of the first question of every category, then of the second of each, and so on; `num_prompts`, sorted."""
    turn = collections.Counter[str]()
    order = []
    for index, question in enumerate(questions):
        order.append((turn[question.category], index))
        turn[question.category] += 1
    return sorted(index for _, index in sorted(order)[:num_prompts])


def read_tasks(
    directory: str | os.PathLike[str], names: Sequence[str], num_prompts: int, *, spread: bool = False
) -> dict[str, dict[int, Question]]:
    """`read_task` of several tasks, by name."""
    return {name: read_task(directory, name, num_prompts, spread=spread) for name in names}


def _parse(record: Record, index: int) -> Question:
    if not {"turns", "prompt", "messages"} & record.keys():
        raise ValueError(f"expected the key 'turns', 'prompt' or 'messages', got {', '.join(record) or 'none'}")
    if "messages" in record:
        check_messages(record["messages"])
        turns = tuple(message["content"] for message in record["messages"] if message["role"] == "user")
        return Question(index, "", turns)
    if "turns" not in record:
        return from_prompt(_typed(record, "prompt", str), index)
    turns = tuple(_typed(record, "turns", list))
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ValueError(f"turns must be texts, one at least and none empty, got {list(turns)!r}")
    return Question(_typed(record, "question_id", int | str, index), _typed(record, "category", str, ""), turns)


def _typed(record: Record, key: str, kind: Any, default: object = None) -> Any:
    value = record.get(key, default)
    check_type(key, value, kind)
    return value
