"""JSONL of conversations to token ids and the mask of what the target wrote.

A line: `{"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}], ...}`. Where the target's own
answer is there as token ids, those count:

    answer_ids   token ids of the last message, without its end token
    prompt_ids   token ids of all before it, as the target read them; made anew by the chat template where left out
    finished     whether the answer ended by itself; then the end token is appended and learnt
    end_id       the token that ended it; the one that the chat template ends answers with where left out
    id           of the prompt: all answers to one are trained on, or all held out (`split`)

Then the last answer alone is supervised. Without ids every assistant turn is: from where the chat template leaves it to
the assistant up to the end token. A broken line is an error that names file, line and reason.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from eagle_jax.files import Location, Parsed, Record, read_jsonl
from eagle_jax.provenance import json_digest
from eagle_jax.training.benchmark_text import BenchmarkText
from eagle_jax.training.repetition import loop_start

EncodePlain = Callable[[str], list[int]]
"""Text to token ids, without special tokens."""

ROLES = ("system", "user", "assistant")


class ChatTokenizer(Protocol):
    """What of a tokenizer is needed here (`eagle_jax.chat.Tokenizer`)."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    def stop_ids(self) -> Sequence[int]:
        """Tokens that end an answer."""

    @property
    def end_id(self) -> int | None:
        """The one of them that the chat template writes after an answer."""

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Prompt ids of a conversation, up to where the answer begins."""


class Example(NamedTuple):
    """One document."""

    tokens: np.ndarray  # i32[n]
    supervised: np.ndarray  # bool[n]
    prompt_keys: tuple[str, ...] = ()  # documents that share one answer the same prompt

    @property
    def slots(self) -> np.ndarray:
        """Slots that can carry a loss (`batch`): i64[...], ascending."""
        return np.flatnonzero(self.supervised[2:])


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The documents of some files."""

    examples: list[Example]
    broken: list[str]  # reasons, with file and line, of the lines left out
    num_loops: int = 0  # answers that were cut where they begin to repeat themselves
    num_loop_tokens: int = 0  # and what was cut of them
    num_left_out: int = 0  # conversations that repeat a benchmark


def read_corpus(
    paths: Iterable[str],
    tokenizer: ChatTokenizer,
    *,
    encode_plain: EncodePlain | None = None,
    skip_broken: bool = False,
    cut_loops: bool = False,
    benchmarks: BenchmarkText | None = None,
) -> Corpus:
    """Read and tokenise conversations.

    Args:
      paths: JSONL files.
      tokenizer: the target's.
      encode_plain: for answers without ids.
      skip_broken: leave broken lines out instead of raising; they are listed in the result.
      cut_loops: cut answers with ids where they begin to repeat themselves (`repetition.loop_start`).
      benchmarks: conversations that share a run of words with these are left out, and counted.

    Raises:
      ValueError: a broken line, named and counted, or no conversation at all.
    """
    num_loops = num_loop_tokens = 0

    def parse(record: Record, location: Location) -> Example | None:
        nonlocal num_loops, num_loop_tokens
        del location
        check_answered(record, tokenizer.vocab_size)
        if benchmarks is not None and benchmarks.asks(record["messages"]):
            return None
        excess = _loop_tokens(record) if cut_loops else 0
        if excess:
            record = {**record, "answer_ids": record["answer_ids"][:-excess], "finished": False}
        example = encode(record, tokenizer, encode_plain)
        num_loops, num_loop_tokens = num_loops + (excess > 0), num_loop_tokens + excess
        return example

    read, broken = read_files(paths, parse, skip_broken=skip_broken)
    examples = [example for example in read if example is not None]
    num_left_out = len(read) - len(examples)
    if not examples:
        others = f" but {num_left_out} that repeat a benchmark" if num_left_out else ""
        raise ValueError(f"no conversation in {', '.join(map(str, paths))}{others}")
    return Corpus(examples, broken, num_loops, num_loop_tokens, num_left_out)


def _loop_tokens(record: Mapping[str, Any]) -> int:
    """Tokens of an answer's ids from where it begins to loop on."""
    ids = record.get("answer_ids") or []
    return len(ids) - loop_start(ids)


def read_files(
    paths: Iterable[str], parse: Callable[[Record, Location], Parsed], *, skip_broken: bool
) -> tuple[list[Parsed], list[str]]:
    """`read_jsonl` of several files, and the messages for broken lines, which only `skip_broken` permits.

    Raises:
      ValueError: broken lines, counted, and the first of them.
    """
    broken: list[str] = []
    parsed = [one for path in paths for one in read_jsonl(path, parse, broken=broken)]
    if broken and not skip_broken:
        count = f"{len(broken)} broken line{'s' if len(broken) > 1 else ''}"
        raise ValueError(f"{count}, the first is {broken[0]}; skip_broken leaves them out")
    return parsed, broken


