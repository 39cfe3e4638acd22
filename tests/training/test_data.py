"""Packing: nothing lost, nothing mixed; the iterator's state gives the same batches again."""

import numpy as np
import pytest

from eagle_jax.training.conversations import Example
from eagle_jax.training.data import assemble_row, make_iterator, pack, trim
from eagle_jax.training.records import NO_SLOT
from tests.training import small


def documents(count: int, seed: int = 0) -> list[Example]:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(8, 30, count)
    return [small.document(int(index), int(size), int(draw.integers(2, size - 2))) for index, size in enumerate(sizes)]


@pytest.mark.parametrize("num_slots", [None, 24])
def test_every_document_is_in_one_row_and_fits(num_slots: int | None) -> None:
    examples = documents(40)
    packing = pack(examples, 64, num_slots)
    assert sorted(document for row in packing.rows for document in row) == list(range(40))
    for row in packing.rows:
        assert sum(len(examples[document].tokens) for document in row) <= 64
        assert sum(len(examples[document].slots) for document in row) <= packing.num_slots
    assert packing.num_supervised == sum(len(example.slots) for example in examples)
    assert 0.5 < packing.fill[0] <= 1


def test_a_row_by_hand() -> None:
    examples = [small.document(0, 5, 3), small.document(1, 4, 2)]
    row = assemble_row(pack(examples, 12, 5), [0, 1])
    assert row["tokens"].tolist() == [*examples[0].tokens, *examples[1].tokens, 0, 0, 0]
    assert row["segments"].tolist() == [1] * 5 + [2] * 4 + [0] * 3
    assert row["positions"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]
    assert row["supervised"].tolist() == [False] * 3 + [True] * 2 + [False] * 2 + [True] * 2 + [False] * 3
    assert row["slots"].tolist() == [1, 2, 5, 6, NO_SLOT]


def test_features_lie_where_their_tokens_lie() -> None:
    examples = documents(6)
    packing = pack(examples, 64)
    for documents_of_row in packing.rows:
        row = assemble_row(
            packing, documents_of_row, lambda document: {"twice": 2 * examples[document].tokens[:, None]}
        )
        np.testing.assert_array_equal(row["twice"][:, 0], 2 * row["tokens"])


def test_trim_cuts_what_does_not_fit() -> None:
    long = small.document(0, 30, 5)
    untouched = small.document(1, 10, 5)
    hopeless = small.document(2, 30, 25)
    found = trim([long, untouched, hopeless], 20, 8)
    assert (len(found.examples), found.num_cut, found.num_dropped) == (2, 1, 1)
    # Eight slots, 3..10, speak of tokens 5..12; what lies behind them is cut too.
    assert len(found.examples[0].tokens) == 13
    assert found.examples[0].slots.tolist() == list(range(3, 11))
    np.testing.assert_array_equal(found.examples[1].tokens, untouched.tokens)


def test_misuse() -> None:
    with pytest.raises(ValueError, match="at least 3 tokens and 1 slot, got 2 and 2"):
        trim(documents(1), 2)
    with pytest.raises(ValueError, match="none of 1 documents has a supervised token"):
        trim([small.document(0, 30, 25)], 20)
    with pytest.raises(ValueError, match="document 0 has 30 tokens and 25 slots, a row 20 and 20"):
        pack([small.document(0, 30, 5)], 20)
    with pytest.raises(ValueError, match="at least 1 row, got 0"):
        make_iterator(pack(documents(3), 64), 0, seed=0)


def test_every_epoch_has_every_row_in_another_order() -> None:
    packing = pack(documents(40), 32)
    size = len(packing.rows)
    data = make_iterator(packing, 1, seed=3)
    epochs = [[next(data)["tokens"].tobytes() for _ in range(size)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted({*epochs[0]})
    assert epochs[0] != epochs[1]


def test_state_gives_the_same_batches_again() -> None:
    packing = pack(documents(40), 32)
    data = make_iterator(packing, 3, seed=1)
    for _ in range(5):
        next(data)
    state = data.get_state()
    wanted = [next(data) for _ in range(9)]
    again = make_iterator(packing, 3, seed=1)
    again.set_state(state)
    for batch in wanted:
        found = next(again)
        assert batch.keys() == found.keys()
        for name, values in batch.items():
            np.testing.assert_array_equal(found[name], values)
