"""Answers that the target writes itself: which are requested, in what order, and the file that they go to.

answers.jsonl            an answer a line, as `conversations` reads it
answers.jsonl.run.json   the settings that decide the text of an answer; a request with others is refused

Each answer has noise of its own, named after prompt, temperature and number, so its text does not depend on the other
requests. The order of writing does not depend on what is in the file already: after an interruption the file grows
into the one that uninterrupted work would have written. Knows no model.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from eagle_jax.files import Location, Record, check_fields
from eagle_jax.journal import LineFile, check_recorded, write_settings
from eagle_jax.training.prompt_files import Prompt

Key = tuple[str, float, int]
"""What tells an answer from all others: id of its prompt, temperature, number."""


class Request(NamedTuple):
    """One answer to be written."""

    prompt: Prompt
    temperature: float
    number: int  # among the answers at this temperature

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return self.prompt.identifier, self.temperature, self.number

    @property
    def sequence(self) -> int:
        """Names its noise, in [0, 2**32)."""
        return zlib.crc32("/".join(map(str, self.key)).encode())


def requests_for(prompts: Iterable[Prompt], temperatures: Sequence[float], count: int) -> list[Request]:
    """`count` answers to each prompt at each temperature, but one at temperature 0, where all would be the same.

    Raises:
      ValueError: a temperature that is there twice, or a count below 1.
    """
    if len(set(temperatures)) < len(temperatures):
        raise ValueError(f"a temperature is there twice: {', '.join(map(str, temperatures))}")
    if count < 1:
        raise ValueError(f"at least 1 answer must be requested, got {count}")
    return [
        Request(prompt, temperature, number)
        for prompt in prompts
        for temperature in temperatures
        for number in range(count if temperature else 1)
    ]


def in_order(requests: Sequence[Request], window: int) -> list[Request]:
    """Requests as they are written: each `window` of them sorted by prompt length, so that batches are even."""
    windows = [requests[start : start + window] for start in range(0, len(requests), window)]
    return [request for some in windows for request in sorted(some, key=lambda request: len(request.prompt.tokens))]


def record_of(request: Request, tokens: Sequence[int], text: str, stop_ids: Sequence[int]) -> dict[str, Any]:
    """An answer as a line of the file holds it; `tokens` with the stop id, where one ended it."""
    finished = tokens[-1] in stop_ids
    return {
        "id": request.prompt.identifier,
        "answer": request.number,
        "temperature": request.temperature,
        "finished": finished,
        **({"end_id": tokens[-1]} if finished else {}),
        "messages": [*request.prompt.messages, {"role": "assistant", "content": text}],
        "prompt_ids": list(request.prompt.tokens),
        "answer_ids": list(tokens[:-1] if finished else tokens),
    }


class AnswerFile(contextlib.AbstractContextManager["AnswerFile"]):
    """A file of answers, new or to be continued, of one process at a time.

    An incomplete line that a crash left is cut off. A file without an answer can be begun with any settings.

    Args:
      path: of the file.
      settings: JSON-able description of what decides the text of an answer besides its request.

    Raises:
      ValueError: another process writes to the file, it was begun with other settings, it is no file of answers, or it
        is an address.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(LineFile(path))
            self.path = self._file.path
            self._claim(settings)
            answers, rest = self._file.read(_answer_of)
            self._answered = dict(answers)
            self._file.cut(rest)
            stack.pop_all()

    def __exit__(self, *_: object) -> None:
        self._file.__exit__()

    def missing(self, requests: Iterable[Request]) -> list[Request]:
        """Those that the file does not answer.

        Raises:
          ValueError: the file has an answer to another prompt of the same id.
        """
        requests = list(requests)
        for request in requests:
            if self._answered.get(request.key, request.prompt.messages) != request.prompt.messages:
                raise ValueError(f"{self.path} answers another prompt of id {request.prompt.identifier!r}")
        return [request for request in requests if request.key not in self._answered]

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append answers; on disk when this returns."""
        self._file.append(json.dumps(record, ensure_ascii=False) for record in records)

    def _claim(self, settings: Mapping[str, Any]) -> None:
        """Check the settings that the file was begun with, or record those of a new one."""
        recorded = self.path.with_name(self.path.name + ".run.json")
        if not self.path.stat().st_size:
            write_settings(recorded, settings)
        elif check_recorded(recorded, settings, self.path) is None:
            raise ValueError(f"{self.path} is there already, without {recorded.name}: nothing was written")


def _answer_of(record: Record, location: Location) -> tuple[Key, list[dict[str, str]]]:
    """What tells an answer from all others, and the messages of its prompt."""
    del location
    check_fields(record, ("id", "answer", "temperature", "messages"))
    return (record["id"], record["temperature"], record["answer"]), record["messages"][:-1]
