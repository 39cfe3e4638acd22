"""What a journal keeps, and what it refuses."""

import json
import os
from pathlib import Path

import pytest

from eagle_jax.journal import Journal, check_same, write_rows

SETTINGS = {"target": "toy", "config": {"seeds": (0, 1), "methods": {"a": {"nodes": 4}}}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl.journal"


def test_what_was_added_is_there_again(path: Path) -> None:
    with Journal(path, SETTINGS) as journal:
        journal.add({"key": [1]})
        journal.add({"key": [2], "text": "a\u2028b\n"})
    with Journal(path, SETTINGS) as journal:
        assert journal.records == [{"key": [1]}, {"key": [2], "text": "a\u2028b\n"}]
        journal.add({"key": [3]})
        assert len(journal.records) == 3
    assert len(path.read_text().split("\n")) == 5


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_line_that_a_crash_cut_short_is_forgotten(path: Path, kept: int) -> None:
    with Journal(path, SETTINGS) as journal:
        for number in range(3):
            journal.add({"key": [number]})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: kept + 1]) + (lines[kept + 1][:-1] if kept < 3 else b""))
    with Journal(path, SETTINGS) as journal:
        assert journal.records == [{"key": [number]} for number in range(kept)]
        journal.add({"key": [9]})
    with Journal(path, SETTINGS) as journal:
        assert len(journal.records) == kept + 1


@pytest.mark.parametrize("size", [0, 1, 5, 20])
def test_a_first_line_that_a_crash_cut_short(path: Path, size: int) -> None:
    Journal(path, SETTINGS).__exit__(None, None, None)
    os.truncate(path, size)
    with Journal(path, SETTINGS) as journal:
        assert journal.records == []


def test_other_settings(path: Path) -> None:
    with Journal(path, SETTINGS) as journal:
        journal.add({"key": [1]})
    before = path.read_bytes() + b'{"cut'
    path.write_bytes(before)
    other = json.loads(json.dumps(SETTINGS))
    other["config"]["methods"]["a"]["nodes"] = 8
    with pytest.raises(ValueError, match=r"its config\.methods\.a\.nodes is 4, not 8; nothing was written"):
        Journal(path, other)
    assert path.read_bytes() == before


def test_settings_that_grow(path: Path) -> None:
    """Entries may join a mapping that says so; none may change or leave, and older ones are still known later."""

    def opened(**methods: int) -> Journal:
        return Journal(path, {"seed": 0, "methods": methods}, growing=("methods",))

    with opened(a=1) as journal:
        journal.add({"key": [1]})
    with opened(a=1, b=2) as journal:
        journal.add({"key": [2]})
    with opened(a=1, b=2, c=3) as journal:
        assert journal.records == [{"key": [1]}, {"key": [2]}]
    before = path.read_bytes()
    assert before.count(b"settings") == 3
    for methods, message in (
        ({"a": 1, "b": 5, "c": 3}, r"its methods\.b is 2, not 5"),
        ({"a": 1, "c": 3}, r"its methods\.b is 2, not None"),
        ({}, r"its methods is \{'a': 1, 'b': 2, 'c': 3\}, not \{\}|its methods\.a is 1, not None"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(**methods)
    with pytest.raises(ValueError, match="its methods"):
        Journal(path, {"seed": 0, "methods": {"a": 1, "b": 2, "c": 3, "d": 4}})  # grows nowhere
    assert path.read_bytes() == before


def test_a_mapping_that_earlier_files_lack(path: Path) -> None:
    with Journal(path, {"seed": 0}) as journal:
        journal.add({"key": [1]})
    for _ in range(2):
        with Journal(path, {"seed": 0, "files": {"a": "f00"}}, growing=("files",)) as journal:
            assert len(journal.records) == 1
    assert path.read_bytes().count(b"settings") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some notes", "is no journal"),
        ("some notes\n", "line 1: not a line of a journal"),
        ('{"key": [1]}\n', "line 1: not a line of a journal"),
        ('{"settings": {}}\n[1]\n', "line 2: not a line of a journal"),
        ('{"settings": {}}\n{"key"\n', "line 2: not a line of a journal"),
    ],
)
def test_files_that_are_no_journal(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        Journal(path, SETTINGS)
    assert "nothing was written" in str(caught.value)
    assert path.read_text() == text


def test_one_process_at_a_time(path: Path) -> None:
    with Journal(path, SETTINGS), pytest.raises(ValueError, match="another process is writing it"):
        Journal(path, SETTINGS)


def test_numbers_that_json_does_not_have(path: Path) -> None:
    with Journal(path, SETTINGS) as journal, pytest.raises(ValueError, match="not JSON compliant"):
        journal.add({"key": float("nan")})
    with Journal(path, SETTINGS) as journal:
        assert journal.records == []


def test_rows_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"a": 1}])
    write_rows(path, [{"a": 1}, {"a": 2}])
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_rows(path, [{"a": float("inf")}])
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize(
    ("found", "wanted", "difference"),
    [
        ({"a": 1, "b": {"c": [1]}}, {"b": {"c": [2]}}, "its a is 1, not None"),
        ({"b": {"c": [1], "d": 2}}, {"b": {"c": [2], "d": 2}}, r"its b.c is \[1\], not \[2\]"),
        ({"b": {}}, {"b": {}, "e": 3}, "its e is None, not 3"),
    ],
)
def test_the_first_difference_is_named(found: object, wanted: object, difference: str) -> None:
    with pytest.raises(ValueError, match=rf"^runs/a is another run: {difference}; nothing was written$"):
        check_same("runs/a", found, wanted)
    check_same("runs/a", found, found)
