"""Prompts for the target: what is read, what is left out, what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from eagle_jax.testing import ByteTokenizer
from eagle_jax.training.prompt_files import Prompt, read_prompts

HELLO = [{"role": "user", "content": "Hello"}]
ANSWER = {"role": "assistant", "content": "Hi"}
TOKENIZER = ByteTokenizer()


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_prompts_of_several_files(tmp_path: Path) -> None:
    """An answer at the end is left out; who has no id is named after file and line."""
    one = write(tmp_path / "one.jsonl", {"id": 7, "messages": [*HELLO, ANSWER]}, "", {"messages": HELLO})
    two = write(tmp_path / "two.jsonl", {"id": "turns", "messages": [*HELLO, ANSWER, *HELLO]})
    found = read_prompts([str(one), str(two)], TOKENIZER, max_tokens=100)
    talks = {"7": HELLO, "one-3": HELLO, "turns": [*HELLO, ANSWER, *HELLO]}
    assert found.prompts == [Prompt(name, talk, TOKENIZER.chat(talk)) for name, talk in talks.items()]
    assert (found.broken, found.num_too_long) == ([], 0)


def test_long_prompts_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": HELLO}, {"messages": [{"role": "user", "content": "Hello!"}]})
    size = len(TOKENIZER.chat(HELLO))
    found = read_prompts([str(path)], TOKENIZER, max_tokens=size)
    assert ([prompt.identifier for prompt in found.prompts], found.num_too_long) == (["a-1"], 1)
    with pytest.raises(ValueError, match=rf"^no prompt of at most {size - 1} tokens in {path}$"):
        read_prompts([str(path)], TOKENIZER, max_tokens=size - 1)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "not JSON: Expecting property name"),
        ({"id": "x"}, "messages must be a list of at least one message"),
        ({"id": "x", "messages": [ANSWER]}, "roles must be user and assistant in turn"),
        ({"id": 1.5, "messages": HELLO}, "id must be a text or a whole number, got 1.5"),
        ({"id": "a", "messages": HELLO}, "id 'a' is there twice"),
    ],
)
def test_broken_lines(tmp_path: Path, line: Any, reason: str) -> None:
    path = write(tmp_path / "prompts.jsonl", {"id": "a", "messages": HELLO}, "", line)
    with pytest.raises(
        ValueError, match=rf"^1 broken line, the first is {path}, line 3: {reason}.*; skip_broken leaves"
    ):
        read_prompts([str(path)], TOKENIZER, max_tokens=100)
    found = read_prompts([str(path)], TOKENIZER, max_tokens=100, skip_broken=True)
    assert [prompt.identifier for prompt in found.prompts] == ["a"]
    assert found.broken[0].startswith(f"{path}, line 3: {reason}")
