"""Known texts take the rounds of real decoding, for every method, and answers of other settings are refused."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from eagle_jax.decode import Check, Models, check_by_target, decode, prefill
from eagle_jax.drafters import Drafter, make_chain, make_eagle2, make_eagle3, make_prompt_lookup
from eagle_jax.evaluation.recording import record
from eagle_jax.evaluation.teacher_forced import (
    KnownTexts,
    accept_known,
    check_by_text,
    recorded_target,
    with_known_texts,
)
from eagle_jax.generator import Generation, Generator
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import Params
from tests.compilations import AS_SHIPPED
from tests.drafts import with_noise

CONFIG, TARGET, PARAMS = tiny_transformer(vocab_size=24)
PROMPTS = [[5, 1, 5, 1], [*range(3, 20)], [7] * 9]
SAMPLING = {"max_new_tokens": [30, 12, 1], "stop_ids": (2,), "seed": 3, "sequence": [4, 8, 9]}


@functools.cache
def build(name: str) -> tuple[Drafter, Params]:
    """A drafter that guesses right now and then."""
    if name == "prompt_lookup":
        return make_prompt_lookup(4), ()
    if name == "chain":
        return make_chain(TARGET, 3), with_noise(PARAMS, 0.2)
    kind = "eagle" if name == "eagle2" else "eagle3"
    features = CONFIG.width * (3 if kind == "eagle3" else 1)
    head = make_head(HeadConfig(kind=kind, layer=CONFIG, feature_width=features), TARGET)
    make = make_eagle2 if name == "eagle2" else make_eagle3
    return make(head, 12, 2, 4), HeadParams(weights=nn.unbox(head.init(jax.random.key(2))))


def real(name: str, temperature: float, share_noise: bool) -> Generation:
    """Decoding with the target itself."""
    drafter, params = build(name)
    generator = Generator(TARGET, PARAMS, drafter, params, share_noise=share_noise)
    return generator.generate(PROMPTS, temperature=temperature, **SAMPLING)


def forced(
    name: str, answers: list[list[int]], temperature: float, share_noise: bool = True, **more: Any
) -> Generation:
    """Decoding along the answers, with a recording."""
    drafter, params = build(name)
    sampling = {**SAMPLING, "temperature": temperature, **more}
    return accept_known(Models(TARGET, drafter, PARAMS, params), PROMPTS, answers, share_noise=share_noise, **sampling)


@pytest.mark.parametrize("name", ["prompt_lookup", "chain", "eagle2", "eagle3"])
@pytest.mark.parametrize(("temperature", "share_noise"), [(0.0, True), (1.0, True), (1.0, False)])
def test_rounds_are_those_of_decoding(name: str, temperature: float, share_noise: bool) -> None:
    """Tokens, rounds and accepted lengths agree."""
    wanted = real(name, temperature, share_noise)
    result = forced(name, wanted.tokens, temperature, share_noise)
    assert wanted.accepted[:, 1:].sum() > 0, "nothing was ever accepted: the comparison says nothing"
    assert result.tokens == wanted.tokens
    assert result.rounds == wanted.rounds
    # In its last round a row may have accepted more than the answer had room for: one round may stand elsewhere.
    np.testing.assert_array_equal(result.accepted.sum(1), wanted.accepted.sum(1))
    assert (np.abs(result.accepted - wanted.accepted).sum(1) <= 2).all()


def test_another_answer_is_refused() -> None:
    """Row and place are named."""
    answers = real("chain", 0.0, share_noise=True).tokens
    changed = [list(answer) for answer in answers]
    changed[1][3] = (changed[1][3] + 1) % CONFIG.vocab_size
    with pytest.raises(
        ValueError, match=r"row 1: read once more, the target writes another .* token 3 on, .* leads by"
    ):
        forced("chain", changed, 0.0)
    with pytest.raises(ValueError, match="acceptance on known texts has no penalties: they are not recorded"):
        forced("chain", answers, 0.0, presence_penalty=0.5)
    with pytest.raises(ValueError, match="one answer a prompt"):
        forced("chain", changed[:2], 0.0)


def test_no_pass_of_the_target() -> None:
    """The compiled loop has no product of matrices at all, where that of decoding has those of the target."""
    drafter = make_prompt_lookup(4)
    text, one = jnp.ones((1, 64), jnp.int32), jnp.ones(1, jnp.int32)
    known = KnownTexts(record(TARGET, PARAMS, text, one), text)
    sampling = make_sampling(1, temperature=1.0)

    def products(models: Models, check: Check) -> int:
        state = jax.eval_shape(prefill, models, text, one, sampling)
        program = decode.lower(models, state, sampling, 9, check=check).compile(AS_SHIPPED).as_text()
        return len(re.findall(r" dot\(", program))

    assert products(Models(recorded_target(TARGET), with_known_texts(drafter), known), check_by_text) == 0
    assert products(Models(TARGET, drafter, PARAMS), check_by_target) > 2 * CONFIG.num_layers