def check_answered(record: Record, vocab_size: int) -> None:
    """Check a conversation that ends with an answer.

    Raises:
      ValueError: what is wrong with it.
    """
    if check_messages(record.get("messages"))[-1] != "assistant":
        raise ValueError("the last message must be the assistant's, got the user's")
    if record.get("answer_ids") is None:
        return
    for name in ("answer_ids", "prompt_ids"):
        ids = record.get(name)
        if ids is not None and not _are_ids(ids, vocab_size):
            raise ValueError(f"{name} must be a list of token ids below {vocab_size}")
    if not isinstance(record.get("finished"), bool):
        raise ValueError(f"answer_ids needs finished, true or false, got {record.get('finished')!r}")
    end = record.get("end_id")
    if end is not None and not (type(end) is int and 0 <= end < vocab_size):
        raise ValueError(f"end_id must be a token id below {vocab_size}, got {end!r}")


def _are_ids(ids: Any, vocab_size: int) -> bool:
    return isinstance(ids, list) and all(type(token) is int and 0 <= token < vocab_size for token in ids)


def check_messages(messages: Any) -> list[str]:
    """Roles of a conversation: a system message or none, then user and assistant in turn.

    Raises:
      ValueError: what is wrong with it.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages must be a list of at least one message")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError("every message must be an object with the texts role and content")
        if message["role"] not in ROLES:
            raise ValueError(f"role {message['role']!r} is not one of {', '.join(ROLES)}")
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != (["user", "assistant"] * len(turns))[: len(turns)]:
        raise ValueError(f"roles must be user and assistant in turn, got {', '.join(roles)}")
    return roles


def encode(record: Mapping[str, Any], tokenizer: ChatTokenizer, encode_plain: EncodePlain | None = None) -> Example:
    """Token ids and mask of a checked record.

    Raises:
      ValueError: no stop id, a template that rewrites earlier turns, or an answer without ids and no `encode_plain`.
    """
    if tokenizer.end_id is None:
        raise ValueError("the tokenizer has no stop id, so no answer would ever end")
    messages, ids = record["messages"], record.get("answer_ids")
    prompt = None if ids is None else record.get("prompt_ids")
    if prompt is None:
        prompt = tokenizer.chat(messages[:-1])
    if ids is not None:
        end = record.get("end_id")
        answer = [*ids, *([tokenizer.end_id if end is None else end] if record["finished"] else [])]
        spans = []
    else:
        if encode_plain is None:
            raise ValueError("the answer has no answer_ids, and nothing to tokenise it with was given")
        answer = [*encode_plain(messages[-1]["content"]), tokenizer.end_id]
        spans = [_earlier_answer(messages, index, prompt, tokenizer) for index in _earlier_answers(messages)]
    tokens = np.asarray([*prompt, *answer], np.int32)
    supervised = np.zeros(len(tokens), bool)
    for start, stop in [*spans, (len(prompt), len(tokens))]:
        supervised[start:stop] = True
    if supervised[:2].any():
        raise ValueError("the answer begins in the first two tokens, before any slot of a head")
    return Example(tokens, supervised, _prompt_keys(record))


def _prompt_keys(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The id of a prompt, if it has one, and its text."""
    named = record.get("id")
    return (*([] if named is None else [f"id {named}"]), text_key(record["messages"][:-1]))


def text_key(messages: Sequence[Mapping[str, str]]) -> str:
    """Of a prompt by its text, as `Example.prompt_keys` has it."""
    return f"text {json_digest([[message['role'], message['content']] for message in messages])}"


def _earlier_answers(messages: Sequence[Mapping[str, str]]) -> list[int]:
    return [index for index, message in enumerate(messages[:-1]) if message["role"] == "assistant"]


def _earlier_answer(
    messages: Sequence[Mapping[str, str]], index: int, prompt: list[int], tokenizer: ChatTokenizer
) -> tuple[int, int]:
    """Where the answer `messages[index]` and its end token stand in the prompt of the last turn."""
    before = tokenizer.chat(messages[:index])
    if prompt[: len(before)] != before:
        raise ValueError(f"the chat template rewrites what stands before message {index}; train on single turns")
    stops = [place for place in range(len(before), len(prompt)) if prompt[place] in tokenizer.stop_ids]
    if not stops:
        raise ValueError(f"the chat template does not end message {index} with a stop id")
    return len(before), stops[0] + 1
