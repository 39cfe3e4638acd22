"""Prompts for the target to answer: JSONL of conversations, each up to where an answer begins.

A line: `{"id": ..., "messages": [...]}`, as `conversations` reads it; an answer at its end is left out. A prompt
without an id is named after its file and line.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from eagle_jax.training.conversations import ChatTokenizer, check_messages, parse


class Prompt(NamedTuple):
    """A conversation that waits for an answer."""

    identifier: str
    messages: list[dict[str, str]]
    tokens: list[int]


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of some files."""

    prompts: list[Prompt]
    broken: list[str]  # reasons, with file and line, of the lines left out
    num_too_long: int


def read_prompts(
    paths: Iterable[str], tokenizer: ChatTokenizer, *, max_tokens: int, skip_broken: bool = False
) -> Prompts:
    """Read and tokenise prompts, in the order of the files.

    Args:
      paths: JSONL files.
      tokenizer: the target's.
      max_tokens: longer prompts are left out, and counted.
      skip_broken: leave broken lines out instead of raising; they are listed in the result.

    Raises:
      ValueError: a broken line, named and counted (an id that is there already is one), or no prompt at all.
    """
    found: dict[str, Prompt] = {}
    broken: list[str] = []
    for path in paths:
        for number, line in enumerate(pathlib.Path(path).read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                record = parse(line)
                prompt = _prompt(record, f"{pathlib.Path(path).stem}-{number}", tokenizer)
                if prompt.identifier in found:
                    raise ValueError(f"id {prompt.identifier!r} is there twice")
                found[prompt.identifier] = prompt
            except ValueError as error:
                broken.append(f"{path}:{number}: {error}")
    if broken and not skip_broken:
        count = f"{len(broken)} broken line{'s' if len(broken) > 1 else ''}"
        raise ValueError(f"{count}, the first is {broken[0]}; skip_broken leaves them out")
    short = [prompt for prompt in found.values() if len(prompt.tokens) <= max_tokens]
    if not short:
        raise ValueError(f"no prompt of at most {max_tokens} tokens in {', '.join(map(str, paths))}")
    return Prompts(short, broken, len(found) - len(short))


def _prompt(record: Mapping[str, Any], name: str, tokenizer: ChatTokenizer) -> Prompt:
    """The prompt of one line, called `name` where it has no id."""
    identifier = record.get("id")
    if identifier is not None and type(identifier) not in (str, int):
        raise ValueError(f"id must be a text or a whole number, got {identifier!r}")
    roles = check_messages(record.get("messages"))
    messages = record["messages"][:-1] if roles[-1] == "assistant" else record["messages"]
    return Prompt(name if identifier is None else str(identifier), messages, tokenizer.chat(messages))
