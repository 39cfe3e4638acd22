"""Markdown tables of rows (`eagle_jax.evaluation.rows`), and grouping of rows for tables and figures."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from eagle_jax.evaluation.metrics import well_seen
from eagle_jax.evaluation.rows import TEACHER_FORCED, TIMED
from eagle_jax.evaluation.summary import markdown_table

Row = dict[str, Any]

SETTINGS = ("target", "dtype", "device", "max_new_tokens")
"""Rows that differ in one of these are not comparable."""

LATER_FIELDS: Row = {
    "mode": TIMED,
    "batch": 1,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "give_up": False,
    "turns_left_out": 0,
}
"""Fields that rows of earlier versions lack, with what they then were; those without a speed-up were teacher-forced."""


def upgraded(row: Row) -> Row:
    """A row of any version as one of today."""
    mode = {} if "mode" in row or row["speedup"] is not None else {"mode": TEACHER_FORCED}
    return {**LATER_FIELDS, **mode, **row}


def distinct(rows: Sequence[Row], name: str) -> list[Any]:
    """The values of a field, in order of first occurrence."""
    return list(dict.fromkeys(row[name] for row in rows))


def groups(rows: Sequence[Row], *names: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows that agree in these fields, with the values, in order of first occurrence."""
    by_values: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        by_values.setdefault(tuple(row[name] for name in names), []).append(row)
    yield from by_values.items()


