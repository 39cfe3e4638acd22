"""What the pages tell a reader to do works: commands, Python, the drafter of docs/add_a_drafter.md."""

import importlib.util
import inspect
import json
import re
import types
from pathlib import Path

import pytest

from tests.docs.conftest import as_main, run
from tests.docs.pages import PAGES, ROOT, blocks, changed_file, commands, explained_methods

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

NEEDS_TORCH = ("downloads/EAGLE-head", "downloads/vicuna", "--what=torch")
WITH_COMMANDS = [page for page in PAGES if commands(page)]
WITH_PYTHON = [page for page in PAGES if list(blocks(page, "python"))]


def check_make(words: list[str]) -> None:
    """The Makefile has the target; nothing is run."""
    assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    for variable in (word.partition("=")[0] for word in words[2:]):
        assert f"$({variable})" in (ROOT / "Makefile").read_text() or f"$(or $({variable})" in words, words


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.stem)
def test_commands(page: Path, reader: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """All of a page, one after the other, in one folder: later ones may use what earlier ones wrote."""
    if page.stem == "add_a_drafter":
        request.getfixturevalue("with_successor")
    without_torch = importlib.util.find_spec("torch") is None
    for words in commands(page):
        if words[0] == "make":
            check_make(words)
            continue
        assert words[0] in (".venv/bin/python", "python"), words
        assert words[1] == "-m", words
        code, said = run(words), capsys.readouterr()
        if without_torch and any(sign in word for sign in NEEDS_TORCH for word in words):
            assert code == 2, words
            assert re.search("PyTorch, which is not installed: .* -m pip install torch", said.err)
        else:
            assert code == 0, f"{' '.join(words)}\n{said.out}\n{said.err}"
    if page.stem == "reading_the_numbers":
        row = json.loads((reader / "rows.jsonl").read_text().splitlines()[0])
        table = page.read_text().partition("## Rows of")[2].partition("\n## ")[0]
        explained = [name for line in table.splitlines() if line.startswith("| `") for name in names_of(line)]
        assert sorted(explained) == sorted(row)


def names_of(line: str) -> list[str]:
    """The words in code in the first cell of a table's line."""
    return re.findall(r"`([^`]+)`", line.split(" | ")[0])


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
@pytest.mark.usefixtures("reader")
def test_python(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with as_main(f"page_{page.stem}") as names:
        for block in blocks(page, "python"):
            exec(compile(block.text, f"{page.name}:{block.line}", "exec"), names)
        result = names["result"]
    assert result.complete
    assert f"{result.tau}\n" in capsys.readouterr().out


def test_the_drafter_of_the_page(with_successor: dict[str, types.ModuleType]) -> None:
    """It passes the conformance suite, and guesses right at times."""
    suite = with_successor["tests/test_conformance.py"]
    asked = []
    for name, test in list(vars(suite).items()):
        wanted = inspect.signature(test).parameters if name.startswith("test_") else ()
        if "name" not in wanted:
            continue
        given = {"name": "successor", **({"seed": 1} if "seed" in wanted else {})}
        for more in [{"temperature": 0.0}, {"temperature": 1.0}] if "temperature" in wanted else [{}]:
            test(**given, **more)
        asked.append(name)
    assert len(asked) >= 6
    methods, field = (with_successor[path].METHODS for path in ("experiments/cli/methods.py", "configs/eval/field.py"))
    assert set(methods) <= set(field)
    changed = dict(changed_file(block) for block in blocks(ROOT / "docs" / "add_a_drafter.md", "diff"))
    assert explained_methods(changed["docs/how_it_works.md"]) == list(methods)
    assert "make_successor" in with_successor["eagle_jax/drafters/__init__.py"].__all__
