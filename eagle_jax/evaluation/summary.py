"""From answers to the record of a run and the lines that are shown.

The record is one JSON object; a number that does not exist (tau without a round) is null in it.
"""

from collections.abc import Sequence
from typing import Any

from eagle_jax.drafters.base import Drafter
from eagle_jax.evaluation.metrics import finite, tau, tokens_per_second
from eagle_jax.evaluation.runner import Answer
from eagle_jax.generator import Generation

HARDLY_ANY = 0.1
"""Accepted tokens a round below which a head is doubted; one trained for minutes has several times as many."""

ENOUGH_ROUNDS = 32
"""Rounds before which it is not: of heads that have 0.3 a round, half a per cent have had fewer than 0.1 by then."""


def tree_size(drafter: Drafter) -> dict[str, int | None]:
    """The official triple of a drafter; plain decoding has no depth.

    Nodes that can never be accepted count among the nodes, not in the depth.
    """
    if drafter.max_depth == 0:
        return {"nodes": drafter.nodes, "depth": None, "top_k": None}
    return {"nodes": drafter.nodes, "depth": drafter.most_accepted - 1, "top_k": drafter.top_k}


def tree_line(tree: dict[str, int | None]) -> str:
    """Sizes of a draft tree in words."""
    if tree["depth"] is None:
        return "no drafts"
    return f"{tree['nodes']} nodes, depth {tree['depth']}, top-k {tree['top_k']}"


def summarise(
    settings: dict[str, Any], tree: dict[str, int | None], answers: Sequence[Answer], difference_margin: float | None
) -> dict[str, Any]:
    """The record of a run.

    Args:
      settings: what was run, copied to the front: target, method, temperature, seed, dtype, device, batch.
      tree: as `tree_size` gives it.
      answers: at least one; the comparison is reported where they hold plain answers.
      difference_margin: margin at the first difference from plain decoding; None where nothing differed. An infinite
        one is null in the record.
    """
    written = [answer.written for answer in answers]
    plain = [answer.plain for answer in answers if answer.plain is not None]
    record = {
        **settings,
        "prompts": len(answers),
        "tokens": sum(generation.num_tokens for generation in written),
        "rounds": sum(sum(generation.rounds) for generation in written),
        "tau": finite(tau(written)),
        "tokens_per_second": finite(tokens_per_second(written)),
        "tokens_per_second_with_prefill": finite(tokens_per_second(written, with_prefill=True)),
        "prefill_seconds": sum(generation.prefill_seconds for generation in written),
        "decode_seconds": sum(generation.decode_seconds for generation in written),
        "gave_up": sum(generation.gave_up for generation in written),
        "tree": tree,
    }
    if plain:
        for ending, with_prefill in (("", False), ("_with_prefill", True)):
            speed, plain_speed = (tokens_per_second(one, with_prefill=with_prefill) for one in (written, plain))
            record[f"plain_tokens_per_second{ending}"] = finite(plain_speed)
            record[f"speedup{ending}"] = finite(speed / plain_speed)
        record |= {
            "identical_prompts": sum(answer.identical for answer in answers),
            "first_difference_margin": None if difference_margin is None else finite(difference_margin),
        }
    return record | {
        "answers": [
            {
                "question_id": answer.question_id,
                "prompt": answer.prompt,
                "text": answer.text,
                "token_ids": answer.written.tokens[0],
                **logprob_fields(answer.written),
            }
            for answer in answers
        ]
    }


def logprob_fields(written: Generation) -> dict[str, Any]:
    """Log-probabilities of an answer, where there are any: of each token, and (id, log-probability) of the best."""
    if not written.logprobs:
        return {}
    (answer,) = written.logprobs
    fields: dict[str, Any] = {"logprobs": answer.written.tolist()}
    if answer.top.shape[1]:
        pairs = zip(answer.top_ids.tolist(), answer.top.tolist(), strict=True)
        fields["top_logprobs"] = [list(zip(ids, values, strict=True)) for ids, values in pairs]
    return fields


def doubt(record: dict[str, Any]) -> str | None:
    """A line where hardly anything that a drafter proposes is accepted, after enough rounds to tell."""
    if record["rounds"] < ENOUGH_ROUNDS or record["gave_up"] or record["tau"] - 1 >= HARDLY_ANY:
        return None
    return (
        f"{record['tau'] - 1:.2f} drafted tokens a round are accepted, which is next to nothing: a head does that for "
        "another target or chat template, other layers or another RoPE base than it was trained with"
    )


def closing_lines(record: dict[str, Any]) -> list[str]:
    """What a run ends with on the terminal."""
    after_prompt = record["tokens"] - record["prompts"]
    lines = [
        f"{record['method']}, {tree_line(record['tree'])}",
        f"{record['tokens']} tokens, {after_prompt} of them in {record['rounds']} rounds: "
        f"tau {_shown(record['tau'])}, {_shown(record['tokens_per_second'], 1)} tokens/s after the prompt",
    ]
    if record["gave_up"]:
        lines.append(
            f"drafting took more time than it saved and was given up in {record['gave_up']} of {record['prompts']} "
            "answers; tau counts the plain rounds after that, too"
        )
    if "speedup" in record:
        same, count = record["identical_prompts"], record["prompts"]
        by_design = record.get("rule") == "residual"  # follows the target's distribution with draws of its own
        tokens = "tokens identical" if same == count else f"tokens identical in {same} of {count} answers"
        tokens = "another text by design (--rule=residual)" if by_design else tokens
        lines.append(
            f"plain decoding: {_shown(record['plain_tokens_per_second'], 1)} tokens/s; "
            f"speed-up {_shown(record['speedup'])}, {tokens}"
        )
        if same < count and not by_design:
            margin = record["first_difference_margin"]
            lines.append(
                f"at the first difference the best score leads by {'inf' if margin is None else f'{margin:.2g}'}"
            )
    if record.get("batch", 1) > 1:  # where the other rows wait while a prompt is read
        line = f"prompts included: {_shown(record['tokens_per_second_with_prefill'], 1)} tokens/s"
        if "speedup" in record:
            plain = _shown(record["plain_tokens_per_second_with_prefill"], 1)
            line += f"; plain decoding {plain}, speed-up {_shown(record['speedup_with_prefill'])}"
        lines.append(line)
    return lines


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; floats are shown with two digits, or with three significant ones where they are small."""

    def shown(cell: object) -> str:
        if not isinstance(cell, float):
            return str(cell)
        return f"{cell:.3g}" if abs(cell) < 1 else f"{cell:.2f}"

    def line(cells: Sequence[object]) -> str:
        return "| " + " | ".join(map(shown, cells)) + " |"

    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def _shown(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
