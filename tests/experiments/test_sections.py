"""Commands in sections: what ends, fails or takes too long does not end the others, and the same command goes on."""

import json
import time
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.bench import accelerator
from eagle_jax.files import Record
from experiments.bench import sections
from experiments.cli import launch

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

SLEEP = "timeit -n 1 -r 1 'import time; time.sleep(60)'"
DEAF = f"{SLEEP} -s 'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)'"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sections, "GRACE", 0.6)
    monkeypatch.setattr(sections, "SHORTEST", 0.1)


def write_config(folder: Path, **commands: tuple[float, str]) -> str:
    table = {name: {"seconds": seconds, "command": command} for name, (seconds, command) in commands.items()}
    path = folder / "config.py"
    config = {"sections": table, "order": tuple(table)}
    path.write_text(f"import ml_collections\n\ndef get_config():\n    return ml_collections.ConfigDict({config!r})\n")
    return str(path)


def run(config: str, output: Path, *more: str) -> int:
    return launch.call(sections.main, sections.FLAGS, [f"--config={config}", f"--output={output}", *more])


def records(output: Path) -> list[Record]:
    _, *lines = (output / "sections.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_what_becomes_of_sections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that fails and two that take too long, of which one does not listen, are between two that end."""
    (tmp_path / "data.json").write_text('{"a": 1}')
    config = write_config(
        tmp_path,
        first=(30.0, "json.tool --compact {data}"),
        wrong=(30.0, "json.tool {output}/missing.json"),
        slow=(1.0, SLEEP),
        deaf=(1.0, DEAF),
        last=(30.0, "timeit -n 1 -r 1 'print({seconds})'"),
    )
    started = time.monotonic()
    assert run(config, tmp_path / "out", f"--data={tmp_path / 'data.json'}") == 2
    assert time.monotonic() - started < 25
    shown = capsys.readouterr()
    assert (
        shown.err.splitlines()[-1] == f"error: sections that failed: wrong; what they printed is in {tmp_path / 'out'}"
    )
    found = records(tmp_path / "out")
    assert [(record["section"], record["how"]) for record in found] == [
        ("first", "ended"),
        ("wrong", "failed"),
        ("slow", "stopped"),
        ("deaf", "stopped"),
        ("last", "ended"),
    ]
    assert found[0]["last_line"] == '{"a":1}'
    assert "can't open" in found[1]["last_line"]
    assert (tmp_path / "out" / "last.log").read_text().splitlines()[1] == "30"
    assert [line.split("|")[1].strip() for line in shown.out.splitlines()[2:]] == [
        record["section"] for record in found
    ]


def test_the_same_command_goes_on(tmp_path: Path) -> None:
    """What has ended is not run again; without time nothing is begun; a command that changed is run."""
    config = write_config(tmp_path, one=(30.0, "json.tool --help"), two=(1.0, SLEEP), three=(30.0, "json.tool --help"))
    output = tmp_path / "out"
    assert run(config, output, "--sections=one") == 0
    assert run(config, output, "--sections=one,two") == 0
    assert run(config, output, "--time_limit=0.5") == 0
    assert [(record["section"], record["how"]) for record in records(output)] == [
        ("one", "ended"),
        ("two", "stopped"),
        ("two", "no time left"),
        ("three", "no time left"),
    ]
    assert run(config, output, "--sections=one", "--config.sections.one.command=json.tool -h") == 0
    assert [record["command"] for record in records(output)][-1] == "json.tool -h"


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("json.tool {data}", [], "section one needs --data"),
        ("json.tool {paper}", [], "section one: 'json.tool {paper}' cannot be filled in: 'paper'"),
        ("json.tool 'x", [], 'section one: "json.tool \'x" cannot be filled in: No closing quotation'),
        ("", [], "section one needs seconds above 0 and a command, got 5.0 and ''"),
        (
            "json.tool -h",
            ["--config.sections.one.seconds=0.0"],
            "section one needs seconds above 0 and a command, got 0.0",
        ),
        ("json.tool -h", ["--sections=two"], "sections are one, got 'two'"),
    ],
)
def test_mistakes(
    command: str, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before anything runs."""
    assert run(write_config(tmp_path, one=(5.0, command)), tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["", "rehearsal"])
def test_an_accelerator(size: str) -> None:
    """Every section names a script that is there, and flags that it has; the small ones only add flags."""
    config = accelerator.get_config(size)
    assert isinstance(config, ConfigDict)
    found = sections.read_sections(config.sections.to_dict(), config.order)
    assert sum(section.seconds for section in found if section.name != "tests") <= (10_000 if size else 870)
    root = Path(__file__).parents[2]
    for section in found:
        values = {"output": "out", "data": "data", "prompts": "prompts.jsonl", "seconds": "9"}
        module, *words = sections._arguments(section, values)
        if module == "pytest":
            continue
        source = (root / (module.replace(".", "/") + ".py")).read_text()
        names = [word.removeprefix("--").split("=")[0] for word in words]
        assert all(word.startswith("--") for word in words), section
        for name in names:
            assert name.startswith("config.") or f'"{name}"' in source or name in SHARED, (section.name, name)
    with pytest.raises(ValueError, match="the size of the sections is rehearsal or nothing, got 'full'"):
        accelerator.get_config("full")


SHARED = ("method", "nodes", "depth", "top_k", "dtype")
"""Flags that scripts get from `experiments.cli.methods`."""
