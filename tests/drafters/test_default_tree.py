"""The default tree: within the room of the machine, never larger for a larger batch, and one that can be drafted."""

import pathlib

import pytest

from eagle_jax.checkpoint.pretrained import SHIPPED
from eagle_jax.drafters.default_tree import (
    ACCELERATOR_ROOM,
    CPU_ROOM,
    LADDER,
    RoundCosts,
    TauTable,
    TreeSize,
    best_tree,
    ladder_tree,
    read_tau_table,
)
from eagle_jax.drafters.eagle2 import check_sizes


@pytest.mark.parametrize(
    ("platform", "room"), [("cpu", CPU_ROOM), ("gpu", ACCELERATOR_ROOM), ("tpu", ACCELERATOR_ROOM)]
)
def test_room(platform: str, room: tuple[int, int]) -> None:
    sizes = [ladder_tree(batch, platform) for batch in range(1, 600)]
    for batch, size in enumerate(sizes, start=1):
        assert size.nodes <= room[0]
        assert size == LADDER[-1] or size.nodes * batch <= room[1]
        larger = [other for other in LADDER if size.nodes < other.nodes <= room[0]]
        assert all(other.nodes * batch > room[1] for other in larger)
    assert [size.nodes for size in sizes] == sorted((size.nodes for size in sizes), reverse=True)
    assert sizes[-1] == LADDER[-1]


def test_sizes() -> None:
    """The published tree alone on an accelerator; every rung can be drafted."""
    assert ladder_tree(1, "tpu") == (60, 7, 10)
    assert ladder_tree(1, "cpu") == ladder_tree() == (4, 1, 2)
    for size in LADDER:
        check_sizes(*size)


def test_no_row() -> None:
    with pytest.raises(ValueError, match="a batch has at least 1 row, got 0"):
        ladder_tree(0)


SMALL, LARGE = TreeSize(4, 1, 2), TreeSize(16, 5, 4)
TABLE = TauTable({SMALL: {0.0: 1.6, 1.0: 1.4}, LARGE: {0.0: 2.4, 1.0: 1.8}})


def costs(passes: dict[int, float], step: float = 1.0) -> RoundCosts:
    return RoundCosts(passes={1: 10.0, **passes}, rest=0.0, draft=2.0, step=step)


def test_a_round_costs_its_parts() -> None:
    """Sizes between those measured are interpolated."""
    measured = RoundCosts(passes={1: 10.0, 8: 17.0, 16: 33.0}, rest=0.5, draft=2.0, step=4.0)
    assert measured.plain == 10.5
    assert measured.round(SMALL) == pytest.approx(13.0 + 2.0 + 4.0)
    assert measured.round(TreeSize(12, 3, 4)) == pytest.approx(25.0 + 2.0 + 12.0)


def test_flat_passes_make_trees_large_and_steep_ones_small_or_none() -> None:
    assert best_tree(TABLE, costs({16: 10.0})).size == LARGE
    assert best_tree(TABLE, costs({4: 10.0, 16: 30.0})).size == SMALL
    choice = best_tree(TABLE, costs({4: 30.0, 16: 90.0}))
    assert choice.size is None
    assert choice.reason.startswith("plain decoding: of 2 trees the best, ")


def test_temperature_counts() -> None:
    """What a large tree wins at T = 0 only, it may lose at T = 1; between them tau is interpolated."""
    steep = costs({4: 10.0, 16: 15.0}, step=0.1)
    assert best_tree(TABLE, steep, (0.0,)).size == LARGE
    assert best_tree(TABLE, steep, (1.0,)).size == SMALL
    assert TABLE.at(LARGE, 0.5) == pytest.approx(2.1)
    assert TABLE.at(LARGE, 2.0) == pytest.approx(1.8)
    assert "tau 2.10 expected" in best_tree(TABLE, costs({16: 10.0}), (0.0, 1.0)).reason


def test_trees_larger_than_any_measured_pass_do_not_stand() -> None:
    assert best_tree(TABLE, costs({8: 10.0})).size == SMALL


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"tau": {}}',
        '{"tau": {"4/1": {"0": 2}}}',
        '{"tau": {"4/1/2": {}}}',
        '{"tau": {"4/1/2": {"0": 0.5}}}',
    ],
)
def test_a_table_that_is_none(tmp_path: pathlib.Path, text: str) -> None:
    assert read_tau_table(tmp_path) is None
    (tmp_path / "tau.json").write_text(text)
    with pytest.raises(ValueError, match=r"tau\.json is no table of tau by tree"):
        read_tau_table(tmp_path)


def test_the_table_that_ships() -> None:
    """Of trees that can be drafted; more nodes and levels of the same kind accept more."""
    table = read_tau_table(SHIPPED / "smollm2-135m-eagle3")
    assert table is not None
    for size, by_temperature in table.tau.items():
        check_sizes(*size)
        assert set(by_temperature) == {0.0, 1.0}
    assert table.at(TreeSize(60, 7, 10), 0.0) > table.at(TreeSize(8, 2, 3), 0.0) > table.at(TreeSize(2, 0, 1), 0.0) > 1
