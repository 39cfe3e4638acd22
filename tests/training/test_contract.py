"""The contract of training and decoding: joint-prefix accuracy is the share of chains that a decoder sees accepted.

The target writes a text. On it the training pass feeds true tokens to all chains at once, a decoder's chain its own
guesses to one; as long as these are right they are the true tokens, so what both count must be equal, chain by chain.

    slot t     x_0 .. x_t+1 | x_t+2   x_t+3   x_t+4     the target's text
    decoder            root | hit     miss    -         1 accepted
    training                | right   wrong   right     joint 1 0 0
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eagle_jax.drafters import make_eagle2
from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.generator import Generator
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.training.conversations import Example
from eagle_jax.training.recipes.unroll_recipe import UnrollConfig, make_unroll_recipe
from eagle_jax.training.records import Batch, Features, Tally, rates_of
from eagle_jax.types import DraftTree, Params, TargetOutput
from tests.models.passes import whole_pass
from tests.reference.decode import decode
from tests.training import small

STEPS = 3
LESSONS = 40
"""Training steps: enough for chains that are often right, too few for all of them."""
PROMPTS = ([5, 17, 40], [9, 9, 31, 2, 60, 8], [*range(20, 32)])
NEW = 32
LENGTH = max(map(len, PROMPTS)) + NEW
HEADS: list[tuple[Any, int, tuple[int, ...]]] = [("eagle", 0, ()), ("eagle3", 40, ()), ("eagle3", 40, (-1,))]
"""Kind of head; tokens of its draft vocabulary, 0 for all; layers that it fuses, () for the target's taps."""


class Taught(NamedTuple):
    """A head after its lessons, and what the training pass then counts."""

    head: Head
    params: HeadParams
    tally: Tally


@functools.cache
def documents() -> list[Example]:
    """Prompts and the target's greedy answers."""
    _, target, params = small.model()
    texts = [[*prompt, *decode(target, params, prompt, max_new_tokens=NEW, room=LENGTH)] for prompt in PROMPTS]
    return [
        Example(np.array(text, np.int32), np.arange(len(text)) >= len(prompt))
        for prompt, text in zip(PROMPTS, texts, strict=True)
    ]


@functools.cache
def taught(kind: Any, draft_size: int, taps: tuple[int, ...]) -> Taught:
    """Teach a head the text a little, and count on the same text; an EAGLE head too is fed with its own states."""
    head, params, vocabulary = small.head(kind, draft_size=draft_size, taps=taps)
    _, _, target_params = small.model()
    recipe = make_unroll_recipe(head, UnrollConfig(num_steps=STEPS, chunk=32))
    batch = small.batch_of(documents(), 2 * LENGTH)
    features = small.features_of(batch)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def lesson(weights: Params, state: Any, batch: Batch, features: Features) -> tuple[Params, Any, Tally]:
        """Weights and optimizer state after one step, and the counts before it."""

        def loss(weights: Params) -> tuple[jax.Array, Tally]:
            changed = dataclasses.replace(params, weights=weights)
            divisors = recipe.divisors(batch)
            return recipe.loss(changed, target_params, vocabulary, batch, features, divisors, jax.random.key(0))

        grads, tally = jax.grad(loss, has_aux=True)(weights)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(weights, updates), state, tally

    weights, state = params.weights, optimizer.init(params.weights)
    for _ in range(LESSONS):
        weights, state, _ = lesson(weights, state, batch, features)
    tally = lesson(weights, state, batch, features)[2]
    return Taught(head, dataclasses.replace(params, weights=weights), tally)


def chain(head: Head) -> Drafter:
    """The decoder's drafter whose tree is a chain of STEPS tokens."""
    return make_eagle2(head, STEPS + 1, STEPS - 1, 1)


