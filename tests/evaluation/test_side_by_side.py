"""Who answers what, in which order, and how long a text may get."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.drafters import make_prompt_lookup
from eagle_jax.evaluation import side_by_side
from eagle_jax.evaluation.side_by_side import SideBySide
from eagle_jax.evaluation.tasks import Question
from eagle_jax.evaluation.turns import PLAIN, TURN_STRIDE, play
from eagle_jax.generator import Generation, Generator
from eagle_jax.sampling import SamplingConfig
from eagle_jax.testing import ByteTokenizer, bigram_target

TARGET, PARAMS = bigram_target(258)
LOOKUP = Generator(TARGET, PARAMS, make_prompt_lookup(2))


class Bytes(ByteTokenizer):
    """The byte tokenizer with what `LoadedModel` needs besides."""

    has_chat_template = True


def model() -> LoadedModel:
    return LoadedModel("bigram", None, PARAMS, Bytes())  # type: ignore[arg-type]  # nobody asks for the config


class Scripted:
    """Stands in for a generator: says one letter, and when it was asked what."""

    def __init__(self, label: str, letter: str, heard: list[tuple[str, list[int], dict[str, Any]]]) -> None:
        self.label, self.letter, self.heard = label, letter, heard

    def warm_up(self, prompts: Sequence[list[int]], **options: Any) -> None:
        assert "sequence" not in options

    def generate(self, prompts: Sequence[list[int]], **options: Any) -> Generation:
        self.heard.append((self.label, prompts[0], options))
        one, count = generation([ord(self.letter)] * 2), len(prompts)
        return dataclasses.replace(
            one, tokens=one.tokens * count, rounds=one.rounds * count, accepted=one.accepted.repeat(count, 0)
        )


def generation(tokens: list[int], rounds: int = 1, seconds: float = 1.0, prefill: float = 0.0) -> Generation:
    accepted = np.zeros((1, 3), np.int32)
    accepted[0, 1] = rounds
    return Generation(
        tokens=[tokens],
        rounds=[rounds],
        accepted=accepted,
        prefill_seconds=prefill,
        decode_seconds=seconds,
        complete=True,
    )


def scripted(letters: Mapping[str, str]) -> tuple[SideBySide, list[tuple[str, list[int], dict[str, Any]]]]:
    """Methods that each say a letter of their own."""
    contestants = {label: LOOKUP for label in letters if label != PLAIN}
    bench = SideBySide(model(), TARGET, contestants, max_new_tokens=4, warm_ups=0)
    heard: list[tuple[str, list[int], dict[str, Any]]] = []
    bench.programs[512] = {label: Scripted(label, letter, heard) for label, letter in letters.items()}  # type: ignore[misc]
    return bench, heard


QUESTION = Question(81, "writing", ("Hi.", "Why?", "And?"))
SAMPLING = SamplingConfig(temperature=0.5, seed=7, max_new_tokens=4)


def test_everyone_reads_what_plain_decoding_wrote() -> None:
    bench, heard = scripted({PLAIN: "p", "a": "a", "b": "b"})
    turns = play(bench, [QUESTION], [5], turns=2, sampling=SAMPLING, labels=["a", "b"])
    said = [{"role": "user", "content": "Hi."}]
    assert turns[0].prompts == [Bytes().chat(said)]
    said += [{"role": "assistant", "content": "pp"}, {"role": "user", "content": "Why?"}]
    assert turns[1].prompts == [Bytes().chat(said)]
    assert [turn.sequences for turn in turns] == [[5], [TURN_STRIDE + 5]]
    for label, prompt, options in heard:
        turn = turns[0] if [prompt] == turns[0].prompts else turns[1]
        assert options == SAMPLING.options(sequence=turn.sequences, stop_ids=(257,))
        assert turn.answers[label].tokens == [[ord(label[0])] * 2]


def test_whoever_goes_first_changes() -> None:
    bench, heard = scripted({PLAIN: "p", "a": "a", "b": "b"})
    for index in range(3):
        play(bench, [QUESTION], [index], turns=1, sampling=SAMPLING, labels=["a", "b"])
    assert [label for label, _, _ in heard] == [PLAIN, "a", "b", "a", "b", PLAIN, "b", PLAIN, "a"]


def test_only_some_take_part() -> None:
    bench, heard = scripted({PLAIN: "p", "a": "a", "b": "b"})
    (turn,) = play(bench, [QUESTION], [0], turns=1, sampling=SAMPLING, labels=["b"])
    assert [label for label, _, _ in heard] == list(turn.answers) == [PLAIN, "b"]


def test_a_conversation_ends_where_the_context_does() -> None:
    bench, _ = scripted({PLAIN: "p", "a": "a"})
    bench.target = TARGET._replace(max_positions=60)
    assert len(play(bench, [QUESTION], [0], turns=3, sampling=SAMPLING, labels=["a"])) == 2


def test_the_name_of_plain_decoding_is_taken() -> None:
    with pytest.raises(ValueError, match="a method cannot be labelled 'plain'"):
        SideBySide(model(), TARGET, {PLAIN: LOOKUP}, max_new_tokens=4)


def test_a_first_turn_that_does_not_fit() -> None:
    bench = SideBySide(model(), TARGET._replace(max_positions=40), {"a": LOOKUP}, max_new_tokens=30)
    with pytest.raises(ValueError, match="a prompt of 21 tokens and 30 new ones come to 51, the model's context is 40"):
        bench.check([QUESTION])


class Counted:
    """Stands in for a generator that was built for a capacity: counts its warm-ups, says bytes that are no text."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.calls = capacity, 0

    def warm_up(self, prompts: Sequence[list[int]], **options: Any) -> None:
        """Compiles nothing."""

    def generate(self, prompts: Sequence[list[int]], *, max_new_tokens: int, **options: Any) -> Generation:
        assert len(prompts[0]) + max_new_tokens + LOOKUP.drafter.max_depth + 1 <= self.capacity
        self.calls += 1
        return generation([200] * max_new_tokens)


