"""The default tree: within the room of the machine, never larger for a larger batch, and one that can be drafted."""

import pytest

from eagle_jax.drafters.default_tree import ACCELERATOR, CPU, LADDER, default_tree
from eagle_jax.drafters.eagle2 import check_sizes


@pytest.mark.parametrize(("platform", "room"), [("cpu", CPU), ("gpu", ACCELERATOR), ("tpu", ACCELERATOR)])
def test_room(platform: str, room: tuple[int, int]) -> None:
    sizes = [default_tree(batch, platform) for batch in range(1, 600)]
    for batch, size in enumerate(sizes, start=1):
        assert size.nodes <= room[0]
        assert size == LADDER[-1] or size.nodes * batch <= room[1]
        larger = [other for other in LADDER if size.nodes < other.nodes <= room[0]]
        assert all(other.nodes * batch > room[1] for other in larger)
    assert [size.nodes for size in sizes] == sorted((size.nodes for size in sizes), reverse=True)
    assert sizes[-1] == LADDER[-1]


def test_sizes() -> None:
    """The published tree alone on an accelerator; every rung can be drafted."""
    assert default_tree(1, "tpu") == (60, 7, 10)
    assert default_tree(1, "cpu") == default_tree() == (4, 1, 2)
    for size in LADDER:
        check_sizes(*size)


def test_no_row() -> None:
    with pytest.raises(ValueError, match="a batch has at least 1 row, got 0"):
        default_tree(0)
