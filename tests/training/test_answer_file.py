"""The file of answers: whole lines, one writer, one set of settings; and the order in which it grows."""

import json
from pathlib import Path
from typing import Any

import pytest

from eagle_jax.training.answer_file import AnswerFile, Request, in_order, record_of, requests_for
from eagle_jax.training.prompt_files import Prompt

SETTINGS = {"target": "toy", "seed": 0}
SIZES = {"a": 9, "b": 2, "c": 5, "d": 1}
PROMPTS = [Prompt(name, [{"role": "user", "content": name}], [1] * size) for name, size in SIZES.items()]
REQUESTS = requests_for(PROMPTS, [0.0, 1.0], 2)
RECORDS = [record_of(request, [5, 6, 2], "text\u2028", stop_ids=[2]) for request in REQUESTS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


@pytest.fixture
def written(path: Path) -> Path:
    with AnswerFile(path, SETTINGS) as file:
        assert file.missing(REQUESTS) == REQUESTS
        file.write(RECORDS[:5])
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.parent.iterdir()}


def test_requests() -> None:
    """Greedy answers are all the same: one of them is enough."""
    assert [request.key for request in REQUESTS[:3]] == [("a", 0.0, 0), ("a", 1.0, 0), ("a", 1.0, 1)]
    assert len({request.sequence for request in REQUESTS}) == len(REQUESTS) == 12
    with pytest.raises(ValueError, match=r"a temperature is there twice: 1\.0, 1\.0"):
        requests_for(PROMPTS, [1.0, 1.0], 1)
    with pytest.raises(ValueError, match="at least 1 answer must be requested, got 0"):
        requests_for(PROMPTS, [1.0], 0)


def test_order() -> None:
    ordered = in_order([Request(prompt, 0.0, 0) for prompt in PROMPTS], window=2)
    assert [request.prompt.identifier for request in ordered] == ["b", "a", "d", "c"]


def test_records() -> None:
    finished, cut = RECORDS[0], record_of(REQUESTS[0], [5, 6], "text", stop_ids=[2])
    assert (finished["answer_ids"], finished["finished"], finished["end_id"]) == ([5, 6], True, 2)
    assert (cut["answer_ids"], cut["finished"], "end_id" in cut) == ([5, 6], False, False)
    assert finished["prompt_ids"] == PROMPTS[0].tokens
    assert finished["messages"][-1] == {"role": "assistant", "content": "text\u2028"}


@pytest.mark.parametrize("cut", [1, 20, None])
def test_what_a_crash_left_of_a_line_is_cut_off(written: Path, cut: int | None) -> None:
    """Even all of it but the newline."""
    whole = written.read_bytes()
    written.write_bytes(whole + json.dumps(RECORDS[5]).encode()[:cut])
    with AnswerFile(written, SETTINGS) as file:
        assert file.missing(REQUESTS) == REQUESTS[5:]
        file.write(RECORDS[5:])
    with AnswerFile(written, SETTINGS) as file:
        assert file.missing(REQUESTS) == []
    assert written.read_bytes().startswith(whole)


@pytest.mark.parametrize(
    ("settings", "line", "message"),
    [
        ({**SETTINGS, "seed": 1}, None, "answers.jsonl is another run: its seed is 0, not 1; nothing was written"),
        (
            SETTINGS,
            {"id": "a"},
            "answers.jsonl, line 6: it has no answer, messages, temperature; nothing was written",
        ),
        (SETTINGS, [], "answers.jsonl, line 6: expected a JSON object, got list; nothing was written"),
    ],
)
def test_refused(written: Path, settings: dict[str, Any], line: Any, message: str) -> None:
    if line is not None:
        with written.open("a") as file:
            file.write(json.dumps(line) + "\n")
    before = contents(written)
    with pytest.raises(ValueError, match=message):
        AnswerFile(written, settings)
    assert contents(written) == before


def test_another_prompt_under_the_same_id(written: Path) -> None:
    other = PROMPTS[0]._replace(messages=[{"role": "user", "content": "other"}])
    with AnswerFile(written, SETTINGS) as file, pytest.raises(ValueError, match="answers another prompt of id 'a'"):
        file.missing(requests_for([other], [1.0], 1))


def test_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="gs://bucket/answers is an address, give a local or mounted path"):
        AnswerFile("gs://bucket/answers", SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_something_else(path: Path) -> None:
    path.write_text("mine\n")
    with pytest.raises(ValueError, match=r"is there already, without answers.jsonl.run.json: nothing was written"):
        AnswerFile(path, SETTINGS)
    assert contents(path) == {"answers.jsonl": b"mine\n"}


def test_one_process_at_a_time(written: Path) -> None:
    before = contents(written)
    with AnswerFile(written, SETTINGS):
        written.write_bytes(before[written.name] + b'{"id"')  # the other one is about to write a line
        with pytest.raises(ValueError, match="another process is writing it"):
            AnswerFile(written, SETTINGS)
        assert written.read_bytes() == before[written.name] + b'{"id"'
