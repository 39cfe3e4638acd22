"""The contract: an unrolled training pass computes what a decoder's head computes along the same chains.

The slow side feeds the head token by token with a KV cache, through the same attention as the decoder.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.cache import commit, init_cache
from eagle_jax.models.attention import Prefix, attend
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.training.records import NO_SLOT, Batch
from eagle_jax.training.unroll import unroll
from eagle_jax.types import KVCache
from tests.tolerance import assert_close, gradient_terms, head_terms
from tests.training import small
from tests.training.programs import shapes

STEPS = 4


def decode_chain(kind: str, tokens: np.ndarray, features: jax.Array, slot: int, steps: int) -> list[np.ndarray]:
    """States [E] of a decoder's head: the prefix fed with the target's features, then the chain on its own outputs.

    Slots 0..slot are read one by one into a cache, as `observe` does; then token slot + 2, slot + 3, ... with the
    head's own state, each at the next position, as a chain of tree nodes.
    """
    head, params, _ = small.head(kind)  # type: ignore[arg-type]
    _, _, target_params = small.model()
    layer = head.config.layer
    cache = init_cache(1, 1, 64, layer.num_kv_heads, layer.head_dim, jnp.dtype("float32"))
    fused = head.fuse(params, features)
    found, state = [], None
    for place in range(slot + steps):
        state = fused[:, place : place + 1] if place <= slot else state
        embedded = head.embed(params, target_params, jnp.asarray(tokens[None, place + 1 : place + 2]))
        state, cache = feed(kind, params, cache, state, embedded, place)
        if place >= slot:
            found.append(np.asarray(state[0, 0]))
    return found


def feed(
    kind: str, params: HeadParams, cache: KVCache, state: jax.Array, embedded: jax.Array, place: int
) -> tuple[jax.Array, KVCache]:
    """One token through the head, its key and value appended to the cache."""
    head, _, _ = small.head(kind)  # type: ignore[arg-type]
    positions = jnp.full((1, 1), place, jnp.int32)
    prefix = Prefix(cache.keys[0], cache.values[0], cache.length)

    def attend_fn(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        return attend(queries, keys, values, jnp.ones((1, 1, 1), bool), prefix, positions)

    state, keys, values = head.step(params, state, embedded, positions, attend_fn)
    return state, commit(cache, (keys,), (values,), jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32))


@pytest.mark.parametrize("kind", small.KINDS)
@pytest.mark.parametrize("block", [5, 512])
def test_unrolled_pass_is_the_decoder(kind: str, block: int) -> None:
    examples = [small.document(0, 17, 6), small.document(1, 12, 4)]
    batch = small.batch_of(examples, 32)
    head, params, _ = small.head(kind)  # type: ignore[arg-type]
    features = small.features_of(batch)
    fed = features.hidden if kind == "eagle" else features.taps
    _, _, target_params = small.model()
    states = jax.jit(lambda fed: unroll(head, params, target_params, batch, fed, batch.slots, STEPS, block=block))(fed)
    starts = {0: 0, 1: 17}  # the longer document stands first
    for document, example in enumerate(examples):
        begin = starts[document]
        own = fed[:, begin : begin + len(example.tokens)]
        for slot in example.slots[: -STEPS + 1 : 2]:
            wanted = decode_chain(kind, example.tokens, own, int(slot), STEPS)
            row = int(np.flatnonzero(np.asarray(batch.slots[0]) == begin + slot)[0])
            for step in range(STEPS):
                assert_close(states[step][0, row], wanted[step], head_terms(head.config, 32, step + 1))


def test_memory_does_not_grow_with_length_times_steps() -> None:
    length, block, steps = 64, 16, 5
    batch = small.batch_of([small.document(0, length, 4)], length)
    head, params, _ = small.head("eagle3")
    _, _, target_params = small.model()
    fed = small.features_of(batch).taps

    def total(weights: object) -> jax.Array:
        changed = HeadParams(weights, params.lm_head, params.target_ids)
        return sum(
            state.sum() for state in unroll(head, changed, target_params, batch, fed, batch.slots, steps, block=block)
        )

    heads = head.config.layer.num_heads
    found = list(shapes(jax.make_jaxpr(jax.grad(total))(params.weights).jaxpr))
    scores = [shape for shape in found if math.prod(shape) >= heads * block * length and shape[-1] == length]
    assert scores, "no attention scores found: the test looks for the wrong shape"
    # One block of chains against all keys is the largest thing that the attention makes.
    assert max(map(math.prod, scores)) <= heads * block * length
    assert max(map(math.prod, found)) < heads * length * length


def test_slots_outside_the_row_are_harmless() -> None:
    batch = small.batch_of([small.document(0, 12, 4)], 16)
    head, params, _ = small.head("eagle3")
    _, _, target_params = small.model()
    fed = small.features_of(batch).taps
    some = Batch(batch.tokens, batch.segments, batch.positions, batch.supervised, jnp.full((1, 3), NO_SLOT))

    def total(weights: object, slots: jax.Array) -> jax.Array:
        changed = HeadParams(weights, params.lm_head, params.target_ids)
        states = unroll(head, changed, target_params, some, fed, slots, 2)
        # Only the first chain is asked for.
        return (states[1][:, :1] ** 2).sum()

    gradient = jax.jit(jax.grad(total))
    alone, beside = (gradient(params.weights, jnp.array([slots])) for slots in ([5], [5, NO_SLOT, 99]))
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(beside))
    assert_close(alone, beside, gradient_terms(head_terms(head.config, 16, 2), rows=1))