def comparable(runs: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """Rows grouped into tables: the same `SETTINGS`, the same prompts, and one method per label in each.

    A method's rows of a run stay together; they are added to the first table that they do not contradict.

    Args:
      runs: the rows of each file.

    Raises:
      ValueError: rows of one run and label that contradict each other.
    """
    tables: dict[tuple[Any, ...], list[tuple[list[Row], dict[Any, Any]]]] = {}
    for run in runs:
        for (*settings, _), own in groups(run, *SETTINGS, "label"):
            facts, some = _facts(own), tables.setdefault(tuple(settings), [])
            for rows, known in some:
                if all(known.get(name, fact) == fact for name, fact in facts.items()):
                    rows += own
                    known |= facts
                    break
            else:
                some.append((list(own), facts))
    return [rows for some in tables.values() for rows, _ in some]


def _facts(rows: Sequence[Row]) -> dict[Any, Any]:
    """What rows of a table must agree in, by its name."""
    facts: dict[Any, Any] = {}
    how = ("mode", "batch", "top_k", "top_p", "min_p")
    for row in rows:
        task, turns = row["task"], row["turns"]
        method = row["method"], tree_text(row["tree"]), row["rule"], row["share_noise"], row["give_up"]
        for name, fact in {
            ("prompts, turns", task): (row["prompts"], turns + row["turns_left_out"]),
            ("turns answered", task, row["temperature"], row["seed"]): turns,
            ("method, tree, rule, noise shared, given up", row["label"]): method,
            ("mode, batch, top-k, top-p, min-p", "all"): tuple(row[name] for name in how),
        }.items():
            if facts.setdefault(name, fact) != fact:
                raise ValueError(f"{row['label']!r} on {task}: one file says {facts[name]} and {fact} ({name[0]})")
    return facts


def mean(rows: Sequence[Row], name: str) -> float | None:
    """Mean over the rows that have a number there; None where none has."""
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.mean(values) if values else None


def mean_of_tasks(rows: Sequence[Row], name: str, tasks: Sequence[str]) -> float | None:
    """Mean over the tasks of the means over the seeds; None where a task has no number."""
    means = [mean([row for row in rows if row["task"] == task], name) for task in tasks]
    numbers = [value for value in means if value is not None]
    return statistics.mean(numbers) if len(numbers) == len(tasks) else None


def tau_of_all(rows: Sequence[Row], tasks: Sequence[str]) -> float | None:
    """Tau of all rounds together, as `metrics.tau`; None where a task is missing."""
    rounds = sum(row["rounds"] for row in rows)
    if not (rounds and has_all(rows, tasks)):
        return None
    return sum(row["tokens"] - row["turns"] for row in rows) / rounds


def has_all(rows: Sequence[Row], tasks: Sequence[str]) -> bool:
    """Whether there are rows of every task."""
    return set(tasks) <= {row["task"] for row in rows}


def accepted(rows: Sequence[Row]) -> np.ndarray:
    """i64[P]: rounds by the number of accepted tokens, all rows together."""
    width = max(len(row["accepted"]) for row in rows)
    return sum((np.pad(row["accepted"], (0, width - len(row["accepted"]))) for row in rows), np.zeros(width, np.int64))


def tree_text(tree: Row) -> str:
    """The official triple, `-` where a method has no such size."""
    return ", ".join("-" if tree[name] is None else str(tree[name]) for name in ("nodes", "depth", "top_k"))


def cells(rows: Sequence[Row]) -> str:
    """What the cells of `method_table` hold: rows of recorded answers have no times."""
    return "tau" if mean(rows, "speedup") is None else "speed-up (tau)"


def method_table(rows: Sequence[Row]) -> str:
    """Methods down, tasks across, `cells` in each: means over the seeds. At the end all tasks together.

    Tau of all rounds counts long answers more than the mean of the tasks does.
    """
    tasks, timed = distinct(rows, "task"), mean(rows, "speedup") is not None

    def cell(rows: Sequence[Row]) -> str:
        tau = _two_digits(mean(rows, "tau"))
        return f"{_two_digits(mean(rows, 'speedup'))} ({tau})" if timed else tau

    body = []
    for (label,), own in groups(rows, "label"):
        together = mean_of_tasks(own, "speedup" if timed else "tau", tasks), tau_of_all(own, tasks)
        by_task = (cell([row for row in own if row["task"] == task]) for task in tasks)
        body.append([label, tree_text(own[0]["tree"]), *by_task, *map(_two_digits, together)])
    means = f"{'speed-up' if timed else 'tau'}, mean of tasks"
    return markdown_table(["method", "nodes, depth, top-k", *tasks, means, "tau, all rounds"], body)


def speed_table(rows: Sequence[Row]) -> str:
    """Tokens per second, speed-ups, efficiency (means of the tasks), and how many answers are identical."""
    body, tasks = [], distinct(rows, "task")
    names = ["tokens_per_second", "plain_tokens_per_second", "speedup", "speedup_with_prefill"]
    names += ["speedup_of_totals", "efficiency"]
    for (label,), own in groups(rows, "label"):
        numbers = [mean_of_tasks(own, name, tasks) for name in names]
        same = sum(row["identical_prompts"] for row in own)
        prompts = sum(row["prompts"] for row in own)
        margin = max((row["first_difference_margin"] or 0.0 for row in own), default=0.0)
        body.append([label, *map(_two_digits, numbers), f"{same} of {prompts}", f"{margin:.2g}" if margin else "-"])
    header = ["method", "tokens/s", "plain", "speed-up", "with prefill", "of totals", "efficiency", "identical"]
    return markdown_table([*header, "margin where not"], body)


def acceptance_table(rows: Sequence[Row]) -> str:
    """n-alpha of each method over all tasks: the probability of one more accepted token, where enough rounds count."""
    tasks = distinct(rows, "task")
    rates = {label: well_seen(accepted(own)) if has_all(own, tasks) else [] for (label,), own in groups(rows, "label")}
    width = max(map(len, rates.values()))
    body = [[label, *(f"{a:.2f}" for a in alphas), *["-"] * (width - len(alphas))] for label, alphas in rates.items()]
    return markdown_table(["method", *(f"{n}-alpha" for n in range(width))], body)


def _two_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def tau_table(rows: Sequence[Row]) -> dict[str, Any]:
    """What a head ships with so that its default tree can be chosen (`drafters.default_tree.read_tau_table`).

    Args:
      rows: of one head with trees of several sizes; those that do not share the target's noise are left out.

    Raises:
      ValueError: rows of several methods or settings, or none with a tree.
    """
    chosen = [row for row in rows if row["share_noise"] and row["tree"]["depth"] is not None]
    for name in ("method", *SETTINGS):
        if len(distinct(chosen, name)) != 1:
            raise ValueError(f"a table of tau needs rows of one {name}, got {distinct(chosen, name)}")
    tau: dict[str, dict[str, float]] = {}
    for (label, temperature), own in groups(chosen, "label", "temperature"):
        value = tau_of_all(own, distinct(chosen, "task"))
        if value is None:
            raise ValueError(f"{label!r} at T = {temperature:g} was not measured on all tasks")
        size = "/".join(str(own[0]["tree"][name]) for name in ("nodes", "depth", "top_k"))
        tau.setdefault(size, {})[f"{temperature:g}"] = round(value, 3)
    prompts = {task: own[0]["prompts"] for (task,), own in groups(chosen, "task")}
    about = {name: chosen[0][name] for name in ("max_new_tokens", "dtype")}
    return {"prompts": sum(prompts.values()), **about, "tau": tau}
