import pytest

from eagle_jax.resume import check_same


@pytest.mark.parametrize(
    ("found", "wanted", "difference"),
    [
        ({"a": 1, "b": {"c": [1]}}, {"b": {"c": [2]}}, "its a is 1, not None"),
        ({"b": {"c": [1], "d": 2}}, {"b": {"c": [2], "d": 2}}, r"its b.c is \[1\], not \[2\]"),
        ({"b": {}}, {"b": {}, "e": 3}, "its e is None, not 3"),
    ],
)
def test_the_first_difference_is_named(found: object, wanted: object, difference: str) -> None:
    with pytest.raises(ValueError, match=rf"^runs/a is another run: {difference}; nothing was written$"):
        check_same("runs/a", found, wanted)
    check_same("runs/a", found, found)
