"""Names and prose keep to the field's terms, as CONTRIBUTING lists them, and every module has a name of its own.

A few words once had a private meaning in this code ("law" for sampling settings, "behind" for after). A reader who
knows vLLM, optax or mctx should not have to learn such meanings, so these words are refused in identifiers, comments,
docstrings, messages and pages. Ordinary phrases that contain them are listed in `ALLOWED`.
"""

import collections
import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("eagle_jax", "experiments")
PAGES = ("README.md", "CONTRIBUTING.md", "configs/README.md", "notebooks/README.md", "notebooks/*.ipynb", "docs/*.md")

NAMES = frozenset({"law", "laws", "lawful", "said", "told", "kept", "asked", "found", "behind", "dealt", "lies"})
"""Refused as a part of an identifier, between underscores: `found`, `asked_rounds`."""

WHOLE_NAMES = frozenset({"whole"})
"""Refused as a complete identifier only: `write_whole` writes a file atomically."""

PROSE = {
    r"\b(?:un)?law(?:s|ful)?\b": "sampling settings, or distribution",
    r"\bbehind\b": "after, following, past",
    r"\b(?:dealt|deals?|dealing) out\b": "sharded",
    r"\bas said\b": "the condition itself",
    r"\b(?:said|told)\b": "outputs, passed, recorded, set",
    r"\basked\b": "requested, or name what is done",
    r"\b(?:is|are|was|were|be|been|being|has|have|had|not|and) kept\b": "stored, committed, accepted or selected",
    r"\bkept (?:by|for|in|on|nodes|tokens|whole|free|apart)\b": "stored, committed, accepted or selected",
    r"\blies?\b": "is placed, is stored, is",
    r"\b(?:stays?|left|is|are|be|kept|head|accepted) whole\b": "replicated, complete, in full",
    r"\bwhole (?:on|weights?|tensors?|batch|answers?|text|conversations?|vocabulary)\b": "replicated, complete, full",
    r"\b(?:a|one|two|each|every|next) looks?\b": "poll, read",
    r"\bwhat (?:\w+ ){0,4}found\b": "the result, by its name",
}
"""Refused in comments, docstrings, other strings and pages, with what to write in place of them."""

ALLOWED = re.compile(r"scaling laws?|power laws?|quick look|easier said than done", re.IGNORECASE)
"""Phrases with an ordinary or a technical meaning."""


def python_hits(source: str) -> Iterator[tuple[int, str]]:
    """Line and word of everything refused in a Python file."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
            if token.string in WHOLE_NAMES or NAMES & set(token.string.lower().split("_")):
                yield line, token.string
        elif token.type in TEXT_TOKENS:
            yield from ((line + number - 1, word) for number, word in prose_hits(token.string))


TEXT_TOKENS = {getattr(tokenize, name) for name in ("COMMENT", "STRING", "FSTRING_MIDDLE") if hasattr(tokenize, name)}


def prose_hits(text: str) -> Iterator[tuple[int, str]]:
    """Line and words of everything refused in a text."""
    text = ALLOWED.sub(lambda match: "-" * len(match[0]), text)
    text = re.sub(r"\s", lambda match: "\n" if match[0] == "\n" else " ", text)
    for pattern in PROSE:
        # A phrase may go on in the next line of a docstring.
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split())


def python_files() -> list[Path]:
    """All modules of the package, the scripts and the configs."""
    return sorted(path for folder in (*PACKAGES, "configs") for path in (ROOT / folder).rglob("*.py"))


def pages() -> list[Path]:
    """All pages but the lab book and the change log, which record the past in its words."""
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


def hits(path: Path) -> list[tuple[int, str]]:
    """Everything refused in a file."""
    text = path.read_text(encoding="utf-8")
    return list(python_hits(text) if path.suffix == ".py" else prose_hits(text))


@pytest.mark.parametrize("path", [*python_files(), *pages()], ids=lambda path: str(path.relative_to(ROOT)))
def test_words_of_the_field(path: Path) -> None:
    """In every module, script, config and page."""
    name = str(path.relative_to(ROOT))
    assert [f"{name}:{line}: {word}" for line, word in hits(path)] == []


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("def law() -> None: ...", "law"),
        ("for found in rows: ...", "found"),
        ("asked_rounds = 3", "asked_rounds"),
        ("row.kept = 3", "kept"),
        ("whole, rest = 1, 2", "whole"),
        ("x = 1  # the token behind it", "behind"),
        ('"""Rows are dealt\nout over devices."""', "dealt out"),
        ('raise ValueError(f"{x} was asked for")', "asked"),
        ('"""Raises:\n  ValueError: as said.\n"""', "as said"),
        ('"""The weights are whole on each device."""', "are whole"),
        ('"""Where an array lies."""', "lies"),
    ],
)
def test_a_planted_word_is_noticed(source: str, word: str) -> None:
    """In every kind of token."""
    assert word in [hit for _, hit in python_hits(source)]


def test_lines_are_counted() -> None:
    """A hit names its own line, also within a docstring."""
    assert list(python_hits('x = 1\n"""One.\n\nThe law."""\n')) == [(4, "law")]


@pytest.mark.parametrize(
    "source",
    [
        "raise FileNotFoundError(path)",
        "files.write_whole(path, text)",
        "# a whole number; scaling laws hold over decades; no tree is found here",
        '"""Look up a row; keep top-k; the lower id."""',
    ],
)
def test_ordinary_words_pass(source: str) -> None:
    """What has no private meaning."""
    assert list(python_hits(source)) == []


def test_module_names_are_unique() -> None:
    """A name in an import statement or a traceback says which module it is."""
    stems = collections.Counter(
        path.stem for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.stem != "__init__"
    )
    assert [stem for stem, count in stems.items() if count > 1] == []
