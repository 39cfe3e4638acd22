from typing import Any

import pytest

from eagle_jax.evaluation import tables
from tests.evaluation.synthetic import make_row

SOME: dict[str, Any] = {"tokens": 310, "turns": 10, "rounds": 100, "tau": 3.0}
MORE: dict[str, Any] = {"tokens": 1210, "turns": 10, "rounds": 300, "tau": 4.0}
FIRST = make_row("eagle3, 60 nodes", "mt_bench", 0.0, speedup=2.0, accepted=[1, 1, 2], **SOME)
SECOND = {**FIRST, **MORE, "task": "gsm8k", "speedup": 1.0, "accepted": [0, 4, 0], "identical_prompts": 9}
OTHER = {**make_row("prompt lookup", "gsm8k", 0.0, speedup=None, tau=None, rounds=0), "accepted": [3, 1]}
ROWS = [FIRST, {**SECOND, "first_difference_margin": 2.5e-5}, OTHER]


def test_methods_by_tasks() -> None:
    assert tables.method_table(ROWS).splitlines() == [
        "| method | nodes, depth, top-k | mt_bench | gsm8k | speed-up, mean of tasks | tau, all rounds |",
        "|---|---|---|---|---|---|",
        "| eagle3, 60 nodes | 60, 7, 10 | 2.00 (3.00) | 1.00 (4.00) | 1.50 | 3.75 |",
        "| prompt lookup | 11, 9, 1 | - (-) | - (-) | - | - |",
    ]


def test_without_times() -> None:
    assert tables.method_table([{**row, "speedup": None} for row in ROWS]).splitlines() == [
        "| method | nodes, depth, top-k | mt_bench | gsm8k | tau, mean of tasks | tau, all rounds |",
        "|---|---|---|---|---|---|",
        "| eagle3, 60 nodes | 60, 7, 10 | 3.00 | 4.00 | 3.50 | 3.75 |",
        "| prompt lookup | 11, 9, 1 | - | - | - | - |",
    ]


def test_seeds_are_averaged() -> None:
    """One more seed of a task is no more of the task."""
    rows = [FIRST, {**FIRST, "seed": 1, "speedup": 4.0, "tau": 5.0}, SECOND]
    assert "| 3.00 (4.00) | 1.00 (4.00) | 2.00 |" in tables.method_table(rows)


def test_a_missing_task_leaves_no_mean() -> None:
    rows = [{**FIRST, "accepted": [30, 40]}, SECOND, {**OTHER, **SOME, "speedup": 2.0, "accepted": [30, 40]}]
    assert tables.method_table(rows).splitlines()[3].endswith("| - (-) | 2.00 (3.00) | - | - |")
    assert tables.speed_table(rows).splitlines()[3] == "| prompt lookup | - | - | - | - | - | - | 10 of 10 | - |"
    assert tables.acceptance_table(rows).splitlines()[2:] == [
        "| eagle3, 60 nodes | 0.59 | 0.00 |",
        "| prompt lookup | - | - |",
    ]


def test_rows_that_compare() -> None:
    """Other settings or other prompts make another table, not another run or method."""
    one, two = [FIRST, SECOND, OTHER], [{**FIRST, "label": "another"}]
    assert tables.comparable([one, two]) == [[FIRST, SECOND, OTHER, *two]]
    longer = [{**row, "max_new_tokens": 64} for row in one]
    assert tables.comparable([one, longer, two]) == [[*one, *two], longer]
    for change in ({"prompts": 24}, {"turns": 20}, {"turns_left_out": 1}):  # a method is not torn apart
        changed = {"label": "field", **change}
        other = [{**FIRST, **changed}, {**SECOND, "label": "field"}]
        assert tables.comparable([one, other]) == [one, other]
        assert tables.comparable([one, other, two]) == [[*one, *two], other]


def test_turns_may_differ_between_temperatures() -> None:
    """Where the answers left no room for the last."""
    rows = [FIRST, {**FIRST, "temperature": 1.0, "turns": 9, "turns_left_out": 1}]
    assert tables.comparable([rows]) == [rows]
    fewer = [{**rows[1], "label": "another", "turns": 8, "turns_left_out": 2}]
    assert tables.comparable([rows, fewer]) == [rows, fewer]


@pytest.mark.parametrize(
    "change",
    [{"tree": {**FIRST["tree"], "nodes": 16}}, {"give_up": True}, {"rule": "residual"}, {"share_noise": False}],
)
def test_a_label_is_one_method(change: dict[str, Any]) -> None:
    other = [{**SECOND, **change}]
    assert tables.comparable([[FIRST], other]) == [[FIRST], other]
    with pytest.raises(ValueError, match=r"'eagle3, 60 nodes' on gsm8k: one file says .* \(method, tree, rule"):
        tables.comparable([[FIRST, *other]])


def test_played_rows_say_nothing_of_giving_up() -> None:
    """They never do it."""
    assert tables.comparable([[{**FIRST, "give_up": False}], [SECOND]]) == [[{**FIRST, "give_up": False}, SECOND]]


def test_speed_and_exactness() -> None:
    table = tables.speed_table(ROWS).splitlines()
    assert table[2].startswith("| eagle3, 60 nodes | ")
    assert table[2].endswith("| 19 of 20 | 2.5e-05 |")
    assert table[3].endswith("| 10 of 10 | - |")


def test_acceptance_counts_all_tasks_together() -> None:
    rows = [*ROWS, {**OTHER, "task": "mt_bench", "accepted": [0, 0]}]
    rows = [{**row, "accepted": [20 * count for count in row["accepted"]]} for row in rows]
    assert tables.acceptance_table(rows).splitlines() == [
        "| method | 0-alpha | 1-alpha |",
        "|---|---|---|",
        "| eagle3, 60 nodes | 0.88 | 0.29 |",
        "| prompt lookup | 0.25 | - |",
    ]


def test_trees() -> None:
    assert tables.tree_text({"nodes": 1, "depth": None, "top_k": None}) == "1, -, -"
