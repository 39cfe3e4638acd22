"""Prompts for the target to answer: JSONL of conversations, each up to where an answer begins.

A line: `{"id": ..., "messages": [...]}`, as `conversations` reads it; an answer at its end is left out. A prompt
without an id is named after its file and line.
"""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from eagle_jax.files import Location, Record
from eagle_jax.training.benchmark_text import BenchmarkText
from eagle_jax.training.conversations import ChatTokenizer, check_messages, read_files


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
    num_left_out: int = 0  # that repeat a benchmark


def read_prompts(
    paths: Iterable[str],
    tokenizer: ChatTokenizer,
    *,
    max_tokens: int,
    skip_broken: bool = False,
    benchmarks: BenchmarkText | None = None,
) -> Prompts:
    """Read and tokenise prompts, in the order of the files.

    Args:
      paths: JSONL files.
      tokenizer: the target's.
      max_tokens: longer prompts are left out, and counted.
      skip_broken: leave broken lines out instead of raising; they are listed in the result.
      benchmarks: prompts that share a run of words with these are left out, and counted.

    Raises:
      ValueError: a broken line, named and counted (an id that is there already is one), or no prompt at all.
    """
    by_id: dict[str, Prompt] = {}

    def parse(record: Record, location: Location) -> None:
        prompt = _prompt(record, f"{pathlib.Path(location.path).stem}-{location.number}", tokenizer)
        if prompt.identifier in by_id:
            raise ValueError(f"id {prompt.identifier!r} is there twice")
        by_id[prompt.identifier] = prompt

    _, broken = read_files(paths, parse, skip_broken=skip_broken)
    wanted = [prompt for prompt in by_id.values() if benchmarks is None or not benchmarks.asks(prompt.messages)]
    short = [prompt for prompt in wanted if len(prompt.tokens) <= max_tokens]
    num_left_out = len(by_id) - len(wanted)
    if not short:
        others = f" that repeats no benchmark ({num_left_out} do)" if num_left_out else ""
        raise ValueError(f"no prompt of at most {max_tokens} tokens{others} in {', '.join(map(str, paths))}")
    return Prompts(short, broken, len(wanted) - len(short), num_left_out)


def _prompt(record: Record, name: str, tokenizer: ChatTokenizer) -> Prompt:
    """The prompt of one line, called `name` where it has no id."""
    identifier = record.get("id")
    if identifier is not None and type(identifier) not in (str, int):
        raise ValueError(f"id must be a text or a whole number, got {identifier!r}")
    roles = check_messages(record.get("messages"))
    messages = record["messages"][:-1] if roles[-1] == "assistant" else record["messages"]
    return Prompt(name if identifier is None else str(identifier), messages, tokenizer.chat(messages))
