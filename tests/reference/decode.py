"""Plain decoding: the whole text through the target for each token, no cache, no draft, no tree."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.sampling import gumbel, make_sampling
from eagle_jax.types import Params, Target
from tests.models.passes import whole_pass
from tests.reference.sampling import choose, penalise


@functools.cache
def _noise(vocab_size: int) -> Callable[..., jax.Array]:
    return jax.jit(lambda sampling, position: gumbel(sampling, position.reshape(1, 1), vocab_size)[0, 0])


def logits_after(target: Target, params: Params, text: Sequence[int], room: int = 96) -> np.ndarray:
    """f32[V]: logits of the token after `text`, at most `room` tokens long."""
    padded = jnp.asarray([[*text, *[0] * (room - len(text))]], jnp.int32)
    return np.asarray(whole_pass(target, params, padded)[1][0, len(text) - 1])


def decode(
    target: Target,
    params: Params,
    prompt: Sequence[int],
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    seed: int = 0,
    sequence: int = 0,
    stop_ids: Sequence[int] = (),
    max_new_tokens: int = 16,
    room: int = 96,
) -> list[int]:
    """The answer of one request, its stop id included."""
    noise = _noise(target.vocab_size)
    sampling = make_sampling(1, seed=seed, sequence=[sequence])
    text = list(prompt)
    for _ in range(max_new_tokens):
        logits = logits_after(target, params, text, room)
        logits = penalise(logits, prompt, text[len(prompt) :], repetition_penalty, presence_penalty)
        text.append(choose(logits, noise(sampling, jnp.int32(len(text))), temperature, top_k, top_p, min_p))
        if text[-1] in stop_ids:
            break
    return text[len(prompt) :]
