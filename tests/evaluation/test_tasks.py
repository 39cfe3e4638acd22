import json
import re
from pathlib import Path

import pytest

from eagle_jax.evaluation.tasks import Question, from_prompt, read_questions, read_task, read_tasks

SPEC_BENCH = (
    '{"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."], "reference": ["x"]}\n'
    '{"question_id": 321, "category": "qa", "turns": ["Who?\\u2028Where?"]}'  # no newline at the end
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "question.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_spec_bench(tmp_path: Path) -> None:
    assert read_questions(write(tmp_path, SPEC_BENCH)) == [
        Question(81, "writing", ("Write.", "Rewrite.")),
        Question(321, "qa", ("Who?\u2028Where?",)),
    ]


def test_reads_plain_prompts_and_skips_blank_lines(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "One"}\r\n\n{"prompt": "Two\u2028lines"}\n')
    assert read_questions(path) == [Question(0, "", ("One",)), Question(1, "", ("Two\u2028lines",))]


def test_reads_conversations(tmp_path: Path) -> None:
    """Training prompts, an answer at the end or not: the user's messages are the turns."""
    asked = (
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "Two"},
    )
    lines = [json.dumps({"id": "a-7", "messages": messages}) for messages in (asked[:1], asked[:2], asked)]
    assert read_questions(write(tmp_path, "\n".join(lines))) == [
        Question(0, "", ("One",)),
        Question(1, "", ("One",)),
        Question(2, "", ("One", "Two")),
    ]


def test_an_id_may_be_a_text(tmp_path: Path) -> None:
    path = write(tmp_path, '{"question_id": "HumanEval/0", "turns": ["def f():"]}')
    assert read_questions(path) == [Question("HumanEval/0", "", ("def f():",))]


def test_takes_the_first_few(tmp_path: Path) -> None:
    path = write(tmp_path, SPEC_BENCH)
    assert [question.question_id for question in read_questions(path, 1)] == [81]
    assert len(read_questions(path, 2)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no question"),
        ("\n \n", "holds no question"),
        ('{"prompt": "One"}\n{"prompt": ', "line 2: not JSON: Expecting value at column 12"),
        ("[1]", "line 1: expected a JSON object, got list"),
        ("{}", "expected the key 'turns', 'prompt' or 'messages', got none"),
        ('{"question": "Who?"}', "expected the key 'turns', 'prompt' or 'messages', got question"),
        ('{"messages": [{"role": "assistant", "content": "1"}]}', "roles must be user and assistant in turn"),
        ('{"prompt": 3}', "prompt must be str, got 3"),
        ('{"prompt": " \\n"}', "line 1: the prompt is empty"),
        ('{"turns": "Who?"}', "turns must be list, got 'Who?'"),
        ('{"turns": []}', "turns must be texts, one at least and none empty"),
        ('{"turns": ["Who?", ""]}', "turns must be texts, one at least and none empty"),
        ('{"turns": ["Who?"], "question_id": [1]}', "question_id must be int or str, got [1]"),
        ('{"turns": ["Who?"], "question_id": true}', "question_id must be int or str, got True"),
        ('{"turns": ["Who?"], "category": null}', "category must be str, got None"),
    ],
)
def test_refuses_broken_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"question\.jsonl") as caught:
        read_questions(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opening", ["[", '{"turns":'])
def test_refuses_lines_that_are_nested_too_deeply(tmp_path: Path, opening: str) -> None:
    with pytest.raises(ValueError, match=rf"line 2: nested too deeply to be read: '{re.escape(opening)}.*'\.\.\.$"):
        read_questions(write(tmp_path, '{"prompt": "One"}\n' + 100_000 * opening))


def test_refuses_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ValueError, match="line 1: not UTF-8: invalid start byte at byte 12"):
        read_questions(path)
    path.write_bytes('{"prompt": "One"}\n'.encode("utf-16"))
    with pytest.raises(ValueError, match="line 1: it is UTF-16, save it as UTF-8"):
        read_questions(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 135\n")
    with pytest.raises(ValueError, match=r"question\.jsonl is a Git LFS pointer, not the file"):
        read_questions(path)


def test_reads_files_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "question.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "One"}\r\n{"prompt": "Two"}\r\n')
    assert [question.turns for question in read_questions(path)] == [("One",), ("Two",)]


@pytest.mark.parametrize("count", [0, -1, 3])
def test_refuses_impossible_counts(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match=rf"num_prompts is {count}, .* holds 2 questions"):
        read_questions(write(tmp_path, SPEC_BENCH), count)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_questions(tmp_path / "none.jsonl")


def test_empty_prompt() -> None:
    assert from_prompt(" a ").turns == (" a ",)
    with pytest.raises(ValueError, match="the prompt is empty: ' '"):
        from_prompt(" ")


def folder_of_tasks(tmp_path: Path) -> Path:
    for name, count in (("many", 10), ("few", 2)):
        (tmp_path / name).mkdir()
        lines = [f'{{"question_id": {100 + n}, "turns": ["Question {n}"]}}' for n in range(count)]
        (tmp_path / name / "question.jsonl").write_text("\n".join(lines))
    (tmp_path / "none").mkdir()
    return tmp_path


@pytest.mark.parametrize("count", [1, 3, 10])
def test_prompts_of_a_task_are_its_first_ones(tmp_path: Path, count: int) -> None:
    actual = read_task(folder_of_tasks(tmp_path), "many", count)
    assert {place: question.question_id for place, question in actual.items()} == {n: 100 + n for n in range(count)}


@pytest.mark.parametrize(
    ("count", "places"), [(1, [0]), (3, [0, 3, 4]), (5, [0, 1, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5]), (7, [*range(7)])]
)
def test_prompts_spread_over_categories(tmp_path: Path, count: int, places: list[int]) -> None:
    categories = ["writing", "writing", "writing", "roleplay", "math", "math", "math"]
    lines = [json.dumps({"category": category, "turns": [f"Question {n}"]}) for n, category in enumerate(categories)]
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "question.jsonl").write_text("\n".join(lines))
    actual = read_tasks(tmp_path, ["task"], count, spread=True)["task"]
    assert {place: question.turns for place, question in actual.items()} == {n: (f"Question {n}",) for n in places}


def test_spread_over_one_category_is_the_start(tmp_path: Path) -> None:
    folder = folder_of_tasks(tmp_path)
    assert read_task(folder, "many", 4, spread=True) == read_task(folder, "many", 4)


def test_several_tasks(tmp_path: Path) -> None:
    actual = read_tasks(folder_of_tasks(tmp_path), ["few", "many"], 2)
    assert {name: list(questions) for name, questions in actual.items()} == {"few": [0, 1], "many": [0, 1]}


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("none", 1, "task 'none' has no .*none/question.jsonl; the tasks in .* are few, many"),
        ("few", 3, "num_prompts is 3, .* holds 2 questions"),
        ("few", 0, "num_prompts is 0"),
    ],
)
def test_tasks_that_cannot_be_read(tmp_path: Path, name: str, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_task(folder_of_tasks(tmp_path), name, count)


def test_a_folder_without_tasks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the tasks in .* are none"):
        read_task(tmp_path, "few", 1)
