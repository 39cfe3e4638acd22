"""Answers of the target for training: whole, repeatable, and the same file however often it was interrupted."""

import json
import shutil
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.models.transformer import make_target
from eagle_jax.training.conversations import read_corpus
from experiments import regenerate
from experiments.cli import launch, methods
from experiments.cli.method_settings import MethodSettings
from tests.checkpoint.heads import edit_tensors
from tests.experiments.conftest import CONTEXT, EOS
from tests.reference.decode import decode

STOPS = [EOS, *range(5, 256, 16)]
"""Enough of them that some answers end by themselves and some do not."""
NEW = 12
BATCH = 2
PROMPTS: list[dict[str, Any]] = [
    {"id": "a", "messages": [{"role": "user", "content": "Hello"}]},
    {"id": "b", "messages": [{"role": "user", "content": "Hello"}]},
    {"id": 7, "messages": [{"role": "user", "content": "Sum 1 and 2."}, {"role": "assistant", "content": "Three."}]},
    {"messages": [{"role": "user", "content": "And?" * 4}]},
    {
        "id": "turns",
        "messages": [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "Why?"},
        ],
    },
    {"id": "long", "messages": [{"role": "user", "content": "so " * 9}]},
]
NAMES = ["a", "b", "7", "prompts-4", "turns", "long"]
ANSWERS = [(name, *which) for name in NAMES for which in ((0.0, 0), (1.0, 0), (1.0, 1))]
"""What one run writes: two answers to each prompt at temperature 1, one at 0."""

Key = tuple[str, float, int]


class Task(NamedTuple):
    """A model, and prompts for it."""

    target: Path
    prompts: Path


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


