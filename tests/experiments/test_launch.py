import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from eagle_jax.evaluation.tasks import read_questions
from eagle_jax.sampling import make_sampling
from experiments.cli import launch

ROOT = Path(__file__).parents[2]

# How ml_collections runs the file of a config.
a_config_is_read = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture
def values() -> flags.FlagValues:
    found = flags.FlagValues()
    flags.DEFINE_integer("seed", 7, "of sampling", flag_values=found)
    flags.DEFINE_enum("what", "a", ["a", "b"], "which", flag_values=found)
    return found


def nothing() -> None:
    """Write nothing."""


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def refuse_temperature() -> None:
    make_sampling(1, temperature=-1.0)


def read_missing_file() -> None:
    read_questions("no/such/file")


def test_runs_main_with_parsed_flags(values: flags.FlagValues, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        print(values.seed)

    assert launch.call(main, values, ["--seed=3"]) == 0
    assert launch.call(main, values, []) == 0  # flags of an earlier call are forgotten
    assert capsys.readouterr().out == "3\n7\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sed=3"], "error: Unknown command line flag 'sed'. Did you mean: seed ?"),
        (["--seed=x"], "error: flag --seed=x: invalid literal for int() with base 10: 'x'"),
        (["--seed"], "error: Missing value for flag --seed"),
        (["--what=c"], "error: flag --what=c: value should be one of <a|b>"),
        (["words"], "error: unexpected argument 'words': settings are flags, --name=value"),
    ],
)
def test_bad_flags(
    values: flags.FlagValues, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert launch.call(nothing, values, arguments) == launch.USER_ERROR
    assert capsys.readouterr().err == message + "\n"


CONFIG = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict({"epochs": 5.0, "head": {"kind": "eagle3", "layers": (0, 1)}})
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def configured(values: flags.FlagValues) -> flags.FlagValues:
    config_flags.DEFINE_config_file("config", None, "what to do", flag_values=values)
    return values


@a_config_is_read
def test_fields_of_a_config(
    configured: flags.FlagValues, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those among the arguments count, for this call alone; the command line of the process does not."""
    monkeypatch.setattr(sys, "argv", before := ["script", f"--config={config}", "--config.epochs=9"])

    def main() -> None:
        print(configured.config.epochs, configured.config.head.kind, configured.config.head.layers)

    arguments = [f"--config={config}", "--config.epochs=2", "--config.head.kind", "eagle", "--config.head.layers=(3,)"]
    assert launch.call(main, configured, arguments) == 0
    assert launch.call(main, configured, [f"--config={config}"]) == 0
    assert capsys.readouterr().out == "2.0 eagle (3,)\n5.0 eagle3 (0, 1)\n"
    assert launch.call(main, configured, ["--config.epochs=2"]) == launch.USER_ERROR
    assert capsys.readouterr().err == "error: Unknown command line flag 'config.epochs'\n"
    assert sys.argv is before


@a_config_is_read
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.nonsense=1", "the config has no such field: 'nonsense'\n"),
        ("--config.head.kinds=1", "the config has no such field: 'kinds' Did you mean "),
        ("--config.nonsense.kind=1", "the config has no such field: 'nonsense'\n"),
        ("--config.epochs.kind=1", "the config has no such field: Attribute <class 'float'>.kind does not exist"),
        ("--config.epochs+=1", "the config has no such field: "),
        ("--config.epochs=many", "flag --config.epochs=many: could not convert string to float: 'many'\n"),
    ],
)
def test_fields_that_a_config_has_not(
    configured: flags.FlagValues, config: Path, capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    assert launch.call(nothing, configured, [f"--config={config}", argument]) == launch.USER_ERROR
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


@a_config_is_read
def test_what_a_config_says_to_its_argument(
    configured: flags.FlagValues, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message alone, without the traceback that ml_collections puts before it."""
    refuses = "def get_config(kind):\n    raise ValueError(f'kinds are a and b, got {kind!r}')\n"
    config.write_text(refuses)
    assert launch.call(nothing, configured, [f"--config={config}:c"]) == launch.USER_ERROR
    assert capsys.readouterr().err == f"error: --config={config}:c: kinds are a and b, got 'c'\n"


@a_config_is_read
def test_a_bug_in_a_config_keeps_its_traceback(configured: flags.FlagValues, config: Path) -> None:
    config.write_text(CONFIG.replace("ConfigDict(", "ConfigDictionary("))
    with pytest.raises(AttributeError, match="ConfigDictionary"):
        launch.call(nothing, configured, [f"--config={config}"])


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (refuse_temperature, "error: temperature must be between 0 and 10000.0, got -1.0"),
        (read_missing_file, "error: no/such/file: No such file or directory"),
        (raising(OSError("the hub\n  is away")), "error: the hub is away"),
        (raising(TimeoutError()), "error: TimeoutError"),
    ],
)
def test_mistakes_of_the_user_are_one_line(
    values: flags.FlagValues, capsys: pytest.CaptureFixture[str], main: Callable[[], None], message: str
) -> None:
    assert launch.call(main, values, []) == launch.USER_ERROR
    assert capsys.readouterr().err == message + "\n"