@functools.partial(jax.jit, static_argnums=0)
def draft(
    drafter: Drafter,
    params: HeadParams,
    target_params: Params,
    state: DrafterState,
    text: jax.Array,
    length: jax.Array,
    output: TargetOutput,
) -> DraftTree:
    """What the drafter proposes behind the first `length` tokens of each row of `text` and the root after them."""
    path = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
    read = Observation(text=text, length=jnp.zeros_like(length), output=output, path=path, count=length)
    state = drafter.observe(params, target_params, state, read)
    noise = jnp.zeros((text.shape[0], drafter.max_depth, small.model()[1].vocab_size))
    return drafter.propose(params, target_params, state, text, length, noise)[0]


@functools.cache
def accepted_at(kind: str, draft_size: int, taps: tuple[int, ...], index: int) -> dict[int, int]:
    """For each slot of an answer, how many tokens of the chain drafted there are the target's, counted from the root.

    One row a slot, in which the drafter has read the text up to it; counting stops where the text does.
    """
    head, params, _ = taught(kind, draft_size, taps)
    _, target, target_params = small.model()
    document = documents()[index]
    slots = document.slots
    text = np.zeros((len(slots), LENGTH), np.int32)
    text[:, : len(document.tokens)] = document.tokens
    output, _ = whole_pass(target, target_params, jnp.asarray(text))
    drafter = chain(head)
    state = drafter.init(*text.shape, "float32")
    tree = draft(drafter, params, target_params, state, jnp.asarray(text), jnp.asarray(slots + 1), output)
    np.testing.assert_array_equal(tree.parents, np.broadcast_to(np.arange(STEPS + 1) - 1, tree.parents.shape))
    np.testing.assert_array_equal(tree.tokens[:, 0], document.tokens[slots + 1])
    found = {}
    for slot, drafted in zip(slots.tolist(), np.asarray(tree.tokens)[:, 1:].tolist(), strict=True):
        wanted = document.tokens[slot + 2 :].tolist()
        hits = [one == other for one, other in zip(drafted, wanted, strict=False)]
        found[slot] = [*hits, False].index(False)
    return found


@pytest.mark.parametrize(("kind", "draft_size", "taps"), HEADS)
def test_joint_accuracy_is_what_the_decoder_accepts(kind: str, draft_size: int, taps: tuple[int, ...]) -> None:
    tally = taught(kind, draft_size, taps).tally
    chains, accepted = np.zeros(STEPS, int), np.zeros(STEPS, int)
    for index in range(len(PROMPTS)):
        found = accepted_at(kind, draft_size, taps, index)
        for step in range(STEPS):
            inside = [count for slot, count in found.items() if slot + step in found]
            chains[step] += len(inside)
            accepted[step] += sum(count > step for count in inside)
    assert tally.rows.tolist() == chains.tolist()
    assert tally.joint.tolist() == accepted.tolist()
    # n-alpha as papers give it: accepted at step n of those accepted until then; both sides by the same words.
    rates = rates_of(tally)
    assert rates["simulated_tau"] == pytest.approx(1 + (accepted / chains).sum())
    # The equalities above would be cheap if all chains were right, or none.
    assert (accepted > 0).all()
    assert (accepted < chains).all()
    assert accepted[0] > accepted[-1]
    assert (rates["coverage"] < 1) == (draft_size > 0)


@pytest.mark.parametrize("which", HEADS[1:])
def test_rounds_of_the_decoder_are_these_chains(which: tuple[Any, int, tuple[int, ...]]) -> None:
    """Whole answers, decoded: round after round accepts what the chain at its root was worth."""
    head, params, _ = taught(*which)
    _, target, target_params = small.model()
    writer = Generator(target, target_params, chain(head), params, capacity=128, prefill_chunk=16)
    written = writer.generate(PROMPTS, max_new_tokens=NEW - STEPS)
    for row, (prompt, document) in enumerate(zip(PROMPTS, documents(), strict=True)):
        assert written.tokens[row] == document.tokens[len(prompt) : -STEPS].tolist()
        counts, found = np.zeros(STEPS + 1, int), accepted_at(*which, row)
        root = len(prompt)
        while root < len(document.tokens) - STEPS - 1:
            count = found[root - 1]
            counts[count] += 1
            root += count + 1
        assert written.accepted[row].tolist() == counts.tolist()
