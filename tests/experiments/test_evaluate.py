"""The evaluation script: its rows, going on after a crash, and what it refuses. The target is tiny and random."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

import experiments
from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.drafters import make_prompt_lookup
from eagle_jax.evaluation.rows import TIMINGS
from eagle_jax.evaluation.turns import TURN_STRIDE
from eagle_jax.generator import Generator
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import git_commit
from experiments import evaluate
from experiments.cli import launch
from experiments.cli.evaluation_config import read_config

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # of ml_collections

ROOT = Path(__file__).parents[2]

CONFIG = """
import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.target = "TARGET"
    config.dtype = "float32"
    config.tasks = ("talk", "sums")
    config.num_prompts = 2
    config.turns = "all"
    config.max_new_tokens = 12
    config.temperatures = (0.0, 1.0)
    config.seeds = (0, 3)
    config.warm_ups = 1
    config.methods = [
        dict(label="lookup", method="prompt_lookup", depth=2),
        dict(label="short", method="prompt_lookup", depth=0, share_noise=False, temperatures=(1.0,)),
    ]
    return config
"""
LONG = "x" * 140  # no room behind it in the tiny model's context
TALK = [["Hello hello, who is there?", "And then?"], ["Tell me of bees.", LONG], ["Not asked."], ["Not asked."]]
SUMS = [["1 + 1 = 2, 2 + 2 ="], ["3 + 4 ="]]
CELLS = 2 * 2 * (1 + 2)  # tasks, seeds, methods at both temperatures


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, one of them with conversations of two turns."""
    folder = tmp_path_factory.mktemp("data")
    for name, texts in (("talk", TALK), ("sums", SUMS)):
        (folder / name).mkdir()
        lines = [json.dumps({"question_id": 80 + n, "category": name, "turns": t}) for n, t in enumerate(texts)]
        (folder / name / "question.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def config(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file for the tiny model."""
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(CONFIG.replace("TARGET", str(tiny_model)))
    return path


def arguments(config: Path, data: Path, output: Path) -> list[str]:
    return [f"--config={config}", f"--data={data}", f"--output={output}", "--quiet"]


def run(config: Path, data: Path, output: Path) -> int:
    return launch.call(evaluate.main, evaluate.FLAGS, arguments(config, data, output))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(config: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a run that nothing interrupts."""
    output = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    assert run(config, data, output) == 0
    return output


def test_a_row_for_each_cell(undisturbed: Path, tiny_model: Path) -> None:
    rows = read(undisturbed)
    found = [(row["task"], row["temperature"], row["seed"], row["label"]) for row in rows]
    assert len(found) == len(set(found)) == CELLS
    assert found[:3] == [("talk", 0, 0, "lookup"), ("sums", 0, 0, "lookup"), ("talk", 0, 3, "lookup")]
    for row in rows:
        assert row["identical_prompts"] == row["prompts"] == 2
        assert (row["turns"], row["turns_left_out"]) == ((3, 1) if row["task"] == "talk" else (2, 0))
        assert row["tau"] == (row["tokens"] - row["turns"]) / row["rounds"]
        assert sum(row["accepted"]) == row["rounds"]
        assert row["plain_tokens"] == row["tokens"]
        assert row["speedup_quartiles"][0] <= row["speedup"] <= row["speedup_quartiles"][1]
        assert row["efficiency"] == pytest.approx(row["speedup"] / row["tau"])
        assert all(row[name] is not None for name in TIMINGS)
    assert (rows[-1]["label"], rows[-1]["method"], rows[-1]["share_noise"]) == ("short", "prompt_lookup", False)
    assert (rows[-1]["target"], rows[-1]["dtype"], rows[-1]["rule"]) == (str(tiny_model), "float32", "match")
    assert rows[-1]["tree"] == {"nodes": 2, "depth": 0, "top_k": 1}
    assert rows[-1]["commit"] == git_commit()


def test_conversations_are_played_out(undisturbed: Path, tiny_model: Path) -> None:
    """The rows of a cell against the generator itself, turn by turn."""
    model = load_target(str(tiny_model))
    writer = Generator(make_target(model.config), model.params, make_prompt_lookup(3), capacity=512)

    def answer(messages: list[str], sequence: int) -> Any:
        prompt = model.tokenizer.chat([{"role": "user", "content": text} for text in messages])  # roles leave no trace
        options = {"temperature": 1.0, "seed": 3, "stop_ids": model.stop_ids, "max_new_tokens": 12}
        return writer.generate([prompt], sequence=[sequence], **options)

    first = answer(TALK[0][:1], 0)
    said = model.tokenizer.decode(first.tokens[0])
    turns = [first, answer([TALK[0][0], said, TALK[0][1]], TURN_STRIDE), answer(TALK[2][:1], 2)]
    (row,) = (
        row
        for row in read(undisturbed)
        if (row["task"], row["temperature"], row["seed"], row["label"]) == ("talk", 1.0, 3, "lookup")
    )
    assert row["tokens"] == sum(turn.num_tokens for turn in turns)
    assert row["rounds"] == sum(turn.rounds[0] for turn in turns)
    assert row["accepted"] == sum(turn.accepted[0] for turn in turns).tolist()


DYING = """
import os, signal
from eagle_jax import journal
from experiments import evaluate
from experiments.cli import launch

add = journal.Journal.add

def add_or_die(self, record):
    if len(self.records) == 5:
        with self._file.path.open("ab") as file:
            file.write(b'{"key": ["talk", 1.0')
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, record)

journal.Journal.add = add_or_die
launch.run(evaluate.main, evaluate.FLAGS)
"""


def test_going_on_after_kill_9(undisturbed: Path, config: Path, data: Path, tmp_path: Path) -> None:
    output, journal = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.journal"
    command = [sys.executable, "-c", DYING, *arguments(config, data, output)]
    killed = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, timeout=300, check=False)
    assert killed.returncode == -9, killed.stderr
    assert len(read(output)) == 2  # the two finished blocks of the task, at T = 0
    before = journal.read_bytes()
    assert before.count(b"\n") == 1 + 5
    assert run(config, data, output) == 0
    after = journal.read_bytes()
    assert after.startswith(before[: before.rindex(b"\n") + 1])
    assert after.count(b"\n") == undisturbed.with_name("rows.jsonl.journal").read_bytes().count(b"\n")

    assert untimed(output) == untimed(undisturbed)


def as_of_old(line: str) -> str:
    """A line of a journal as the version before groups and modes wrote it."""
    record = json.loads(line)
    if "settings" in record:
        record["settings"].pop("files", None)
        return json.dumps(record)
    del record["conversations"]
    for turn in record["turns"]:
        turn |= {"sequence": turn["sequence"][0], "prompt_tokens": turn["prompt_tokens"][0]}
        del turn["rows"]
    return json.dumps(record)


def untimed(path: Path) -> list[dict[str, Any]]:
    volatile = {*TIMINGS, "commit"}  # somebody may commit while the tests run
    return [{name: value for name, value in row.items() if name not in volatile} for row in read(path)]


def test_a_journal_of_an_earlier_version_continues(undisturbed: Path, config: Path, data: Path, tmp_path: Path) -> None:
    output, journal = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.journal"
    lines = undisturbed.with_name("rows.jsonl.journal").read_text().splitlines()
    journal.write_text("".join(as_of_old(line) + "\n" for line in lines[:-2]))
    assert run(config, data, output) == 0
    assert untimed(output) == untimed(undisturbed)
    assert len(journal.read_text().splitlines()) == len(lines)


def test_methods_may_join(undisturbed: Path, config: Path, data: Path, tmp_path: Path) -> None:
    """Beside those that are there, which stay as they are; none may leave or change."""
    for name in ("rows.jsonl", "rows.jsonl.journal"):
        (tmp_path / name).write_bytes((undisturbed.parent / name).read_bytes())
    more = tmp_path / "more.py"
    joined = '        dict(label="new", method="prompt_lookup", depth=1, temperatures=(0.0,)),\n    ]\n'
    more.write_text(config.read_text().replace("    ]\n", joined))
    before = read(undisturbed)
    for _ in range(2):
        assert run(more, data, tmp_path / "rows.jsonl") == 0
        rows = read(tmp_path / "rows.jsonl")
        assert [row for row in rows if row["label"] != "new"] == before
        assert len(rows) == CELLS + 2 * 2
    assert run(config, data, tmp_path / "rows.jsonl") == 2
    assert read(tmp_path / "rows.jsonl") == rows


@pytest.fixture
def batched(config: Path, tmp_path: Path) -> Path:
    """The config two conversations at a time, at T = 1 with top-p and min-p."""
    path = tmp_path / "batched.py"
    more = (
        "    config.batch, config.top_p, config.temperatures, config.seeds = 2, 0.9, (1.0,), (0,)\n"
        "    config.min_p = 0.05\n    return config\n"
    )
    path.write_text(config.read_text().replace("    return config\n", more))
    return path


def test_batches(batched: Path, config: Path, data: Path, tmp_path: Path) -> None:
    """The tokens and rounds of one at a time."""
    single = tmp_path / "single.py"
    single.write_text(batched.read_text().replace("= 2, 0.9", "= 1, 0.9"))
    for name in (batched, single):
        assert run(name, data, tmp_path / f"{name.stem}.jsonl") == 0
    together, alone = (untimed(tmp_path / f"{name}.jsonl") for name in ("batched", "single"))
    assert {row["batch"] for row in together} == {2}
    assert [{**row, "batch": 1} for row in together] == alone
    assert {(row["top_p"], row["min_p"], row["identical_prompts"]) for row in together} == {(0.9, 0.05, 2)}


def test_a_difference_that_no_rounding_explains(
    batched: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the second conversation, by the drafting method: counted, with its margin, and an error where wanted."""
    generate = Generator.generate

    def wrong(self: Generator, prompts: Any, **options: Any) -> Any:
        written = generate(self, prompts, **options)
        if self.drafter.nodes == 4:
            written.tokens[1][3] = (written.tokens[1][3] + 1) % 257
        return written

    monkeypatch.setattr(Generator, "generate", wrong)
    output = tmp_path / "rows.jsonl"
    assert run(batched, data, output) == 0
    rows = [row for row in read(output) if row["label"] == "lookup"]
    assert all(row["identical_prompts"] == 1 for row in rows)
    assert all(row["first_difference_margin"] is None or row["first_difference_margin"] > 0 for row in rows)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        launch.call(evaluate.main, evaluate.FLAGS, [*arguments(batched, data, output), "--near_tie=0"])
    wrong_cells = "lookup on talk at T = 1, lookup on sums at T = 1"
    assert capsys.readouterr().err.endswith(f"not plain decoding's text: {wrong_cells}\n")


def test_commands_of_earlier_versions() -> None:
    """One line that names the new command."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.exactness", "--laws=0"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    new = "experiments.evaluate --config=configs/eval/exactness.py"
    assert done.stderr == f"error: python -m experiments.exactness is now python -m {new}\n"
    for old, new in experiments.MOVED.items():
        module, *flags = new.split()
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
        assert not (ROOT / "experiments" / f"{old}.py").exists()
        for flag in flags:
            path = flag.partition("--config=")[2]
            assert not path or (ROOT / path).is_file()


def test_a_finished_run_changes_nothing(
    undisturbed: Path, config: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = undisturbed.read_bytes()
    assert run(config, data, undisturbed) == 0
    assert undisturbed.read_bytes() == before
    captured = capsys.readouterr()
    assert "Compiling" not in captured.err
    assert "| lookup | 4, 2, 1 |" in captured.out


def refused(capsys: pytest.CaptureFixture[str], config: Path, data: Path, output: Path) -> str:
    """The one line of a run that must fail."""
    assert run(config, data, output) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_new_tokens = 12", "max_new_tokens = 13", "its max_new_tokens is 12, not 13; nothing was written"),
        ("depth=2", "depth=3", "its methods.lookup.depth is 2, not 3"),
        ("(0, 3)", "(0, 4)", "its seeds is [0, 3], not [0, 4]"),
        ("num_prompts = 2", "num_prompts = 1", "its num_prompts is 2, not 1"),
    ],
)
def test_an_output_of_other_settings(
    old: str,
    new: str,
    message: str,
    undisturbed: Path,
    config: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other.py"
    other.write_text(config.read_text().replace(old, new))
    before = undisturbed.read_bytes()
    assert message in refused(capsys, other, data, undisturbed)
    assert undisturbed.read_bytes() == before


def test_an_output_of_other_questions(
    undisturbed: Path, config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("talk", "sums"):
        (tmp_path / name).mkdir()
        text = (data / name / "question.jsonl").read_text()
        (tmp_path / name / "question.jsonl").write_text(text.replace("Hello hello", "Hullo hullo"))
    assert "its questions.talk is '" in refused(capsys, config, tmp_path, undisturbed)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"prompt_lookup"', '"eagle9"', "method 'eagle9' is not one of vanilla, prompt_lookup"),
        ('"sums"', '"soms"', "task 'soms' has no DATA/soms/question.jsonl; the tasks in DATA are sums, talk"),
        ("num_prompts = 2", "num_prompts = 3", "num_prompts is 3, DATA/sums/question.jsonl holds 2 questions"),
        ("num_prompts = 2", "num_prompts = 0", "num_prompts is 0"),
        ("depth=2", "dept=2", "methods[0] has the unknown field 'dept'; known: label, method, rule"),
        ('label="short"', 'label="lookup"', "two methods are labelled 'lookup'"),
        ('label="short"', 'label="plain"', "a method cannot be labelled 'plain'"),
        ('label="short", ', "", "methods[1] needs a label, got None"),
        ("depth=2", "depth=2, top_k=3", "--top_k must be 1, got 3"),
        ("depth=2", "depth=2, reranks=False", "only eagle2 and eagle3 have parts to leave out, got 'prompt_lookup'"),
        ("depth=2", "depth=2, draws=True", "only eagle2 and eagle3 take draws, got 'prompt_lookup'"),
        ("depth=2", 'depth=2, rule="exact"', "methods[0]: rule must be one of match, residual, got 'exact'"),
        ("depth=2", 'depth=2, rule="residual"', "rule 'residual' needs a draft of its own randomness"),
        ("(0.0, 1.0)\n", "(0.0, -1.0)\n", "temperature must be between 0 and 10000.0, got -1.0"),
        ("(0, 3)", "(3, 3)", "the config's seeds must be distinct, one at least, got (3, 3)"),
        ("(0, 3)", "()", "the config's seeds must be distinct, one at least, got ()"),
        ("(0, 3)", "3", "the config's seeds must be a tuple of int, got 3"),
        ('"talk", "sums"', '"talk,sums",', "the config's tasks are names, several as --config.tasks="),
        ('"sums"', "7", "the config's tasks must be a tuple of str, got ('talk', 7)"),
        ("num_prompts = 2", "num_prompts = True", "the config's num_prompts must be int, got True"),
        ('dict(label="lookup", method="prompt_lookup", depth=2)', '"lookup"', "methods must be a tuple of dict, got "),
        ("depth=2", 'depth="2"', "methods[0]: depth must be int or None, got '2'"),
        ('"all"', '"second"', "the config's turns must be one of first, all, got 'second'"),
        ("max_new_tokens = 12", "max_new_tokens = 0", "max_new_tokens must be between 1 and 2147483647, got 0"),
        ("max_new_tokens = 12", "max_new_tokens = 150", "the model's context is 160"),
        ("warm_ups = 1", "warm_ups = -1", "warm_ups must be at least 0, got -1"),
        ("    config.warm_ups = 1\n", "", "the config has no field 'warm_ups'"),
        ("config.warm_ups = 1", "config.warm_ups = config.warmups = 1", "the config has the unknown field 'warmups'"),
        ('"TARGET"', '"no/such/folder"', "target 'no/such/folder' is neither"),
    ],
)
def test_configs_that_cannot_be_used(
    old: str,
    new: str,
    message: str,
    tiny_model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config, output = tmp_path / "config.py", tmp_path / "rows.jsonl"
    assert old in CONFIG
    config.write_text(CONFIG.replace(old, new).replace("TARGET", str(tiny_model)))
    assert message in refused(capsys, config, data, output).replace(str(data), "DATA")
    assert list(tmp_path.glob("rows*")) == []  # not even a journal, which would belong to this config


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("temperatures=('hot',)", "the config's temperatures must be a tuple of float, got ('hot',)"),
        ("temperatures=hot", "the config's temperatures must be a tuple of float, got ('hot',)"),
        ("temperatures=(None,)", "the config's temperatures must be a tuple of float, got (None,)"),
        ("temperatures=[[1.0]]", "the config's temperatures must be a tuple of float, got ([1.0],)"),
        ("seeds=('a',)", "the config's seeds must be a tuple of int, got ('a',)"),
        ("seeds=0.5", "the config's seeds must be a tuple of int, got (0.5,)"),
        ("seeds=True", "the config's seeds must be a tuple of int, got (True,)"),
    ],
)
def test_flags_of_other_types(
    flag: str, message: str, config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*arguments(config, data, tmp_path / "x"), f"--config.{flag}"]
    assert launch.call(evaluate.main, evaluate.FLAGS, given) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("flag", "temperatures"),
    [
        ("temperatures=0.0,1.0", (0.0, 1.0)),
        ("temperatures=0,1", (0, 1)),
        ("temperatures=1", (1,)),
        ("temperatures=(0.3,1.0)", (0.3, 1.0)),
    ],
)
def test_flags_of_several_values(
    flag: str,
    temperatures: tuple[float, ...],
    config: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As docs/reading_the_numbers.md writes them."""
    checked: list[ConfigDict] = []
    monkeypatch.setattr(evaluate, "evaluate", lambda config, *_, **__: checked.append(config) or [])
    given = [*arguments(config, data, tmp_path / "x"), f"--config.{flag}"]
    assert launch.call(evaluate.main, evaluate.FLAGS, given) == 0
    assert read_config(checked[0]).temperatures == temperatures


def test_a_broken_question_file(config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("talk", "sums"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "question.jsonl").write_text((data / name / "question.jsonl").read_text())
    with (tmp_path / "sums" / "question.jsonl").open("a") as file:
        file.write('\n{"turns": []}\n')
    line = refused(capsys, config, tmp_path, tmp_path / "rows.jsonl")
    assert line.endswith("sums/question.jsonl, line 3: turns must be texts, one at least and none empty, got []")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such.jsonl", "must name a file in a folder that exists"),
        (".", "must name a file in a folder that exists"),
        ("mine.jsonl", "is there without mine.jsonl.journal, so it cannot be continued; nothing was written"),
    ],
)
def test_outputs_that_cannot_be_used(
    name: str, message: str, config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.jsonl").write_text("{}\n")
    assert message in refused(capsys, config, data, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.jsonl"]


@pytest.mark.parametrize("missing", ["config", "data", "output"])
def test_flags_that_are_needed(
    missing: str, config: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [text for text in arguments(config, data, tmp_path / "x") if not text.startswith(f"--{missing}")]
    assert launch.call(evaluate.main, evaluate.FLAGS, given) == 2
    assert capsys.readouterr().err == f"error: give --{missing}: {evaluate.FLAGS[missing].help}\n"