def test_programs_grow_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such bytes are read back as replacement characters of three bytes: longer than anyone could know before."""
    monkeypatch.setattr(side_by_side, "with_capacity", lambda generator, capacity: Counted(capacity))
    bench = SideBySide(model(), TARGET, {"lookup": LOOKUP}, max_new_tokens=200, warm_ups=3)
    hot, cold = (SamplingConfig(temperature=t, seed=1, max_new_tokens=200) for t in (1.0, 0.0))
    bench.prepare([QUESTION, Question(82, "", ("x" * 50,))], 2, hot)
    assert bench.capacity == 512  # 60 tokens were said, 400 will be
    small = bench.generators
    assert [one.calls for one in small.values()] == [3, 3]  # type: ignore[attr-defined]
    turns = play(bench, [QUESTION], [3], turns=3, sampling=hot, labels=["lookup"])
    assert [len(turn.prompts[0]) for turn in turns] == [21, 21 + 600 + 23, 21 + 2 * (600 + 23)]  # 23 stand around them
    assert bench.capacity == 2048
    assert bench.generators is not small
    assert [one.calls for one in small.values()] == [3 + 1, 3 + 1]  # type: ignore[attr-defined]
    bench.prepare([QUESTION], 2, hot)
    assert bench.capacity == 512
    assert bench.generators is small  # warm as they are
    assert [one.calls for one in small.values()] == [3 + 1, 3 + 1]  # type: ignore[attr-defined]
    bench.prepare([QUESTION], 2, cold)  # without noise another part of the program runs
    assert [one.calls for one in small.values()] == [3 + 1 + 3, 3 + 1 + 3]  # type: ignore[attr-defined]


def test_a_group_is_filled_up_and_cut() -> None:
    """Three rows for two conversations, one of which has a second turn: the programs see three rows each time."""
    bench, heard = scripted({PLAIN: "p", "a": "a"})
    bench.batch = 3
    short = Question(82, "", ("Bye.",))
    first, second = play(bench, [short, QUESTION], [4, 5], turns=2, sampling=SAMPLING)
    assert (first.rows, first.sequences, second.rows, second.sequences) == ([0, 1], [4, 5], [1], [TURN_STRIDE + 5])
    assert [options["sequence"] for _, _, options in heard[::2]] == [[4, 5, 4], [TURN_STRIDE + 5] * 3]
    assert [len(turn.answers["a"].tokens) for turn in (first, second)] == [2, 1]
