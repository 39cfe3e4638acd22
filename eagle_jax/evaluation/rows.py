"""From answers to one row a cell: a method on a task at a temperature with a seed.

A record holds a group of conversations as the journal keeps it, a row sums a cell's records up; rows follow from
records alone.

    speedup              median over the groups of (plain seconds a token) / (method's seconds a token), decoding alone
    speedup_of_totals    all plain seconds over all of the method's, both per token
    ..._with_prefill     the same with the time of reading the prompt, and with the first token, which comes from it
    efficiency           speedup / tau: what drafting and checking leave of the ideal

All of these are null where nothing was timed (`acceptance`).
"""

import dataclasses
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eagle_jax.evaluation import metrics
from eagle_jax.evaluation.metrics import n_alpha
from eagle_jax.evaluation.turns import PLAIN, Turn
from eagle_jax.generator import Generation
from eagle_jax.sampling import SamplingConfig
from eagle_jax.types import Params, Target

Record = dict[str, Any]

TIMED, TEACHER_FORCED = "timed", "teacher_forced"
"""Modes of an evaluation: `side_by_side` or `acceptance`."""

TIMINGS = frozenset(
    f"{name}{ending}"
    for name in ("tokens_per_second", "plain_tokens_per_second", "speedup", "speedup_quartiles", "speedup_of_totals")
    for ending in ("", "_with_prefill")
) | {"prefill_seconds", "decode_seconds", "plain_prefill_seconds", "plain_decode_seconds", "efficiency"}
"""Fields of a row that change from run to run, null where nothing was timed; the others do not change."""


def record_turn(
    target: Target, params: Params, turn: Turn, sampling: SamplingConfig, *, same_text: Collection[str]
) -> Record:
    """What the journal keeps of a turn: answers, and the margin wherever one differs from plain decoding.

    Args:
      target, params: the model, for the margins.
      turn: answers of all methods.
      sampling: as the answers were sampled.
      same_text: labels of the methods that ought to write plain decoding's text: not of the rule `residual`.
    """
    margins: dict[str, float] = {}
    for label in same_text:
        for row, prompt in enumerate(turn.prompts):
            margin = metrics.margin_at_difference(
                target,
                params,
                prompt,
                turn.answers[PLAIN].tokens[row],
                turn.answers[label].tokens[row],
                sampling=sampling,
                sequence=turn.sequences[row],
            )
            if margin is not None:
                margins[label] = max(margin, margins.get(label, 0.0))
    return {
        "rows": turn.rows,
        "sequence": turn.sequences,
        "prompt_tokens": [len(prompt) for prompt in turn.prompts],
        "answers": {label: _pack(answer) for label, answer in turn.answers.items()},
        "margins": {label: metrics.finite(margin) for label, margin in margins.items()},
    }


def cell_row(about: Mapping[str, Any], label: str, records: Sequence[Record]) -> Record:
    """The row of a cell.

    Args:
      about: what was run, copied to the front.
      label: the method.
      records: one a group of conversations, at least one: `turns` as `record_turn` gives them, `planned` turns of all
        of them, `conversations` (1 where left out), `commit`.
    """
    pairs = [
        [(_unpack(turn["answers"][PLAIN]), _unpack(turn["answers"][label])) for turn in record["turns"]]
        for record in records
    ]
    plain = [pair[0] for group in pairs for pair in group]
    written = [pair[1] for group in pairs for pair in group]
    margins = [turn["margins"][label] for record in records for turn in record["turns"] if label in turn["margins"]]
    accepted = sum(generation.accepted.sum(0) for generation in written)
    tau = metrics.tau(written)
    turns = sum(len(generation.tokens) for generation in written)
    timed = about.get("mode", TIMED) == TIMED
    decode_only = _speedups(pairs, with_prefill=False)
    row = {
        **about,
        "prompts": sum(record.get("conversations", 1) for record in records),
        "turns": turns,
        "turns_left_out": sum(record["planned"] for record in records) - turns,
        "tokens": sum(generation.num_tokens for generation in written),
        "plain_tokens": sum(generation.num_tokens for generation in plain),
        "rounds": sum(sum(generation.rounds) for generation in written),
        "gave_up": sum(generation.gave_up for generation in written),
        "tau": tau,
        "accepted": np.asarray(accepted).tolist(),
        "n_alpha": n_alpha(accepted),
        "identical_prompts": sum(_count_identical(record, label) for record in records) if timed else None,
        "first_difference_margin": None if None in margins else max(margins, default=None),
        "tokens_per_second": metrics.tokens_per_second(written),
        "plain_tokens_per_second": metrics.tokens_per_second(plain),
        "tokens_per_second_with_prefill": metrics.tokens_per_second(written, with_prefill=True),
        "plain_tokens_per_second_with_prefill": metrics.tokens_per_second(plain, with_prefill=True),
        "prefill_seconds": sum(generation.prefill_seconds for generation in written),
        "decode_seconds": sum(generation.decode_seconds for generation in written),
        "plain_prefill_seconds": sum(generation.prefill_seconds for generation in plain),
        "plain_decode_seconds": sum(generation.decode_seconds for generation in plain),
        **decode_only,
        **{f"{name}_with_prefill": value for name, value in _speedups(pairs, with_prefill=True).items()},
        "efficiency": (decode_only["speedup"] or math.nan) / tau,
        "commit": ", ".join(dict.fromkeys(record["commit"] for record in records if record["commit"])) or None,
    }
    if not timed:
        row |= dict.fromkeys(TIMINGS)
    return {name: metrics.finite(value) for name, value in row.items()}


def _count_identical(record: Record, label: str) -> int:
    """Conversations of a group in which all turns are plain decoding's."""
    differing = set()
    for turn in record["turns"]:
        plain, answers = turn["answers"][PLAIN]["tokens"], turn["answers"][label]["tokens"]
        for row, one, other in zip(turn.get("rows", [0]), plain, answers, strict=True):
            if one != other:
                differing.add(row)
    return int(record.get("conversations", 1)) - len(differing)


def _speedups(pairs: Sequence[Sequence[tuple[Generation, Generation]]], *, with_prefill: bool) -> Record:
    """Median and quartiles over the conversations, and the ratio of totals."""

    def ratio(pairs: Iterable[tuple[Generation, Generation]]) -> float:
        plain, written = ([*side] for side in zip(*pairs, strict=True))
        speed = metrics.tokens_per_second(plain, with_prefill=with_prefill)
        return metrics.tokens_per_second(written, with_prefill=with_prefill) / speed

    # An answer of one token, which the prompt gives, has no round to be timed.
    ratios = [value for conversation in pairs if math.isfinite(value := ratio(conversation))]
    totals = ratio(pair for conversation in pairs for pair in conversation)
    if not ratios:
        return {"speedup": None, "speedup_quartiles": None, "speedup_of_totals": totals}
    quartiles = np.quantile(ratios, [0.25, 0.75]).tolist()
    return {"speedup": statistics.median(ratios), "speedup_quartiles": quartiles, "speedup_of_totals": totals}


def _pack(generation: Generation) -> Record:
    return {**dataclasses.asdict(generation), "accepted": generation.accepted.tolist()}


def _unpack(record: Record) -> Generation:
    return Generation(**{**record, "accepted": np.asarray(record["accepted"], np.int32)})
