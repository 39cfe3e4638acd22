"""From answers side by side to one row a cell: a method on a task at a temperature with a seed.

A record holds one conversation as the journal keeps it, a row sums a cell's records up; rows follow from records alone.

    speedup              median over the prompts of (plain seconds a token) / (method's seconds a token), decoding alone
    speedup_of_totals    all plain seconds over all of the method's, both per token
    ..._with_prefill     the same with the time of reading the prompt, and with the first token, which comes from it
    efficiency           speedup / tau: what drafting and checking leave of the ideal
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eagle_jax.evaluation import metrics
from eagle_jax.evaluation.acceptance import n_alpha
from eagle_jax.evaluation.side_by_side import PLAIN, SideBySide, Turn
from eagle_jax.generator import Generation

Record = dict[str, Any]

TIMINGS = frozenset(
    f"{name}{ending}"
    for name in ("tokens_per_second", "plain_tokens_per_second", "speedup", "speedup_quartiles", "speedup_of_totals")
    for ending in ("", "_with_prefill")
) | {"prefill_seconds", "decode_seconds", "plain_prefill_seconds", "plain_decode_seconds", "efficiency"}
"""Fields of a row that change from run to run; the others do not."""


def record_turn(bench: SideBySide, turn: Turn, *, temperature: float, seed: int) -> Record:
    """What the journal keeps of a turn: answers, and the margin wherever one differs from plain decoding.

    No margin is looked for under the rule `residual`, whose text is another one by design.
    """
    plain = turn.answers[PLAIN].tokens[0]
    margins = {}
    for label, answer in turn.answers.items():
        place = metrics.first_difference(answer.tokens[0], plain)
        if place is not None and bench.contestants[label].rule == "match":
            margins[label] = metrics.margin(
                bench.target,
                bench.model.params,
                turn.prompt + plain[:place],
                temperature=temperature,
                seed=seed,
                sequence=turn.sequence,
            )
    answers = {label: _pack(answer) for label, answer in turn.answers.items()}
    return {"sequence": turn.sequence, "prompt_tokens": len(turn.prompt), "answers": answers, "margins": margins}


def cell_row(about: Mapping[str, Any], label: str, records: Sequence[Record]) -> Record:
    """The row of a cell.

    Args:
      about: what was run, copied to the front.
      label: the method.
      records: one a conversation, at least one: `turns` as `record_turn` gives them, `planned` turns, `commit`.
    """
    turns = [record["turns"] for record in records]
    pairs = [
        [(_unpack(turn["answers"][PLAIN]), _unpack(turn["answers"][label])) for turn in conversation]
        for conversation in turns
    ]
    plain, written = ([pair[side] for conversation in pairs for pair in conversation] for side in (0, 1))
    margins = [turn["margins"][label] for conversation in turns for turn in conversation if label in turn["margins"]]
    accepted = sum(generation.accepted[0] for generation in written)
    tau = metrics.tau(written)
    alone, whole = (_speedups(pairs, with_prefill=with_prefill) for with_prefill in (False, True))
    row = {
        **about,
        "prompts": len(records),
        "turns": len(written),
        "turns_left_out": sum(record["planned"] for record in records) - len(written),
        "tokens": sum(generation.num_tokens for generation in written),
        "plain_tokens": sum(generation.num_tokens for generation in plain),
        "rounds": sum(sum(generation.rounds) for generation in written),
        "gave_up": sum(generation.gave_up for generation in written),
        "tau": tau,
        "accepted": np.asarray(accepted).tolist(),
        "n_alpha": n_alpha(accepted),
        "identical_prompts": sum(
            all(one.tokens == other.tokens for one, other in conversation) for conversation in pairs
        ),
        "first_difference_margin": max(margins, default=None),
        "tokens_per_second": metrics.tokens_per_second(written),
        "plain_tokens_per_second": metrics.tokens_per_second(plain),
        "tokens_per_second_with_prefill": metrics.tokens_per_second(written, with_prefill=True),
        "plain_tokens_per_second_with_prefill": metrics.tokens_per_second(plain, with_prefill=True),
        "prefill_seconds": sum(generation.prefill_seconds for generation in written),
        "decode_seconds": sum(generation.decode_seconds for generation in written),
        "plain_prefill_seconds": sum(generation.prefill_seconds for generation in plain),
        "plain_decode_seconds": sum(generation.decode_seconds for generation in plain),
        **alone,
        **{f"{name}_with_prefill": value for name, value in whole.items()},
        "efficiency": (alone["speedup"] or math.nan) / tau,
        "commit": ", ".join(dict.fromkeys(record["commit"] for record in records if record["commit"])) or None,
    }
    return {name: _number(value) for name, value in row.items()}


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


def _number(value: Any) -> Any:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
