"""A kind of draft head is a row in each of four tables; hardly any other code may know a kind by its name."""

import ast
from collections.abc import Iterator

import pytest

from eagle_jax.checkpoint.head_formats import HEAD_FORMATS
from eagle_jax.models.draft_head import HEAD_KINDS
from eagle_jax.training.recipes import RECIPES, RECIPES_OF_KIND
from experiments.cli.methods import HEAD_METHODS, METHODS
from tests.test_imports import FILES, ROOT

MAY_COMPARE = {
    "eagle_jax/drafters/eagle3.py",  # drafts with heads of its own kind alone
}
"""The files that compare something with the name of a kind; five at the most."""


def named(node: ast.expr) -> Iterator[str]:
    """Strings that an operand of a comparison spells out, alone or as members of a tuple, list, set or dict."""
    yield from (part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))


def compares_kinds(source: str) -> bool:
    """Whether some code compares or matches with the name of a kind of head, or looks for one in such names."""
    for node in ast.walk(ast.parse(source)):
        operands = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        operands += [node.value] if isinstance(node, ast.MatchValue) else []
        if any(name in HEAD_KINDS for operand in operands for name in named(operand)):
            return True
    return False


def test_few_files_compare_kinds() -> None:
    files = [path.relative_to(ROOT) for path in FILES if path.is_relative_to(ROOT / "eagle_jax")]
    files += [path.relative_to(ROOT) for path in FILES if path.is_relative_to(ROOT / "experiments")]
    comparing = {path.as_posix() for path in files if compares_kinds((ROOT / path).read_text(encoding="utf-8"))}
    assert comparing == MAY_COMPARE
    assert len(MAY_COMPARE) <= 5


@pytest.mark.parametrize(
    ("source", "compares"),
    [
        ('config.kind == "eagle3"', True),
        ('"eagle" != kind', True),
        ('kind in ("eagle", "other")', True),
        ('a < b != "eagle"', True),
        ('match kind:\n    case "eagle3": pass', True),
        ('match kind:\n    case "other" | "eagle": pass', True),
        ('load_head("eagle3")', False),
        ('TABLE = {"eagle": 1}', False),
        ('kind == "eagles"', False),
    ],
)
def test_what_counts_as_a_comparison(source: str, compares: bool) -> None:
    assert compares_kinds(source) == compares


def test_every_table_knows_every_kind() -> None:
    assert list(HEAD_KINDS) == list(HEAD_FORMATS) == list(RECIPES_OF_KIND)
    assert {method.kind for method in HEAD_METHODS.values()} == set(HEAD_KINDS)
    assert set(HEAD_METHODS) <= set(METHODS)
    assert {name for names in RECIPES_OF_KIND.values() for name in names} <= set(RECIPES)
