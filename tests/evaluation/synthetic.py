"""Rows as an evaluation could have written them, for tables and figures: two tasks, two temperatures, some methods."""

import itertools
from typing import Any

import numpy as np

from eagle_jax.evaluation.metrics import n_alpha
from eagle_jax.evaluation.rows import TIMINGS
from eagle_jax.evaluation.tables import LATER_FIELDS

METHODS = {  # method, nodes, depth, top_k, chance of the first token, loss a temperature
    "eagle3, 60 nodes": ("eagle3", 60, 7, 10, 0.72, 0.10),
    "eagle3, 16 nodes": ("eagle3", 16, 5, 4, 0.66, 0.10),
    "eagle2, 60 nodes": ("eagle2", 60, 7, 10, 0.60, 0.15),
    "prompt lookup": ("prompt_lookup", 11, 9, 1, 0.25, 0.20),
}
TASKS = {"mt_bench": 1.0, "gsm8k": 1.1}
ROUNDS = 400


def make_row(label: str, task: str, temperature: float, **changed: Any) -> dict[str, Any]:
    """One row; fields that figures and tables do not read are missing."""
    method, nodes, depth, top_k, chance, loss = METHODS[label]
    chance = min(0.95, TASKS[task] * chance * (1 - loss * temperature))
    reach = np.array([ROUNDS * chance**n for n in range(depth + 2)]).round().astype(int)
    accepted = (reach - np.append(reach[1:], 0)).tolist()
    tau = float(reach.sum() / ROUNDS)
    seconds = 0.03 * (1 + 0.4 * np.log2(nodes) / 3 + 0.04 * depth)  # of a round
    tokens, turns = int(reach.sum()) + 10, 10
    speedup = tau * 0.03 / seconds
    return {
        "target": "toy",
        "method": method,
        "label": label,
        "task": task,
        "temperature": temperature,
        "seed": 0,
        "dtype": "float32",
        "device": "cpu",
        "max_new_tokens": 128,
        "rule": "match",
        "share_noise": True,
        "tree": {"nodes": nodes, "depth": depth, "top_k": top_k},
        "prompts": 10,
        "turns": turns,
        "tokens": tokens,
        "plain_tokens": tokens,
        "rounds": ROUNDS,
        "tau": tau,
        "accepted": accepted,
        "n_alpha": n_alpha(accepted),
        "identical_prompts": 10,
        "first_difference_margin": None,
        "tokens_per_second": tau / seconds,
        "plain_tokens_per_second": 1 / 0.03,
        "prefill_seconds": 1.5,
        "decode_seconds": ROUNDS * seconds,
        "plain_prefill_seconds": 1.4,
        "plain_decode_seconds": 0.03 * (tokens - turns),
        "speedup": speedup,
        "speedup_with_prefill": 0.95 * speedup,
        "speedup_of_totals": 0.99 * speedup,
        "efficiency": speedup / tau,
        "commit": "abc",
        **LATER_FIELDS,
        **changed,
    }


UNPLAYED = TIMINGS | {"plain_tokens", "identical_prompts", "first_difference_margin"}
"""Fields that teacher-forced rows of earlier versions lack."""


def played(row: dict[str, Any]) -> dict[str, Any]:
    """The row as earlier versions wrote it without times."""
    return {name: value for name, value in row.items() if name not in UNPLAYED | LATER_FIELDS.keys()} | {
        "speedup": None
    }


def make_rows() -> list[dict[str, Any]]:
    """All of them."""
    return [make_row(label, task, t) for t, task, label in itertools.product((0.0, 1.0), TASKS, METHODS)]
