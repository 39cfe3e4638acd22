import dataclasses
import json
import math

import numpy as np

from eagle_jax.drafters import make_prompt_lookup, make_vanilla
from eagle_jax.evaluation import runner, summary
from eagle_jax.generator import Generation

ABOUT = {"target": "toy", "method": "prompt_lookup", "temperature": 0.0, "seed": 0, "dtype": "float32", "device": "cpu"}


def generation(tokens: list[int], rounds: int, seconds: float) -> Generation:
    accepted = np.zeros((1, 1), np.int32)
    return Generation(
        tokens=[tokens], rounds=[rounds], accepted=accepted, prefill_seconds=0.5, decode_seconds=seconds, complete=True
    )


def answer(tokens: list[int], plain: list[int] | None, question_id: int = 0) -> runner.Answer:
    return runner.Answer(
        question_id=question_id,
        prompt="Hi",
        text="yes",
        written=generation(tokens, 2, 1.0),
        plain=None if plain is None else generation(plain, len(plain) - 1, 2.0),
    )


def test_record_without_comparison() -> None:
    record = summary.summarise(
        ABOUT, summary.tree_size(make_prompt_lookup(4)), [answer([5, 6, 7, 8, 9], None, 81)], None
    )
    assert record == {
        **ABOUT,
        "prompts": 1,
        "tokens": 5,
        "rounds": 2,
        "tau": 2.0,
        "tokens_per_second": 4.0,
        "tokens_per_second_with_prefill": 5 / 1.5,
        "prefill_seconds": 0.5,
        "decode_seconds": 1.0,
        "gave_up": 0,
        "tree": {"nodes": 5, "depth": 3, "top_k": 1},
        "answers": [{"question_id": 81, "prompt": "Hi", "text": "yes", "token_ids": [5, 6, 7, 8, 9]}],
    }
    assert summary.closing_lines(record) == [
        "prompt_lookup, 5 nodes, depth 3, top-k 1",
        "5 tokens, 4 of them in 2 rounds: tau 2.00, 4.0 tokens/s after the prompt",
    ]


def test_next_to_nothing_accepted() -> None:
    """Only after enough rounds, and not where some of the rounds were plain."""
    record = {"rounds": 32, "tau": 1.09, "gave_up": 0}
    assert (summary.doubt(record) or "").startswith(
        "0.09 drafted tokens a round are accepted, which is next to nothing"
    )
    for other in ({"rounds": 31}, {"tau": 1.1}, {"gave_up": 1}, {"rounds": 0, "tau": None}):
        assert summary.doubt(record | other) is None


def test_drafting_that_was_given_up_is_told() -> None:
    answers = [answer([5, 6, 7], None), answer([5, 6, 7], None)]
    answers[1] = dataclasses.replace(answers[1], written=dataclasses.replace(answers[1].written, gave_up=True))
    record = summary.summarise(ABOUT, summary.tree_size(make_prompt_lookup(4)), answers, None)
    assert "given up in 1 of 2 answers; tau counts the plain rounds" in summary.closing_lines(record)[2]


def test_record_with_comparison() -> None:
    answers = [answer([5, 6, 7, 8, 9], [5, 6, 7, 8, 9]), answer([5, 6, 7], [5, 6, 8])]
    record = summary.summarise(ABOUT, summary.tree_size(make_prompt_lookup(4)), answers, 1.5e-6)
    assert record["plain_tokens_per_second"] == 1.5
    assert record["speedup"] == 2.0
    assert record["identical_prompts"] == 1
    assert record["first_difference_margin"] == 1.5e-6
    assert summary.closing_lines(record) == [
        "prompt_lookup, 5 nodes, depth 3, top-k 1",
        "8 tokens, 6 of them in 4 rounds: tau 1.50, 3.0 tokens/s after the prompt",
        "plain decoding: 1.5 tokens/s; speed-up 2.00, tokens identical in 1 of 2 answers",
        "at the first difference the best score leads by 1.5e-06",
    ]


def test_another_text_by_design() -> None:
    record = summary.summarise(
        {**ABOUT, "rule": "residual"}, summary.tree_size(make_prompt_lookup(4)), [answer([5, 6], [5, 7])], None
    )
    assert summary.closing_lines(record)[-1].endswith("speed-up 2.00, another text by design (--rule=residual)")


def test_batches_say_what_the_prompts_took() -> None:
    """All tokens, over the seconds of prompts and rounds."""
    answers = [answer([5, 6, 7, 8, 9], [5, 6, 7, 8, 9]), answer([5, 6, 7], None)]
    tree = summary.tree_size(make_prompt_lookup(4))
    record = summary.summarise({**ABOUT, "batch": 2}, tree, answers[:1], None)
    assert (record["plain_tokens_per_second_with_prefill"], record["speedup_with_prefill"]) == (2.0, (5 / 1.5) / 2)
    assert summary.closing_lines(record)[3] == "prompts included: 3.3 tokens/s; plain decoding 2.0, speed-up 1.67"
    record = summary.summarise({**ABOUT, "batch": 2}, tree, answers[1:], None)
    assert summary.closing_lines(record)[2:] == ["prompts included: 2.0 tokens/s"]


def test_identical_answers_say_so() -> None:
    record = summary.summarise(ABOUT, summary.tree_size(make_vanilla()), [answer([5, 6], [5, 6])], None)
    assert summary.closing_lines(record)[2].endswith("tokens identical")
    assert summary.closing_lines(record)[0] == "prompt_lookup, no drafts"
    assert record["tree"] == {"nodes": 1, "depth": None, "top_k": None}


def test_numbers_that_do_not_exist_are_null() -> None:
    one = runner.Answer(
        question_id=0, prompt="Hi", text="", written=generation([2], 0, 0.0), plain=generation([2], 0, 0.0)
    )
    record = summary.summarise(ABOUT, summary.tree_size(make_vanilla()), [one], None)
    assert [record[key] for key in ("tau", "tokens_per_second", "plain_tokens_per_second", "speedup")] == [None] * 4
    assert "NaN" not in json.dumps(record)
    assert summary.closing_lines(record)[1] == "1 tokens, 0 of them in 0 rounds: tau -, - tokens/s after the prompt"


def test_an_infinite_margin_is_null_but_shown() -> None:
    record = summary.summarise(ABOUT, summary.tree_size(make_vanilla()), [answer([5, 6], [5, 7])], math.inf)
    assert record["first_difference_margin"] is None
    assert summary.closing_lines(record)[3].endswith("leads by inf")


def test_markdown_table() -> None:
    table = summary.markdown_table(["tokens", "ms"], [[1, 25.127], ["plain", 1234.5], ["small", -0.00123456]])
    assert table == "| tokens | ms |\n|---|---|\n| 1 | 25.13 |\n| plain | 1234.50 |\n| small | -0.00123 |"
