"""The distilling recipe against a slow twin, and a student that learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.checkpoint.pick_layers import pick_layers
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.models.transformer import make_target
from eagle_jax.training import initialise, step
from eagle_jax.training.recipes.distill_recipe import FROZEN, make_distill_recipe, whole_student
from eagle_jax.training.records import Batch, Features, Tally, Vocabulary, rates_of
from eagle_jax.types import Params, Target
from tests.training import small

DOCUMENTS = [small.document(seed, 14 + seed, 5 + seed, 12 + seed) for seed in range(3)]
CONFIG, TARGET, PARAMS = small.model()
STUDENT_CONFIG, PICKED = pick_layers(CONFIG, PARAMS, (0, -1))
STUDENT = make_target(STUDENT_CONFIG)
RECIPE = make_distill_recipe(STUDENT, chunk=8)
VOCABULARY: Vocabulary = initialise.make_vocabulary(CONFIG, PARAMS, np.arange(CONFIG.vocab_size), 0)
WEIGHTS: Params = {name: value for name, value in PICKED.items() if name not in FROZEN}


def logits_of(target: Target, params: Params, tokens: np.ndarray) -> np.ndarray:
    """Of one document alone, at each of its positions."""
    return np.asarray(_logits(target, params, jnp.asarray(tokens)[None])[0], np.float64)


@functools.partial(jax.jit, static_argnames=("target",))
def _logits(target: Target, params: Params, tokens: jax.Array) -> jax.Array:
    size = tokens.shape[1]
    causal = jnp.tril(jnp.ones((1, size, size), bool))
    output = target.forward(params, tokens, jnp.arange(size)[None], target.init_cache(1, 1), causal)
    return target.unembed(params, output.hidden)


def loss_of(weights: Params, batch: Batch) -> tuple[jax.Array, Tally]:
    """The recipe's."""
    return _loss(weights, batch, small.features_of(batch))


@jax.jit
def _loss(weights: Params, batch: Batch, features: Features) -> tuple[jax.Array, Tally]:
    params = HeadParams(weights)
    return RECIPE.loss(params, PARAMS, VOCABULARY, batch, features, RECIPE.divisors(batch), jax.random.key(0))


def test_loss_is_the_cross_entropy_against_the_target() -> None:
    """Mean over supervised tokens, documents packed or not."""
    entropies, agreed = [], 0
    for document in DOCUMENTS:
        teacher, student = (
            logits_of(model, params, document.tokens)
            for model, params in ((TARGET, PARAMS), (STUDENT, whole_student(WEIGHTS, PARAMS)))
        )
        for place in np.flatnonzero(document.supervised):
            p = np.exp(teacher[place - 1] - np.logaddexp.reduce(teacher[place - 1]))
            entropies.append(-(p * (student[place - 1] - np.logaddexp.reduce(student[place - 1]))).sum())
            agreed += teacher[place - 1].argmax() == student[place - 1].argmax()
    for batch in (small.batch_of(DOCUMENTS, 64), small.batch_of(DOCUMENTS, 24, rows=3)):
        value, tally = loss_of(WEIGHTS, batch)
        np.testing.assert_allclose(value, np.mean(entropies), rtol=1e-5)
        assert int(tally.correct[0]) == agreed
        assert int(tally.rows[0]) == len(entropies)
    assert 0 < agreed < len(entropies)


def test_a_student_learns() -> None:
    """Some steps lower the loss; what it shares with its target is not touched."""
    batch = small.batch_of(DOCUMENTS, 64)
    features = small.features_of(batch)
    rows = {**vars(batch), **vars(features)}
    optimizer, _ = step.make_optimizer(step.OptimizerConfig(steps=30, name="adamw", learning_rate=1e-2))
    first = jax.tree.map(jnp.array, WEIGHTS)
    state = step.initial_state({"weights": first}, optimizer, RECIPE.num_steps)
    train = step.make_train_step(RECIPE, TARGET, optimizer)
    measure = step.make_measure(RECIPE, TARGET)
    frozen = step.Frozen(PARAMS, VOCABULARY)
    before = rates_of(measure(state.trained, frozen, rows))
    for _ in range(30):
        state = train(state, frozen, rows)
    after = rates_of(measure(state.trained, frozen, rows))
    assert after["cross_entropy_0"] < before["cross_entropy_0"] - 0.1
    assert after["accuracy_0"] > before["accuracy_0"]
    assert not set(state.trained["weights"]) & set(FROZEN)
