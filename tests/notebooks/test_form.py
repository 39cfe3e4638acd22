"""What every notebook keeps to: short, without outputs, public names alone, links that lead somewhere."""

import ast
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import eagle_jax
from experiments.cli.methods import METHODS
from tests.notebooks.notebooks import NOTEBOOKS, ROOT, cells, source

MOST_CELLS = 25
MOST_LINES = 80
OURS = ("eagle_jax", "experiments", "configs")

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def trees(notebook: Path) -> list[ast.Module]:
    return [ast.parse(source(cell)) for cell in cells(notebook, "code")]


def text(notebook: Path) -> str:
    return "\n".join(map(source, cells(notebook, "markdown")))


def test_there_are_four() -> None:
    names = [notebook.stem for notebook in NOTEBOOKS]
    assert names == ["1_quickstart", "2_inside_a_round", "3_train_a_head", "4_ablations"]


@every_notebook
def test_short_and_without_outputs(notebook: Path) -> None:
    found = cells(notebook)
    assert len(found) <= MOST_CELLS
    code = [line for cell in cells(notebook, "code") for line in source(cell).splitlines() if line.strip()]
    assert len(code) <= MOST_LINES
    assert max(map(len, code)) <= 120
    for cell in cells(notebook, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
    assert len({cell["id"] for cell in found}) == len(found)
    assert {cell["cell_type"] for cell in found} == {"code", "markdown"}


@every_notebook
def test_plain_ipynb(notebook: Path) -> None:
    """Format 4.5 as Jupyter writes it, with nothing about the machine that it was written on."""
    written = notebook.read_text(encoding="utf-8")
    whole = json.loads(written)
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
    assert whole["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert written == json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


@every_notebook
def test_first_comes_the_installation(notebook: Path) -> None:
    """One and the same, behind a title that says how long it all takes; it does nothing but on Colab."""
    title, install, *_ = cells(notebook)
    assert re.search(r"Takes .*minutes? .*(CPU|cores)", source(title).replace("\n", " "))
    assert source(install) == source(cells(NOTEBOOKS[0])[1])
    *_, guard = ast.parse(source(install)).body
    assert isinstance(guard, ast.If)
    assert ast.unparse(guard.test) == "'google.colab' in sys.modules"


def imported(notebook: Path) -> Iterator[tuple[str, str]]:
    """Modules of ours that it imports, and the names that it imports from them."""
    for node in (node for tree in trees(notebook) for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] in OURS)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            yield from ((node.module or "", alias.name) for alias in node.names)


@every_notebook
def test_public_names_alone(notebook: Path) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
    for module, name in imported(notebook):
        assert not any(part.startswith("_") for part in (*module.split("."), name)), (module, name)
        assert not name or hasattr(importlib.import_module(module), name) or importlib.import_module(f"{module}.{name}")
        if module == "experiments" and name != "launch":
            assert f"experiments.{name}" in pages, f"{name} is not explained"
    attributes = [n for tree in trees(notebook) for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    for node in attributes:
        if node.attr == "__file__":  # says where the scripts lie
            continue
        assert not node.attr.startswith("_"), node.attr
        if isinstance(node.value, ast.Name) and node.value.id == "ej":
            assert node.attr in eagle_jax.__all__, node.attr


@every_notebook
def test_links_and_commands(notebook: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text(notebook)):
        assert link.startswith("http") or (notebook.parent / link).exists(), link
    for anchor in re.findall(r"\]\(([^)\s]+#[^)\s]+)\)", text(notebook)):
        page, _, name = anchor.partition("#")
        titles = re.findall(r"^#+ (.*)$", (notebook.parent / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert name in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, anchor
    for script, arguments in re.findall(r"python -m experiments\.(\w+)(.*)", text(notebook)):
        flags = importlib.import_module(f"experiments.{script}").FLAGS
        for flag in re.findall(r"--(\w+)", arguments):
            assert flag in flags, f"{script} has no --{flag}"
    assert set(re.findall(r"--method=(\w+)", text(notebook))) <= set(METHODS)
