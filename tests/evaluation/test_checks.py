"""Values against annotations."""

import re
from typing import Any, Literal

import pytest

from eagle_jax.evaluation.checks import check_type

RULE = Literal["match", "residual"]
FLOATS = tuple[float, ...]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, int),
        (3, float),
        (0.5, float),
        (True, bool),
        ("", str),
        (None, int | None),
        (3, int | None),
        ("match", RULE),
        ((), FLOATS),
        ((0.0, 1), FLOATS),
        ([0.5], FLOATS | None),
        ([{}], tuple[dict, ...]),
    ],
)
def test_what_fits(value: object, kind: Any) -> None:
    check_type("it", value, kind)


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("3", int, "it must be int, got '3'"),
        (3.0, int, "it must be int, got 3.0"),
        (True, int, "it must be int, got True"),
        (False, float, "it must be float, got False"),
        ("no", bool, "it must be bool, got 'no'"),
        (0, bool, "it must be bool, got 0"),
        (None, str, "it must be str, got None"),
        (16.5, int | None, "it must be int or None, got 16.5"),
        ("exact", RULE, "it must be one of match, residual, got 'exact'"),
        ([], RULE, "it must be one of match, residual, got []"),
        (1.0, FLOATS, "it must be a tuple of float, got 1.0"),
        ("hot", FLOATS, "it must be a tuple of float, got 'hot'"),
        ((0.0, None), FLOATS | None, "it must be a tuple of float or None, got (0.0, None)"),
        ((0, 0.5), tuple[int, ...], "it must be a tuple of int, got (0, 0.5)"),
        (["eagle3"], tuple[dict, ...], "it must be a tuple of dict, got ['eagle3']"),
    ],
)
def test_what_does_not(value: object, kind: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_type("it", value, kind)
