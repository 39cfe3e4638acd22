"""No prompt is on both sides: the answers to one are trained on, or held out."""

import json
from pathlib import Path

import numpy as np
import pytest

from eagle_jax.testing import ByteTokenizer
from eagle_jax.training.conversations import Example, read_corpus
from eagle_jax.training.split import group_by_prompt, split_by_prompt
from tests.training import small


def documents(*keys: tuple[str, ...]) -> list[Example]:
    return [small.document(seed, 8, 4)._replace(prompt_keys=some) for seed, some in enumerate(keys)]


ANSWERED_TWICE = documents(*((f"id {number % 100}",) for number in range(200)))


def test_answers_to_a_prompt_stay_together() -> None:
    """A split of the documents fails here: of 32 held out, some 28 would have their sibling in training."""
    split = split_by_prompt(ANSWERED_TWICE, 32, seed=0)
    assert sorted([*split.training, *split.heldout]) == list(range(200))
    assert len(split.heldout) == 32
    assert {document % 100 for document in split.heldout}.isdisjoint(document % 100 for document in split.training)


def test_the_same_each_time() -> None:
    one, again, other = (split_by_prompt(ANSWERED_TWICE, 32, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.heldout, again.heldout)
    np.testing.assert_array_equal(one.training, again.training)
    assert {*one.heldout} != {*other.heldout}


def test_prompts_answered_once_are_split_as_documents() -> None:
    """As they always were, so that the text of earlier heads is held out as it was."""
    split = split_by_prompt(documents(*((f"id {number}",) for number in range(40))), 7, seed=3)
    order = np.random.default_rng(3).permutation(40)
    np.testing.assert_array_equal(np.concatenate([split.heldout, split.training]), order)


def test_keys_join_documents_directly_or_through_others() -> None:
    examples = documents(("a",), ("b",), ("c", "d"), ("e",), ("b", "c"), ("d", "a"), ())
    assert group_by_prompt(examples) == [[0, 1, 2, 4, 5], [3], [6]]


def test_prompts_of_a_file(tmp_path: Path) -> None:
    """One id, or one text under two ids, is one prompt; the answer does not matter."""

    def line(asked: str, answer: str, **fields: object) -> str:
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": turns, "answer_ids": [*answer.encode()], "finished": True, **fields})

    lines = [line("a", "xy", id=1), line("a", "zz", id=1), line("b", "xy", id="2"), line("b", "yy"), line("c", "xy")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    examples = read_corpus([str(tmp_path / "a.jsonl")], ByteTokenizer()).examples
    assert group_by_prompt(examples) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("count", [-1, 3, 4])
def test_more_than_there_is(count: int) -> None:
    with pytest.raises(ValueError, match=f"cannot hold out {count} of 3 conversations"):
        split_by_prompt(documents((), (), ()), count, seed=0)


def test_one_prompt_alone() -> None:
    with pytest.raises(
        ValueError, match="cannot hold out 1 of 3 conversations: they answer 1 prompts, and the answers"
    ):
        split_by_prompt(documents(("a",), ("a",), ("a",)), 1, seed=0)
