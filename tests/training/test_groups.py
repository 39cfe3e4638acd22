"""Each group of devices works on its own rows: the numbers of one device, and next to nothing is sent."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eagle_jax.sharding import active, make_mesh, place_weights
from eagle_jax.training.losses import VocabularyLoss, vocabulary_loss
from experiments.scaling.collectives import read_collectives
from tests.tolerance import assert_close, gradient_terms

Arrays = tuple[jax.Array, ...]
SIZES = {"steps": 2, "rows": 48, "width": 8, "vocabulary": 32}


def inputs() -> Arrays:
    """Reads, LM head, teacher, its LM head, and weights: most of the rows that count lie with the first devices."""
    draw = np.random.default_rng(0)
    steps, rows, width, vocabulary = SIZES.values()
    weights = draw.uniform(0.1, 1, (steps, rows)) * (np.arange(rows) < 20)
    shapes = [(steps, rows, width), (vocabulary, width), (rows, width), (vocabulary, width)]
    return tuple(jnp.asarray(array, jnp.float32) for array in (*map(draw.standard_normal, shapes), weights))


def on(mesh: Mesh) -> Arrays:
    """The same, rows dealt out and LM heads split."""
    steps, rows, vocabulary = PartitionSpec(None, "data"), PartitionSpec("data"), PartitionSpec("model")
    places = (steps, vocabulary, rows, vocabulary, steps)
    return tuple(jax.device_put(x, NamedSharding(mesh, place)) for x, place in zip(inputs(), places, strict=True))


@jax.jit
def loss_and_grads(
    reads: jax.Array, lm_head: jax.Array, *rest: jax.Array
) -> tuple[tuple[jax.Array, VocabularyLoss], tuple[jax.Array, jax.Array]]:
    """The loss, trained in all that it can train."""

    def total(reads: jax.Array, lm_head: jax.Array) -> tuple[jax.Array, VocabularyLoss]:
        found = vocabulary_loss(reads, lm_head, *rest, chunk=4, train_lm_head=True)
        return found.total, found

    return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(reads, lm_head)


@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2), (1, 8), (5, 1)])
def test_the_numbers_of_one_device(data: int, model: int) -> None:
    """Also where the rows do not divide, and each device has all of them."""
    mesh = make_mesh(data, model)
    arrays = place_weights(mesh, inputs()) if data == 5 else on(mesh)
    with active(mesh):
        found = loss_and_grads(*arrays)
    terms = 2 * (SIZES["width"] + SIZES["vocabulary"])  # logits, softmax and cross-entropy
    assert_close(found, loss_and_grads(*inputs()), gradient_terms(terms, SIZES["steps"] * SIZES["rows"]))


def sent(compiled: jax.stages.Compiled) -> Iterator[tuple[str, int]]:
    """Kind and bytes of all that is sent."""
    return ((one.kind, one.bytes) for one in read_collectives(compiled.as_text() or ""))


def test_a_loss_sends_sums() -> None:
    """Of the loss, of the LM head's gradient, and how long the loops are; no row."""
    mesh = make_mesh(8, 1)
    with active(mesh):
        compiled = loss_and_grads.lower(*on(mesh)).compile()
    head = 4 * SIZES["vocabulary"] * SIZES["width"]
    assert {kind for kind, _ in sent(compiled)} == {"all-reduce"}
    assert head <= sum(size for _, size in sent(compiled)) <= head + 8
