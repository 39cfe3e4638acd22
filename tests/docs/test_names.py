"""What the pages name exists: files, modules, flags, methods, defaults, tests, the version."""

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from configs.eval import heads
from configs.train import distill_draft, eagle3_smollm2, eagle_smollm2, one_pass_smollm2
from experiments.cli.methods import METHODS
from tests.docs.pages import INDEXES, PAGES, ROOT, blocks, explained_methods

SCRIPTS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if "\nif __name__" in path.read_text(encoding="utf-8")
)
NEW = {"eagle_jax/drafters/successor.py", "eagle_jax.drafters.successor"}
"""What docs/add_a_drafter.md adds."""
FOREIGN_FLAGS = {"help", "local-dir", "to", "execute", "output-dir"}

PATH = re.compile(r"(?<![\w./-])(?:eagle_jax|experiments|configs|tests|docs|notebooks|results)/[\w/.-]*\w/?")
MODULE = re.compile(r"(?<![\w./])(?:eagle_jax|experiments|configs)(?:\.\w+)+")
FLAG = re.compile(r"(?<![\w-])--([a-z][\w.-]*)")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")

every_page = pytest.mark.parametrize("page", [*PAGES, *INDEXES], ids=lambda page: f"{page.parent.name}/{page.stem}")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def config_fields(config: Any, prefix: str = "config") -> set[str]:
    """Flags that a config takes."""
    found = set()
    for name, value in config.items():
        nested = hasattr(value, "items")
        found |= config_fields(value, f"{prefix}.{name}") if nested else {f"{prefix}.{name}"}
    return found


def known_flags() -> set[str]:
    scripts = [importlib.import_module(name).FLAGS for name in SCRIPTS]
    flags = {name for values in scripts for name in values}
    flags |= {f"no{name}" for values in scripts for name in values if values[name].boolean}
    configs = [
        module.get_config() for module in (distill_draft, eagle3_smollm2, eagle_smollm2, one_pass_smollm2, heads)
    ]
    return flags.union(FOREIGN_FLAGS, *map(config_fields, configs))


@every_page
def test_paths_and_links(page: Path) -> None:
    text = text_of(page)
    named = {found.rstrip(".") for found in PATH.findall(text)} - NEW
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    links = [link for link in LINK.findall(text) if not link.startswith(("http:", "https:"))]
    assert [link for link in links if not (page.parent / link).exists()] == []


@every_page
def test_modules_and_their_names(page: Path) -> None:
    for name in sorted(set(MODULE.findall(text_of(page))) - NEW):
        if (ROOT / name).exists():  # a file such as experiments.toml would be no module
            continue
        assert resolve(name), f"{page.name} names {name}, which is not there"


def resolve(name: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@every_page
def test_flags(page: Path) -> None:
    assert sorted(set(FLAG.findall(text_of(page))) - known_flags()) == []


@every_page
def test_tests_that_are_named(page: Path) -> None:
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for name in set(re.findall(r"`((?:test_|Test)\w+)`", text_of(page))):
        assert re.search(rf"(def|class) {name}\b", written), name


def test_every_method_is_explained() -> None:
    assert explained_methods(text_of(ROOT / "docs" / "how_it_works.md")) == list(METHODS)
    for page in PAGES:
        given = set(re.findall(r"--method=(\w+)", text_of(page)))
        assert given <= {*METHODS, "successor"}, page.name


def test_defaults_of_training() -> None:
    table = text_of(ROOT / "docs" / "training.md").partition("| field | default |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| (\S+) \|", table, re.MULTILINE)
    assert len(rows) >= 10
    for field, default in rows:
        value: Any = eagle3_smollm2.get_config()
        for part in field.split("."):
            value = value[part]
        assert str(value) == default, field


def test_files_of_the_readme() -> None:
    """The tree at its end: every file is there, and no script and no file of the package's root is left out."""
    (tree,) = [block.text for block in blocks(ROOT / "README.md", "") if block.text.startswith("eagle_jax/\n")]
    folder, listed = "", set()
    for line in tree.splitlines():
        if not line.startswith(" "):
            folder = line.split()[0]
            assert (ROOT / folder).is_dir(), folder
        names = re.findall(r"^  ((?:[\w./]+, )*[\w./]+)  ", line + "  ")
        for name in names[0].split(", ") if names else ():
            assert (ROOT / folder / name).exists(), f"{folder}{name}"
            listed.add(f"{folder}{name}")
    for folder in ("eagle_jax", "experiments"):
        wanted = {f"{folder}/{path.name}" for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"}
        assert sorted(wanted - listed) == []


def test_one_version() -> None:
    calls = [node for node in ast.walk(ast.parse(text_of(ROOT / "setup.py"))) if isinstance(node, ast.Call)]
    versions = {
        word.value.value
        for call in calls
        for word in call.keywords
        if word.arg == "version" and isinstance(word.value, ast.Constant)
    }
    (version,) = versions
    assert re.search(rf"^version: {re.escape(version)}$", text_of(ROOT / "CITATION.cff"), re.MULTILINE)
    assert re.search(r"^## (\S+)", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)[1] == version  # type: ignore[index]
