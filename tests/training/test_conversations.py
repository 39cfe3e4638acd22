"""Conversations to token ids and masks, checked by hand; broken lines are named and counted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagle_jax.testing import ByteTokenizer
from eagle_jax.training.conversations import Example, encode, read_corpus

TOKENIZER = ByteTokenizer()
START, END = TOKENIZER.start_id, TOKENIZER.end_id
TWO_TURNS = [
    {"role": "user", "content": "a?"},
    {"role": "assistant", "content": "b."},
    {"role": "user", "content": "c?"},
    {"role": "assistant", "content": "d."},
]


def show(example: Example) -> tuple[str, str]:
    """The text with < and > for the marks, and under it an x where a token is supervised."""
    marks = {START: "<", END: ">", ord("\n"): "/"}
    text = "".join(marks.get(token, chr(token)) for token in example.tokens.tolist())
    return text, "".join("x" if flag else "." for flag in example.supervised)


def test_two_turns_by_hand() -> None:
    text, mask = show(encode({"messages": TWO_TURNS}, TOKENIZER, TOKENIZER.encode))
    assert text == "<user/a?><assistant/b.><user/c?><assistant/d.>"
    assert mask == "....................xxx....................xxx"


def test_the_end_is_that_of_the_template_and_not_the_first_stop_id() -> None:
    """Llama 3.1 lists the end of a text before that of a turn."""

    class SeveralEnds(ByteTokenizer):
        stop_ids = (0, 257)

    for fields in ({}, {"answer_ids": [*b"d."], "finished": True}):
        tokens = encode({"messages": TWO_TURNS, **fields}, SeveralEnds(), TOKENIZER.encode).tokens
        assert tokens[-3:].tolist() == [*b"d.", END]


def test_slots_speak_of_supervised_tokens() -> None:
    example = encode({"messages": TWO_TURNS}, TOKENIZER, TOKENIZER.encode)
    assert example.slots.tolist() == [18, 19, 20, 41, 42, 43]
    assert bytes(example.tokens[example.slots + 2].tolist()[:2]) == b"b."


def test_prompt_ids_count_as_they_are() -> None:
    """Whatever the chat template writes by now; without answer_ids they say nothing."""
    record = {"messages": TWO_TURNS, "answer_ids": [100, 46], "finished": False, "prompt_ids": [*b"today: c?"]}
    text, mask = show(encode(record, TOKENIZER))
    assert text == "today: c?d."
    assert mask == ".........xx"
    text, _ = show(encode({"messages": TWO_TURNS, "prompt_ids": [*b"today: c?"]}, TOKENIZER, TOKENIZER.encode))
    assert text == "<user/a?><assistant/b.><user/c?><assistant/d.>"


def test_answer_ids_count_as_they_are_and_alone() -> None:
    record = {"messages": TWO_TURNS, "answer_ids": [100, 46], "finished": True}
    text, mask = show(encode(record, TOKENIZER))
    assert text == "<user/a?><assistant/b.><user/c?><assistant/d.>"
    assert mask == "...........................................xxx"


@pytest.mark.parametrize(
    ("fields", "tail"),
    [
        ({"finished": True}, [7, 8, END]),
        ({"finished": False}, [7, 8]),
        ({"finished": True, "end_id": 9}, [7, 8, 9]),
    ],
)
def test_the_end_token_is_learnt_where_the_answer_ended(fields: dict[str, Any], tail: list[int]) -> None:
    example = encode({"messages": TWO_TURNS[:2], "answer_ids": [7, 8], **fields}, TOKENIZER)
    assert example.tokens[example.supervised].tolist() == tail
    assert example.tokens[-len(tail) :].tolist() == tail


def write(path: Path, lines: list[str | bytes]) -> str:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return str(path)


GOOD = json.dumps({"messages": TWO_TURNS[:2], "answer_ids": [7, 8], "finished": True})


def record(**changes: Any) -> str:
    """The good line with other fields."""
    return json.dumps({**json.loads(GOOD), **changes})


BROKEN = {
    "{not json": "not JSON: Expecting property name",
    b'{"messages": "\xff"}': "not UTF-8: invalid start byte at byte 14",
    "[1, 2]": "expected a JSON object, got list",
    record(messages=[]): "messages must be a list of at least one message",
    record(messages=[{"role": "user"}]): "every message must be an object with the texts role and content",
    record(messages=[{"role": "robot", "content": ""}]): "role 'robot' is not one of system, user, assistant",
    record(messages=TWO_TURNS[:1]): "the last message must be the assistant's",
    record(messages=TWO_TURNS[1:]): "roles must be user and assistant in turn, got assistant, user, assistant",
    record(answer_ids=[7, 258]): "answer_ids must be a list of token ids below 258",
    record(answer_ids=[7, True]): "answer_ids must be a list of token ids below 258",
    record(prompt_ids=[7, 258]): "prompt_ids must be a list of token ids below 258",
    record(prompt_ids="Hi"): "prompt_ids must be a list of token ids below 258",
    record(finished=None): "answer_ids needs finished, true or false, got None",
    record(end_id=-1): "end_id must be a token id below 258, got -1",
}


@pytest.mark.parametrize(("line", "reason"), list(BROKEN.items()))
def test_a_broken_line_is_named(tmp_path: Path, line: str | bytes, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", [GOOD, "", line])
    with pytest.raises(ValueError, match="1 broken line, the first is ") as caught:
        read_corpus([path], TOKENIZER)
    assert f"{path}, line 3: {reason}" in str(caught.value)


def test_broken_lines_are_counted_and_skipped_on_demand(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [GOOD, "x", GOOD, "y"])
    with pytest.raises(ValueError, match=r"2 broken lines, the first is .*a\.jsonl, line 2: not JSON"):
        read_corpus([path], TOKENIZER)
    corpus = read_corpus([path], TOKENIZER, skip_broken=True)
    assert len(corpus.examples) == 2
    assert [reason.split(": ")[0] for reason in corpus.broken] == [f"{path}, line 2", f"{path}, line 4"]


def test_no_conversation_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no conversation in "):
        read_corpus([write(tmp_path / "a.jsonl", [""])], TOKENIZER)


def test_a_template_that_rewrites_history_is_refused() -> None:
    class Forgetful(ByteTokenizer):
        """Leaves out earlier answers."""

        def chat(self, messages: Any) -> list[int]:
            return super().chat([message for message in messages if message["role"] == "user"])

    with pytest.raises(ValueError, match="the chat template rewrites what stands before message 1"):
        encode({"messages": TWO_TURNS}, Forgetful(), TOKENIZER.encode)


def test_text_without_ids_needs_a_tokenizer_for_it() -> None:
    with pytest.raises(ValueError, match="no answer_ids"):
        encode({"messages": TWO_TURNS}, TOKENIZER)


def test_dtypes() -> None:
    example = encode(json.loads(GOOD), TOKENIZER)
    assert (example.tokens.dtype, example.supervised.dtype) == (np.int32, np.bool_)
