"""Rows against numbers worked out by hand."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from eagle_jax.evaluation.rows import TIMINGS, cell_row, record_turn
from eagle_jax.evaluation.turns import PLAIN, Turn
from eagle_jax.generator import Generation
from eagle_jax.sampling import SamplingConfig
from eagle_jax.testing import bigram_target
from tests.evaluation.test_side_by_side import generation

TARGET, PARAMS = bigram_target(258)
ABC = [1, 2, 3, 4, 5]
SAMPLING = SamplingConfig(temperature=0.7, seed=1)


def record(*turns: Turn, planned: int = 1, commit: str | None = "abc", same_text: Sequence[str] = ("a",)) -> Any:
    packed = [record_turn(TARGET, PARAMS, turn, SAMPLING, same_text=same_text) for turn in turns]
    return json.loads(json.dumps({"planned": planned, "commit": commit, "turns": packed}))


def turn(plain: Any, written: Any, sequence: int = 0, label: str = "a") -> Turn:
    return Turn([0], [[7, 8]], [sequence], {PLAIN: plain, label: written})


def test_two_conversations() -> None:
    slow = turn(generation(ABC, 4, 8.0, 1.0), generation(ABC, 2, 2.0, 1.0))
    short = turn(generation(ABC[:3], 2, 1.0, 1.0), generation(ABC[:3], 1, 2.0, 2.0), sequence=9)
    other = turn(generation(ABC, 4, 4.0, 1.0), generation(ABC, 4, 4.0, 1.0))
    row = cell_row({"task": "t"}, "a", [record(slow, short, planned=3), record(other)])
    assert row["task"] == "t"
    assert (row["prompts"], row["turns"], row["turns_left_out"]) == (2, 3, 1)
    assert (row["tokens"], row["plain_tokens"], row["rounds"]) == (13, 13, 7)
    assert row["tau"] == 10 / 7
    assert row["accepted"] == [0, 7, 0]
    assert row["n_alpha"] == [1.0, 0.0]
    assert row["tokens_per_second"] == 10 / 8
    assert row["plain_tokens_per_second"] == 10 / 13
    assert (row["decode_seconds"], row["plain_prefill_seconds"]) == (8.0, 3.0)
    # The first conversation: 9 s against 4 s for the same tokens; the second one: equal.
    assert row["speedup"] == pytest.approx((9 / 4 + 1) / 2)
    assert row["speedup_quartiles"] == pytest.approx([1 + 1.25 / 4, 1 + 3 * 1.25 / 4])
    assert row["speedup_of_totals"] == pytest.approx(13 / 8)
    assert row["speedup_with_prefill"] == pytest.approx((11 / 7 + 1) / 2)
    assert row["speedup_of_totals_with_prefill"] == pytest.approx(16 / 12)
    assert row["efficiency"] == pytest.approx(row["speedup"] / row["tau"])
    assert (row["identical_prompts"], row["first_difference_margin"], row["commit"]) == (2, None, "abc")
    assert row.keys() >= TIMINGS


def test_a_difference_and_its_margin() -> None:
    texts = [[1, 2, 9, 4, 5], [1, 3, 3, 4, 5], ABC]
    records = [record(turn(generation(ABC), generation(text), n)) for n, text in enumerate(texts)]
    row = cell_row({}, "a", records)
    assert row["identical_prompts"] == 1
    margins = [one["turns"][0]["margins"].get("a") for one in records]
    assert margins[2] is None
    assert row["first_difference_margin"] == max(margins[:2]) > min(margins[:2]) > 0


def test_another_text_by_design_has_no_margin() -> None:
    one = record(turn(generation(ABC), generation([9, 9]), label="b"), same_text=())
    row = cell_row({}, "b", [one])
    assert (row["identical_prompts"], row["first_difference_margin"], row["plain_tokens"], row["tokens"]) == (
        0,
        None,
        5,
        2,
    )
    assert row["speedup"] == 0.25  # four tokens after the first in a second, against one


def test_answers_of_one_token_have_no_speed() -> None:
    one = turn(generation([2], 0, 0.0, 1.0), generation([2], 0, 0.0, 2.0))
    row = cell_row({}, "a", [record(one, commit=None)])
    assert [row[name] for name in ("tau", "speedup", "speedup_quartiles", "tokens_per_second", "efficiency")] == [
        None
    ] * 5
    assert row["speedup_with_prefill"] == 0.5
    assert (row["n_alpha"], row["commit"]) == ([], None)
    json.dumps(row, allow_nan=False)


def test_several_commits() -> None:
    same = turn(generation(ABC), generation(ABC))
    commits = ["abc", None, "def", "abc"]
    assert cell_row({}, "a", [record(same, commit=commit) for commit in commits])["commit"] == "abc, def"


def test_a_group_of_conversations() -> None:
    """Two rows, of which the second one differs in its second turn; one row was left out there."""
    both = Turn([0, 1], [[7, 8], [7]], [0, 1], {PLAIN: rows(ABC, ABC), "a": rows(ABC, ABC)})
    later = Turn([1], [[7, 8]], [9], {PLAIN: rows(ABC), "a": rows([1, 2])})
    row = cell_row({}, "a", [{**record(both, later, planned=4), "conversations": 2}])
    assert (row["prompts"], row["turns"], row["turns_left_out"]) == (2, 3, 1)
    assert row["identical_prompts"] == 1
    assert row["first_difference_margin"] > 0
    assert row["tokens"] == 12


def rows(*tokens: list[int]) -> Generation:
    accepted = np.ones((len(tokens), 3), np.int32)
    return dataclasses.replace(generation(ABC), tokens=[*tokens], rounds=[2] * len(tokens), accepted=accepted)


def test_without_times() -> None:
    row = cell_row({"mode": "teacher_forced"}, "a", [record(turn(generation(ABC), generation(ABC)))])
    assert all(row[name] is None for name in TIMINGS)
    assert row["identical_prompts"] is None  # the text was given
    assert row["tau"] == 4
