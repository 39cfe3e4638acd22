"""Every script refuses an output that it could not write, in one line, before it reads a weight."""

from importlib import import_module
from pathlib import Path

import pytest

from experiments.cli import launch

SCRIPTS = {
    "generate": ["--prompt=x", "--json_output=OUT"],
    "regenerate": ["--prompts=none.jsonl", "--temperatures=0", "--output=OUT"],
    "evaluate": ["--config=configs/eval/heads.py", "--data=none", "--output=OUT"],
    "sweep": ["--config=configs/ablations/tree_sizes.py", "--data=none", "--output=OUT"],
    "draw": ["--prompt=x", "--output=OUT"],
    "report": ["--rows=none.jsonl", "--output=OUT"],
    "convert": ["--head=none", "--output=OUT"],
    "bench.batches": ["--prompts_file=none.jsonl", "--output=OUT"],
    "bench.device": ["--output=OUT"],
    "bench.sections": ["--config=configs/bench/accelerator.py", "--data=none", "--prompts=none", "--output=OUT"],
    "bench.contexts": ["--prompts_file=none.jsonl", "--documents=none.jsonl", "--output=OUT"],
    "scaling.fit": ["--output=OUT"],
    "scaling.compile": ["--output=OUT"],
}
# The others make the folders that are missing.
NEED_FOLDERS = ("generate", "regenerate", "evaluate", "bench.batches", "bench.contexts", "bench.device")
TRAIN = ["--config=configs/train/eagle3_smollm2.py", "--data=none.jsonl"]
CASES = [
    *SCRIPTS.items(),
    ("report", ["--rows=none.jsonl", "--tau_table=OUT"]),
    ("train", [*TRAIN, "--run=OUT"]),
    ("train", [*TRAIN, "--run=run", "--features=OUT"]),
    ("train", [*TRAIN, "--run=run", "--export=OUT"]),
]

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.mark.parametrize(
    ("name", "flags", "place"),
    [
        (name, flags, place)
        for name, flags in CASES
        for place in ("file", "address", "missing")
        if place != "missing" or name in NEED_FOLDERS or "--tau_table=OUT" in flags
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else value,
)
def test_outputs_that_cannot_be_written(
    name: str, flags: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Inside a file, in a folder that a script does not make, and outside the file system."""
    (tmp_path / "file").touch()
    output = {"file": f"{tmp_path}/file/new", "missing": f"{tmp_path}/no/new", "address": "gs://bucket/new"}[place]
    script = import_module(f"experiments.{name}")
    assert launch.call(script.main, script.FLAGS, [flag.replace("OUT", output) for flag in flags]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    wanted = {
        "file": f"error: {output} cannot be written: {tmp_path}/file is not a directory",
        "missing": "file in a folder that exists",
        "address": f"error: {output} is an address, give a local or mounted path",
    }
    assert wanted[place] in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_script_with_an_output_is_listed() -> None:
    """A new one belongs into the table above."""
    folder = Path(__file__).parents[2] / "experiments"
    named = {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if 'DEFINE_string("output"' in path.read_text() or '"json_output"' in path.read_text()
    }
    assert named <= set(SCRIPTS)
