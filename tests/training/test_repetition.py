"""Loops are cut after their first full cycle; what is merely said twice is not."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle_jax.testing import ByteTokenizer
from eagle_jax.training.conversations import read_corpus
from eagle_jax.training.repetition import loop_start
from tests.reference import repetition as reference

TOKENIZER = ByteTokenizer()


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("abcdefgh", None),
        ("abc", None),
        ("", None),
        ("0123456789abcde|abcde|abcde|abcd", "0123456789abcde|"),
        ("xyzw" + 20 * "-", "xyzw-"),
        ("List: 1. Rome and Paris 2. Rome and Paris 3. Rome and Paris 4. Rome", "List: 1. Rome and Paris 2"),
        # "so it is" comes again in the first line, and the loop is the second one.
        ("so it is and so it is not, " + 4 * "I see the sea. ", "so it is and so it is not, I see the sea."),
        # A loop that is a small part of the answer.
        ("abcdabcd" + "".join(map(chr, range(200, 260))), None),
    ],
)
def test_by_hand(text: str, cut: str | None) -> None:
    assert text[: loop_start([*map(ord, text)])] == (text if cut is None else cut)


PIECES = st.lists(st.integers(0, 3), min_size=1, max_size=9)


@given(st.lists(st.tuples(PIECES, st.integers(1, 6)), max_size=4))
def test_equals_the_slow_twin(parts: list[tuple[list[int], int]]) -> None:
    tokens = [token for piece, times in parts for token in times * piece]
    assert loop_start(tokens) == reference.loop_start(tokens)


@given(PIECES.filter(lambda piece: len({*piece}) == len(piece)), st.integers(6, 12))
def test_one_cycle_is_left(piece: list[int], times: int) -> None:
    assert loop_start(times * piece) == len(piece)


def test_answers_of_a_file(tmp_path: Path) -> None:
    """Only ids that the target wrote are cut, and after a cut nothing is said to end."""

    def line(answer: str, **fields: object) -> str:
        turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": turns, **fields})

    loop = "Well, " + 9 * "no and no. "
    ids = {"answer_ids": [*loop.encode()], "finished": True}
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([line(loop, **ids), line(loop), line("ok", answer_ids=[*b"ok"], finished=True)]))
    options = {"encode_plain": TOKENIZER.encode}
    whole, cut = (read_corpus([str(path)], TOKENIZER, cut_loops=wanted, **options) for wanted in (False, True))
    assert (whole.num_loops, whole.num_loop_tokens) == (0, 0)
    assert (cut.num_loops, cut.num_loop_tokens) == (1, len(loop) - len("Well, no and no."))
    answers = [bytes(example.tokens[example.supervised].tolist()[:-1]).decode() for example in whole.examples]
    assert answers == [loop, loop, "ok"]
    first, *rest = cut.examples
    assert bytes(first.tokens[first.supervised].tolist()).decode() == "Well, no and no."
    for one, other in zip(rest, whole.examples[1:], strict=True):
        assert one.tokens.tolist() == other.tokens.tolist()
