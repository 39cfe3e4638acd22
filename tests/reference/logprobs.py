"""The obvious way to the log-probabilities of an answer: one pass over prompt and answer, without a cache of before."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from eagle_jax.types import Params, Target


def token_logprobs(target: Target, params: Params, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    """log softmax of the target's logits for each token of the answer: f64[n, V]."""
    text = jnp.asarray([[*prompt, *answer]], jnp.int32)
    length = text.shape[1]
    causal = jnp.tril(jnp.ones((1, length, length), bool))
    output = target.forward(params, text, jnp.arange(length)[None], target.init_cache(1, 1), causal)
    logits = np.asarray(target.unembed(params, output.hidden)[0], np.float64)
    logprobs = []
    for position in range(len(prompt), length):
        scores = logits[position - 1]
        logprobs.append(scores - scores.max() - np.log(np.exp(scores - scores.max()).sum()))
    return np.array(logprobs)