def test_bugs_keep_their_traceback(values: flags.FlagValues) -> None:
    with pytest.raises(TypeError, match="a bug"):
        launch.call(raising(TypeError("a bug")), values, [])
    with pytest.raises(json.JSONDecodeError):  # a ValueError, but not one that we raised
        launch.call(lambda: json.loads("{"), values, [])


def test_interruption(values: flags.FlagValues, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.call(raising(KeyboardInterrupt()), values, []) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_help_lists_the_flags(values: flags.FlagValues, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.call(raising(AssertionError()), values, ["--seed=1", "--help"]) == 0
    assert "\nFlags:\n  --seed: of sampling (default: 7)\n" in capsys.readouterr().out


def test_status_shows_start_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    with launch.status("Loading x") as progress:
        assert capsys.readouterr().err == "Loading x ..."
        progress(1, 2)
    error = capsys.readouterr().err
    assert error.endswith(" s\n")
    assert float(error.removesuffix(" s\n")) < 5


def test_status_leaves_the_line_to_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), launch.status("Loading x"):
        raise ValueError("broken")
    assert capsys.readouterr().err == "Loading x ...\n"


@pytest.fixture
def config_updates(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What `keep_compiled_programs` would tell jax, which stays as it is."""
    updates: dict[str, object] = {}
    monkeypatch.setattr(type(jax.config), "update", lambda _, name, value: updates.update({name: value}))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    return updates


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_updates: dict[str, object]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EAGLE_JAX_CACHE", raising=False)
    launch.keep_compiled_programs()
    assert config_updates["jax_compilation_cache_dir"] == str(tmp_path / "home/.cache/eagle_jax/xla")
    assert (tmp_path / "home/.cache/eagle_jax/xla").is_dir()
    monkeypatch.setenv("EAGLE_JAX_CACHE", str(tmp_path / "elsewhere"))
    launch.keep_compiled_programs()
    assert config_updates["jax_compilation_cache_dir"] == str(tmp_path / "elsewhere")


def test_cache_off_or_configured_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_updates: dict[str, object]
) -> None:
    monkeypatch.setenv("EAGLE_JAX_CACHE", "")
    launch.keep_compiled_programs()
    monkeypatch.setenv("EAGLE_JAX_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "theirs"))
    launch.keep_compiled_programs()
    assert config_updates == {}
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_written_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config_updates: dict[str, object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EAGLE_JAX_CACHE", str(tmp_path / "file" / "below"))
    launch.keep_compiled_programs()
    assert config_updates == {}
    assert capsys.readouterr().err.startswith("compiled programs are not stored: ")


SCRIPT = """
from absl import flags
from experiments.cli import launch
values = flags.FlagValues()
flags.DEFINE_integer("lines", 1, "to print", flag_values=values)
def main():
    for _ in range(values.lines):
        print("line")
    if values.lines == 2:
        raise RuntimeError("a bug")
    if values.lines == 3:
        raise ValueError("three\\nlines")
launch.run(main, values)
"""


def run_script(lines: int) -> subprocess.Popen[str]:
    """Start the script above as a process of its own."""
    command = [sys.executable, "-c", SCRIPT, f"--lines={lines}"]
    return subprocess.Popen(
        command, cwd=ROOT, env=dict(os.environ), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_exit_codes_of_a_process() -> None:
    fine, bug, mistake = [run_script(lines) for lines in (1, 2, 3)]
    assert (*fine.communicate(timeout=60), fine.returncode) == ("line\n", "", 0)
    assert "Traceback" in bug.communicate(timeout=60)[1]
    assert bug.returncode == 1
    assert (mistake.communicate(timeout=60)[1], mistake.returncode) == ("error: three lines\n", 2)


def test_a_reader_that_leaves_ends_the_process_quietly() -> None:
    process = run_script(200_000)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == launch.CLOSED_PIPE
    assert process.stderr.read() == ""
    process.stderr.close()
