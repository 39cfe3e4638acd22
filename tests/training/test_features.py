"""Features: packed documents do not see each other, and a fingerprint tells whose they are."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.provenance import first_numbers
from eagle_jax.training.data import pack
from eagle_jax.training.features import fingerprint
from eagle_jax.types import NO_TOKEN
from tests.models.passes import whole_pass
from tests.tolerance import assert_close, pass_terms
from tests.training import small

EXAMPLES = [small.document(0, 17, 6), small.document(1, 12, 4), small.document(2, 21, 9, 15), small.document(3, 9, 3)]


def test_packed_features_are_those_of_each_document_alone() -> None:
    batch = small.batch_of(EXAMPLES, 64)
    found = small.features_of(batch)
    config, target, params = small.model()
    for number, documents in enumerate(pack(EXAMPLES, 64).rows):
        start = 0
        for document in documents:
            tokens = EXAMPLES[document].tokens
            output, logits = whole_pass(target, params, jnp.asarray(tokens[None]))
            place = slice(start, start + len(tokens))
            seen = (found.taps[number, place], found.hidden[number, place])
            assert_close(seen, (output.taps[0], output.hidden[0]), pass_terms(config, 64))
            asked = EXAMPLES[document].slots + 1
            choice = np.asarray(found.choice[number, place])
            np.testing.assert_array_equal(choice[asked], np.asarray(logits[0]).argmax(-1)[asked])
            assert (np.delete(choice, asked) == NO_TOKEN).all()
            start = place.stop


def test_choices_everywhere() -> None:
    batch = small.batch_of(EXAMPLES, 64)
    some, all_of_them = small.features_of(batch), small.features_of(batch, everywhere=True)
    asked = np.asarray(some.choice) != NO_TOKEN
    np.testing.assert_array_equal(np.asarray(all_of_them.choice)[asked], np.asarray(some.choice)[asked])
    assert (np.asarray(all_of_them.choice) >= 0).all()


def test_fingerprint_tells_text_mask_target_and_taps_apart() -> None:
    config, _, params = small.model()
    _, _, others = small.model(1)
    turned = dataclasses.replace(config, rope_theta=2 * config.rope_theta)
    masked = [EXAMPLES[0]._replace(supervised=~EXAMPLES[0].supervised), *EXAMPLES[1:]]
    names = {
        fingerprint(EXAMPLES, "tiny", config, params, False),
        fingerprint(EXAMPLES, "tiny", config, params, True),
        fingerprint(EXAMPLES, "other", config, params, False),
        fingerprint(EXAMPLES, "tiny", config, others, False),
        fingerprint(EXAMPLES[1:], "tiny", config, params, False),
        fingerprint(masked, "tiny", config, params, False),
        fingerprint(EXAMPLES, "tiny", config, params, False, tap_layers=(1, 2)),
        fingerprint(EXAMPLES, "tiny", turned, params, False),
    }
    assert len(names) == 8


def test_fingerprint_of_a_target_on_a_mesh() -> None:
    """Where the weights lie does not change it."""
    config, _, params = small.model()
    found = fingerprint(EXAMPLES, "tiny", config, small.on_a_mesh()[1], False)
    assert found == fingerprint(EXAMPLES, "tiny", config, params, False)


@pytest.mark.parametrize("shape", [(), (3,), (100,), (5, 7), (70, 2), (2, 100), (3, 4, 2), (2, 9, 8), (4, 1, 200)])
def test_first_numbers(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(first_numbers(jnp.asarray(array), 64), array.ravel()[:64])
