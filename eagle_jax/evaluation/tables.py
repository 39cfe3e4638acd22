"""Rows (`eagle_jax.evaluation.rows`) as Markdown tables, and the groups that tables and figures are made of."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eagle_jax.evaluation.acceptance import well_seen
from eagle_jax.evaluation.report import markdown_table

Row = dict[str, Any]


def distinct(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a field, in the order in which they first stand there."""
    return list(dict.fromkeys(row[name] for row in rows))


def groups(rows: Sequence[Row], *names: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows that agree in these fields, with the values, in the order in which they first stand there."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    yield from found.items()


def mean(rows: Sequence[Row], name: str) -> float | None:
    """Mean over the rows that have a number there; None where none has."""
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.mean(values) if values else None


def accepted(rows: Sequence[Row]) -> np.ndarray:
    """i64[P]: rounds by the number of accepted tokens, all rows together."""
    width = max(len(row["accepted"]) for row in rows)
    return sum((np.pad(row["accepted"], (0, width - len(row["accepted"]))) for row in rows), np.zeros(width, np.int64))


def tree_text(tree: Row) -> str:
    """The official triple, `-` where a method has no such size."""
    return ", ".join("-" if tree[name] is None else str(tree[name]) for name in ("nodes", "depth", "top_k"))


def cells(rows: Sequence[Row]) -> str:
    """What the cells of `method_table` hold: rows that were played back have no times."""
    return "tau" if mean(rows, "speedup") is None else "speed-up (tau)"


def method_table(rows: Sequence[Row]) -> str:
    """Methods down, tasks across, `cells` in each: means over the seeds, at the end over the tasks."""
    tasks, timed = distinct(rows, "task"), mean(rows, "speedup") is not None

    def cell(rows: Sequence[Row]) -> str:
        tau = _two_digits(mean(rows, "tau"))
        return f"{_two_digits(mean(rows, 'speedup'))} ({tau})" if timed else tau

    body = [
        [label, tree_text(own[0]["tree"]), *(cell([row for row in own if row["task"] == t]) for t in tasks), cell(own)]
        for (label,), own in groups(rows, "label")
    ]
    return markdown_table(["method", "nodes, depth, top-k", *tasks, "mean"], body)


def speed_table(rows: Sequence[Row]) -> str:
    """Tokens a second, speed-up with the prompt counted, efficiency, and what became of exactness."""
    body = []
    for (label,), own in groups(rows, "label"):
        numbers = [
            mean(own, name)
            for name in ("tokens_per_second", "plain_tokens_per_second", "speedup", "speedup_with_prefill")
        ]
        numbers += [mean(own, "speedup_of_totals"), mean(own, "efficiency")]
        same, asked = (sum(row[name] for row in own) for name in ("identical_prompts", "prompts"))
        margin = max((row["first_difference_margin"] or 0.0 for row in own), default=0.0)
        body.append([label, *map(_two_digits, numbers), f"{same} of {asked}", f"{margin:.2g}" if margin else "-"])
    header = ["method", "tokens/s", "plain", "speed-up", "with prefill", "of totals", "efficiency", "identical"]
    return markdown_table([*header, "margin where not"], body)


def acceptance_table(rows: Sequence[Row]) -> str:
    """n-alpha of each method over all tasks: the chance to get one deeper, where enough rounds have seen it."""
    found = {label: well_seen(accepted(own)) for (label,), own in groups(rows, "label")}
    width = max(map(len, found.values()))
    body = [[label, *(f"{a:.2f}" for a in alphas), *["-"] * (width - len(alphas))] for label, alphas in found.items()]
    return markdown_table(["method", *(f"{n}-alpha" for n in range(width))], body)


def _two_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