@pytest.fixture(scope="module")
def task(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("regenerate")
    target = Path(shutil.copytree(tiny_model, folder / "target"))
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": STOPS}))
    return Task(target, write_lines(folder / "prompts.jsonl", PROMPTS))


def run(task: Task, output: Path, *more: str) -> int:
    """Answer the prompts; later flags go first."""
    flags = [f"--target={task.target}", f"--prompts={task.prompts}", f"--output={output}", "--quiet"]
    law = ["--temperatures=0,1", "--answers=2", f"--max_new_tokens={NEW}", f"--batch={BATCH}"]
    return launch.call(regenerate.main, regenerate.FLAGS, [*flags, *law, *more])


def refused(capsys: pytest.CaptureFixture[str], task: Task, output: Path, *more: str) -> str:
    """The one line of a run that must fail."""
    assert run(task, output, *more) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def records_of(output: Path) -> dict[Key, dict[str, Any]]:
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").split("\n")[:-1]]
    found = {(record["id"], record["temperature"], record["answer"]): record for record in records}
    assert len(found) == len(records)
    return found


@pytest.fixture(scope="module")
def whole(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    assert run(task, output) == 0
    return output


@pytest.fixture(scope="module")
def model(task: Task) -> LoadedModel:
    return load_target(str(task.target))


def test_every_answer_is_the_targets_own(whole: Path, model: LoadedModel) -> None:
    """Token by token what plain decoding writes, with the noise that prompt, temperature and number name."""
    records = records_of(whole)
    assert set(records) == set(ANSWERS)
    assert set(model.stop_ids) == set(STOPS)
    target = make_target(model.config)
    for key in ANSWERS[::2]:
        record = records[key]
        wanted = decode(
            target,
            model.params,
            model.tokenizer.chat(record["messages"][:-1]),
            temperature=key[1],
            sequence=zlib.crc32("/".join(map(str, key)).encode()),
            stop_ids=STOPS,
            max_new_tokens=NEW,
        )
        end = [record["end_id"]] if record["finished"] else []
        assert record["answer_ids"] + end == wanted
        assert record["finished"] == (wanted[-1] in STOPS)


def test_messages_and_token_ids(whole: Path, model: LoadedModel) -> None:
    records = records_of(whole)
    lost = 0
    for (name, *_), record in records.items():
        given = PROMPTS[NAMES.index(name)]["messages"]
        *before, last = record["messages"]
        assert before == given[: len(before)]
        assert len(before) == len(given) - (given[-1]["role"] == "assistant")
        assert last["role"] == "assistant"
        end = [record["end_id"]] if record["finished"] else []
        assert last["content"] == model.tokenizer.decode(record["answer_ids"] + end)
        assert record["finished"] or len(record["answer_ids"]) == NEW
        lost += model.tokenizer.encode(last["content"], add_special_tokens=False) != record["answer_ids"]
    assert lost, "the text alone would do: the test does not see whether token ids are kept"
    assert {record["finished"] for record in records.values()} == {True, False}


def test_training_reads_them(whole: Path, model: LoadedModel) -> None:
    examples = read_corpus([str(whole)], model.tokenizer).examples
    for example, record in zip(examples, records_of(whole).values(), strict=True):
        end = [record["end_id"]] if record["finished"] else []
        assert example.tokens[example.supervised].tolist() == record["answer_ids"] + end
        prompt = model.tokenizer.chat(record["messages"][:-1])
        assert example.tokens[~example.supervised].tolist() == record["prompt_ids"] == prompt


def test_every_answer_has_noise_of_its_own(whole: Path) -> None:
    records = records_of(whole)
    sampled = [records[name, 1.0, number]["answer_ids"] for name in ("a", "b") for number in (0, 1)]
    assert len(set(map(tuple, sampled))) == 4
    assert records["a", 0.0, 0]["answer_ids"] == records["b", 0.0, 0]["answer_ids"]


def test_answers_depend_on_nothing_else(task: Task, whole: Path, tmp_path: Path) -> None:
    """Neither on the batch, nor on the method, nor on the other prompts."""
    turned = write_lines(tmp_path / "prompts.jsonl", [given for given in PROMPTS[::-1] if "id" in given])
    output = tmp_path / "answers.jsonl"
    assert run(task, output, f"--prompts={turned}", "--method=prompt_lookup", "--depth=2", "--batch=5") == 0
    found = records_of(output)
    assert set(found) == {key for key in ANSWERS if key[0] != "prompts-4"}
    assert found == {key: record for key, record in records_of(whole).items() if key in found}


def test_on_a_mesh(task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows over two devices, the target over two."""
    output = tmp_path / "answers.jsonl"
    assert run(task, output, "--mesh=2x2") == 0
    assert records_of(output) == records_of(whole)
    assert json.loads(output.with_name("answers.jsonl.run.json").read_text()) == json.loads(
        whole.with_name("answers.jsonl.run.json").read_text()
    )
    line = refused(capsys, task, tmp_path / "odd.jsonl", "--mesh=2x2", "--batch=3")
    assert line == "error: a batch of 3 rows does not divide over the 2 devices of mesh axis data"


def test_default_tree_is_that_of_the_rows_of_one_device(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows on one device, or on two."""
    seen: list[int] = []

    def with_tree(
        name: str, settings: MethodSettings, model: LoadedModel, *, batch: int, **_: Any
    ) -> tuple[str, MethodSettings]:
        seen.append(batch)
        return "vanilla", settings

    monkeypatch.setattr(methods, "with_tree", with_tree)
    for number, mesh in enumerate(([], ["--mesh=2x1"])):
        output = tmp_path / f"{number}.jsonl"
        assert run(task, output, "--method=eagle3", "--num_prompts=1", "--temperatures=0", *mesh) == 0
    assert seen == [2, 1]


def test_again(task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(task, tmp_path / "answers.jsonl") == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == whole.read_bytes()
    assert capsys.readouterr().out == f"{len(ANSWERS)} answers requested, 0 there already\nfinished\n"
    assert run(task, tmp_path / "answers.jsonl") == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == whole.read_bytes()
    assert capsys.readouterr().out == f"{len(ANSWERS)} answers requested, {len(ANSWERS)} there already\nfinished\n"


@pytest.mark.parametrize(("lines", "rest"), [(0, 9), (5, 60), (17, -1)])
def test_goes_on_after_a_crash(
    task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: int, rest: int
) -> None:
    """Cut behind a number of whole lines and some bytes of the next (-1: all but its newline)."""
    output = tmp_path / "answers.jsonl"
    shutil.copy(whole.with_name("answers.jsonl.run.json"), tmp_path)
    there = whole.read_bytes().split(b"\n")
    output.write_bytes(b"".join(line + b"\n" for line in there[:lines]) + there[lines][: rest if rest >= 0 else None])
    assert run(task, output) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert f"{len(ANSWERS)} answers requested, {lines} there already\n" in capsys.readouterr().out


def test_in_pieces(task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "answers.jsonl"
    for left in range(len(ANSWERS) - BATCH, 0, -BATCH):
        assert run(task, output, "--time_limit=0") == 0
        assert capsys.readouterr().out.endswith(f"\nstopped, {left} answers left; the same command goes on\n")
    assert run(task, output, "--time_limit=0") == 0
    assert capsys.readouterr().out.endswith("\nfinished\n")
    assert output.read_bytes() == whole.read_bytes()


def test_more_prompts_later(task: Task, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    assert run(task, output, "--num_prompts=2", "--answers=1") == 0
    first = output.read_bytes()
    assert set(records_of(output)) == {(name, temperature, 0) for name in ("a", "b") for temperature in (0.0, 1.0)}
    assert run(task, output) == 0
    assert output.read_bytes().startswith(first)
    assert records_of(output) == records_of(whole)


@pytest.mark.parametrize("flag", ["--seed=1", "--max_new_tokens=13", "--dtype=bfloat16"])
def test_another_setting_for_the_same_file(
    task: Task, whole: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    before = whole.read_bytes()
    assert "answers.jsonl is another run: its " in refused(capsys, task, whole, flag)
    assert whole.read_bytes() == before


def test_other_weights_under_the_same_name(
    task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target that was trained on meanwhile does not add to the answers of the one before."""
    target = Path(shutil.copytree(task.target, tmp_path / "target"))
    output = tmp_path / "answers.jsonl"
    here = f"--target={target}"
    assert run(task, output, here, "--num_prompts=1") == 0
    before = output.read_bytes()
    edit_tensors(target, lambda tensors: tensors.update({"model.norm.weight": tensors["model.norm.weight"] + 1}))
    assert "answers.jsonl is another run: its weights is " in refused(capsys, task, output, here)
    assert output.read_bytes() == before


def test_broken_lines_are_left_out_on_demand(
    task: Task, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", ["{not json", PROMPTS[0], {"id": "x"}, PROMPTS[5]])
    output = tmp_path / "answers.jsonl"
    assert "2 broken lines, the first is " in refused(capsys, task, output, f"--prompts={path}")
    limit = len("Hello\n")
    flags = ["--skip_broken", f"--max_prompt_tokens={limit}", "--temperatures=0"]
    assert run(task, output, f"--prompts={path}", *flags) == 0
    out = capsys.readouterr().out
    assert f"left out 2 broken lines, the first: {path}, line 1: not JSON" in out
    assert f"left out 1 prompts of more than {limit} tokens\n" in out
    assert records_of(output) == {("a", 0.0, 0): records_of(whole)["a", 0.0, 0]}


def test_prompts_leave_room_for_the_answer(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "answers.jsonl"
    room = len("Hello\n")
    flags = ["--temperatures=0", f"--max_new_tokens={CONTEXT - room}"]
    assert run(task, output, *flags) == 0
    assert f"left out 4 prompts of more than {room} tokens\n" in capsys.readouterr().out
    assert {key[0] for key in records_of(output)} == {"a", "b"}
    line = refused(capsys, task, tmp_path / "other.jsonl", f"--max_new_tokens={CONTEXT}")
    assert line == (
        f"error: --max_new_tokens={CONTEXT} leaves no room for a prompt in the model's context of {CONTEXT}"
    )
    assert "no prompt of at most 3 tokens in " in refused(
        capsys, task, tmp_path / "other.jsonl", "--max_prompt_tokens=3"
    )
    assert not (tmp_path / "other.jsonl").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--prompts=", "give --prompts"),
        ("--output=", "give --output"),
        ("--output=gs://bucket/answers.jsonl", "gs://bucket/answers.jsonl is an address, give a local or mounted path"),
        ("--temperatures=", "give --temperatures"),
        ("--temperatures=0,warm", "--temperatures takes numbers separated by commas, got '0,warm'"),
        ("--temperatures=-1", "temperature must be between 0 and 10000.0, got -1.0"),
        ("--temperatures=1,0,1.0", "a temperature is there twice: 1.0, 0.0, 1.0"),
        ("--answers=0", "--answers must be at least 1, got 0"),
        ("--num_prompts=0", "--num_prompts must be at least 1, got 0"),
        ("--num_prompts=-1", "--num_prompts must be at least 1, got -1"),
        ("--batch=0", "--batch must be at least 1, got 0"),
        ("--max_new_tokens=0", "max_new_tokens must be between 1 and 2147483647, got 0"),
        ("--seed=-1", "seed must be between 0 and 4294967295, got -1"),
        ("--method=eagle9", "method 'eagle9' is not one of "),
        ("--prompts=no/such.jsonl", "no/such.jsonl: No such file or directory"),
        ("--output=no/such/answers.jsonl", "--output=no/such/answers.jsonl must name a file in a folder that exists"),
    ],
)
def test_bad_flags(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, message: str) -> None:
    assert message in refused(capsys, task, tmp_path / "answers.jsonl", flag)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_chat_template(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = Path(shutil.copytree(task.target, tmp_path / "target"))
    declared = json.loads((target / "tokenizer_config.json").read_text())
    del declared["chat_template"]
    (target / "tokenizer_config.json").write_text(json.dumps(declared))
    line = refused(capsys, task, tmp_path / "answers.jsonl", f"--target={target}")
    assert line.endswith("has no chat template, so it does not answer conversations")


def test_benchmarks_are_left_out(task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both prompts that a benchmark asks, though in another case, are counted and get no answer."""
    questions = write_lines(tmp_path / "question.jsonl", [{"turns": ["hello!"]}, {"turns": ["What?", "why"]}])
    output = tmp_path / "answers.jsonl"
    assert run(task, output, f"--benchmarks={questions}", "--temperatures=0") == 0
    assert "left out 3 prompts that repeat a question of a benchmark" in capsys.readouterr().out
    assert [key[0] for key in records_of(output)] == ["7", "prompts-4", "long"]
    assert "question.jsonl" in refused(capsys, task, output, f"--benchmarks={tmp_path / 'no' / 'question.jsonl'}")
