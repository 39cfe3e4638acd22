"""What is recorded while a text is written is what a pass over the text gives, and teacher forcing needs no more."""

import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.decode import Models
from eagle_jax.drafters import make_prompt_lookup, make_vanilla
from eagle_jax.evaluation.recording import CHUNK, record, write_recorded
from eagle_jax.evaluation.teacher_forced import accept_known
from eagle_jax.generator import Generator
from eagle_jax.testing import tiny_transformer

CONFIG, TARGET, PARAMS = tiny_transformer(vocab_size=24, max_positions=2 * CHUNK)
LONG = np.random.default_rng(0).integers(3, 24, CHUNK + 40).tolist()
PROMPTS = [[5, 1, 5, 1], LONG, [7] * 9]
SAMPLING = {"max_new_tokens": [30, 12, 1], "stop_ids": (2,), "seed": 3, "temperature": [0.0, 1.0, 1.0]}
CAPACITY = 2 * CHUNK


def test_recorded_while_writing() -> None:
    """Two chunks and some rounds: the features of one pass over all of it, and plain decoding's answers."""
    answers, recorded = write_recorded(TARGET, PARAMS, PROMPTS, capacity=CAPACITY, **SAMPLING)
    assert answers == Generator(TARGET, PARAMS, make_vanilla()).generate(PROMPTS, **SAMPLING).tokens
    texts = np.zeros((3, CAPACITY), np.int32)
    lengths = [len(prompt) + len(answer) for prompt, answer in zip(PROMPTS, answers, strict=True)]
    for row, (prompt, answer) in enumerate(zip(PROMPTS, answers, strict=True)):
        texts[row, : lengths[row]] = [*prompt, *answer]
    positions = jnp.broadcast_to(jnp.arange(CAPACITY), texts.shape)
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((CAPACITY, CAPACITY), bool)), (3, CAPACITY, CAPACITY))
    wanted = TARGET.forward(PARAMS, jnp.asarray(texts), positions, TARGET.init_cache(3, 1), causal)
    read = record(TARGET, PARAMS, jnp.asarray(texts), jnp.asarray(lengths))
    for row, length in enumerate(lengths):
        for recording, end in ((recorded, length - 1), (read, length)):  # the newest token is not read yet
            for name in ("hidden", "taps"):
                one, other = (getattr(source, name)[row, :end] for source in (recording, wanted))
                np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)


def test_rounds_along_a_recording() -> None:
    drafter = make_prompt_lookup(4)
    answers, recording = write_recorded(TARGET, PARAMS, PROMPTS, capacity=CAPACITY, **SAMPLING)
    result = accept_known(Models(TARGET, drafter, PARAMS), PROMPTS, answers, recording=recording, **SAMPLING)
    assert result.rounds == Generator(TARGET, PARAMS, drafter).generate(PROMPTS, **SAMPLING).rounds
    deep = make_prompt_lookup(CAPACITY - len(LONG) - 12)
    with pytest.raises(ValueError, match=f"texts and draft need {CAPACITY + 1} slots, the recording has {CAPACITY}"):
        accept_known(Models(TARGET, deep, PARAMS), PROMPTS, answers, recording=recording, **SAMPLING)
