"""The one-pass recipe: training computes what the drafter does, at labels that decoding meets."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from eagle_jax.cache import commit, init_cache
from eagle_jax.models.block_head import BlockHead, make_block_head
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.training import initialise, step
from eagle_jax.training.block_pass import draft_blocks, pick_rows
from eagle_jax.training.edge_loss import EdgeRows, edge_loss
from eagle_jax.training.recipes import make_head_recipe
from eagle_jax.training.recipes.block_recipe import BlockConfig, labels_at, make_block_recipe
from eagle_jax.training.records import NO_SLOT, Batch, Tally, Vocabulary, rates_of
from tests.tolerance import assert_close, block_terms, gradient_terms
from tests.training import reference, small

EXAMPLES = [small.document(0, 17, 6), small.document(1, 12, 4), small.document(2, 21, 9, 15)]
BLOCK, RANK, DRAFTED = 4, 3, 40
AS_DFLASH = {"bidirectional": True, "shifted": False, "mask_token": 3}
EVERY = 64
"""More anchors than a row has."""


@functools.cache
def head(draft_size: int = DRAFTED, seed: int = 0, **shape: Any) -> tuple[BlockHead, HeadParams, Vocabulary]:
    """A head for `small.model()` with all weights random, edges included, and the target's rows as LM head."""
    config, target, params = small.model()
    sizes = {"num_layers": 2, "block": BLOCK, "edge_rank": RANK}
    made = initialise.head_config(config, "one_pass", fc_norm=True, **sizes)
    made_head = make_block_head(dataclasses.replace(made, **shape), target)
    rng = np.random.default_rng(seed)
    weights = nn.unbox(made_head.init(jax.random.key(seed)))
    weights = jax.tree.map(lambda x: jnp.asarray(x + 0.2 * rng.standard_normal(x.shape), jnp.float32), weights)
    ranks = rng.permutation(config.vocab_size).astype(np.int32)
    vocabulary = initialise.make_vocabulary(config, params, ranks, draft_size)
    rows = vocabulary.lm_head if draft_size else None
    return made_head, HeadParams(weights, rows, vocabulary.target_ids), vocabulary


def decoded(made: BlockHead, params: HeadParams, features: jax.Array, text: np.ndarray, anchor: int) -> jax.Array:
    """States [D, E] of the block of one anchor as a drafter computes them, from a cache of what is below it."""
    layer = made.config.layer
    cache = init_cache(made.config.num_layers, 1, 32, layer.num_kv_heads, layer.head_dim, jnp.dtype("float32"))
    places = jnp.arange(anchor)[None]
    keys, values = made.context(params, made.fuse(params, features[None, :anchor]), places)
    cache = commit(cache, keys, values, places, jnp.array([anchor]))
    anchors = jnp.asarray(text[anchor : anchor + 1])
    newest = made.fuse(params, features[None, anchor - 1]) if made.config.joins_context else None
    return made.block(params, small.model()[2], anchors, cache.length, cache, newest)[0]


@pytest.mark.parametrize("shape", [{}, {"joins_context": True}, AS_DFLASH], ids=["own", "joined", "DFlash"])
@pytest.mark.parametrize("at_a_time", [64, 3])
def test_states_are_those_of_the_drafter(shape: dict[str, Any], at_a_time: int) -> None:
    """Two documents packed into a row, one into another: each block as if its text stood alone."""
    made, params, _ = head(**shape)
    batch = small.batch_of(EXAMPLES, 32)
    features = small.features_of(batch)
    anchors = jnp.array([[2, 6, 13, 16, 19, 27, 29], [1, 5, 9, 12, 14, 15, 20]])
    run = jax.jit(functools.partial(draft_blocks, made, at_a_time=at_a_time))
    states = run(params, small.model()[2], batch, features.taps, anchors)
    assert states.shape == (*anchors.shape, made.config.num_drafted, made.config.layer.width)
    for row, (places, segments) in enumerate(zip(anchors.tolist(), np.asarray(batch.segments), strict=True)):
        for index, place in enumerate(places):
            if not segments[place]:
                continue
            start = int(np.flatnonzero(segments == segments[place])[0])
            text, taps = np.asarray(batch.tokens[row, start:]), features.taps[row, start:]
            wanted = decoded(made, params, taps, text, place - start)
            assert_close(states[row, index], wanted, 2 * block_terms(made.config, 32 + BLOCK))
    assert {int(segment) for segment in np.unique(batch.segments)} == {0, 1, 2}


def labels_of(example: Any) -> dict[int, int]:
    """By anchor, how many tokens after it a block of this document can be taught, written out."""
    supervised, found = example.supervised, {}
    for anchor in range(1, len(supervised) - 1):
        count = 0
        while count < BLOCK and anchor + count + 1 < len(supervised) and supervised[anchor + count + 1]:
            count += 1
        if count:
            found[anchor] = count
    return found


def test_every_anchor_and_its_labels() -> None:
    """With room for all anchors these are all supervised tokens' predecessors, cut where the answer ends."""
    batch = small.batch_of(EXAMPLES, 32, rows=3)
    for key in (None, jax.random.key(0)):
        labels = labels_at(batch.slots, pick_rows(batch.slots, EVERY, key), BLOCK)
        for row, example in enumerate(EXAMPLES):
            valid, anchors = np.asarray(labels.valid[row]), np.asarray(labels.anchors[row])
            some = valid.any(1)
            assert dict(zip(anchors[some].tolist(), valid[some].sum(1).tolist(), strict=True)) == labels_of(example)
            assert (valid[:, 1:] <= valid[:, :-1]).all()  # dropped for the rest of the block
        np.testing.assert_array_equal(labels.places, np.asarray(labels.anchors)[:, :, None] + np.arange(BLOCK))


def test_anchors_are_drawn_without_replacement() -> None:
    """Each as often as any other, different ones by step, the same by key; without a key they are spread evenly."""
    slots = jnp.asarray(np.where(np.arange(12) < np.array([[12], [5], [0]]), np.arange(12), NO_SLOT))
    times = np.zeros((3, 12))
    for seed in range(400):
        rows = np.asarray(pick_rows(slots, 4, jax.random.key(seed)))
        for row, picked in enumerate(rows):
            real = picked[picked != NO_SLOT]
            assert len(set(real.tolist())) == len(real) == (4, 4, 0)[row]
            times[row, real] += 1
    wanted = np.where(np.arange(12) < np.array([[12], [5], [0]]), [[400 * 4 / 12], [400 * 4 / 5], [0]], 0)
    # Four standard deviations of a binomial count.
    np.testing.assert_allclose(times, wanted, atol=4 * np.sqrt(400 / 4))
    assert np.asarray(pick_rows(slots, 4, None)).tolist() == [[0, 3, 6, 9], [0, 1, 2, 3], [NO_SLOT] * 4]
    assert np.asarray(pick_rows(slots, 99, None))[0].tolist() == list(range(12))


def measured(
    batch: Batch, config: BlockConfig, key: jax.Array | None = None, **options: Any
) -> tuple[jax.Array, Tally, jax.Array]:
    """Loss, tally and divisors of the recipe on a batch."""
    made, params, vocabulary = head(**options)
    recipe = make_block_recipe(made, config)
    divisors = recipe.divisors(batch)
    loss, tally = jax.jit(recipe.loss)(
        params, small.model()[2], vocabulary, batch, small.features_of(batch), divisors, key
    )
    return loss, tally, divisors


@pytest.mark.parametrize("options", [{}, {"draft_size": 0}, {"edge_rank": 0}], ids=str)
def test_loss_and_tally_written_out(options: dict[str, Any]) -> None:
    """From the drafter's own functions, block by block: logits, edges of the text's own tokens, the target's words."""
    made, params, vocabulary = head(**options)
    config, _, target_params = small.model()
    batch = small.batch_of(EXAMPLES, 32, rows=3)
    features = small.features_of(batch)
    loss, tally, divisors = measured(batch, BlockConfig(num_anchors=EVERY), **options)
    ids = np.arange(config.vocab_size) if vocabulary.target_ids is None else np.asarray(vocabulary.target_ids)
    rows, known_rows, correct, joint = np.zeros((4, BLOCK), int)
    entropy, total = np.zeros(BLOCK), 0.0
    for row, example in enumerate(EXAMPLES):
        for anchor, count in labels_of(example).items():
            states = decoded(made, params, features.taps[row], example.tokens, anchor)
            logits = np.asarray(made.logits(params, target_params, states))
            all_correct = True
            for index in range(count):
                place = anchor + index
                target_logits = np.asarray(features.hidden[row, place] @ target_params["lm_head"].T)
                p = np.exp(reference.log_softmax(target_logits[ids]))
                previous = jnp.asarray(example.tokens[place : place + 1])
                edges = np.asarray(made.edges(params, previous, jnp.arange(len(ids))))[0]
                with_edges = -(p * reference.log_softmax(logits[index] + edges)).sum()
                alone = -(p * reference.log_softmax(logits[index])).sum()
                choice = int(target_logits.argmax())
                known = choice in ids
                right = known and ids[int((logits[index] + edges).argmax())] == choice
                all_correct &= right
                rows[index] += 1
                known_rows[index] += known
                correct[index] += right
                joint[index] += all_correct
                entropy[index] += with_edges * known
                total += (with_edges + 0.5 * alone) * known
    np.testing.assert_array_equal(divisors, rows)
    for field, wanted in {"rows": rows, "in_vocabulary": known_rows, "correct": correct, "joint": joint}.items():
        assert getattr(tally, field).tolist() == wanted.tolist(), field
    terms = 2 * block_terms(made.config, 32 + BLOCK) + len(ids) + int(rows.sum())
    assert_close(tally.cross_entropy, entropy, terms)
    assert_close(loss, total / rows.sum(), terms)
    assert (known_rows < rows).any() == (options != {"draft_size": 0})
    assert 0 < correct.sum() < rows.sum()
    assert set(rates_of(tally)) >= {"joint_3", "accuracy_0", "simulated_tau", "coverage"}


def test_packed_rows_give_the_same() -> None:
    """Documents do not see each other."""
    wide, packed = small.batch_of(EXAMPLES, 32, rows=3), small.batch_of(EXAMPLES, 64)
    assert packed.tokens.shape[0] == 1
    (loss, tally, _), (other, others, _) = (measured(batch, BlockConfig(num_anchors=EVERY)) for batch in (wide, packed))
    terms = 2 * block_terms(head()[0].config, 64) + DRAFTED + 64
    assert_close(loss, other, terms)
    assert_close(tally, others, terms)


def test_drawn_anchors_estimate_the_same_loss() -> None:
    """The mean over many draws is the loss over all anchors; divisors are the expected counts."""
    batch = small.batch_of(EXAMPLES, 32, rows=3)
    full, _, _ = measured(batch, BlockConfig(num_anchors=EVERY))
    made, params, vocabulary = head()
    recipe = make_block_recipe(made, BlockConfig(num_anchors=2))
    features, divisors = small.features_of(batch), recipe.divisors(batch)

    @jax.jit
    @jax.vmap
    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, tally = recipe.loss(params, small.model()[2], vocabulary, batch, features, divisors, key)
        return loss, tally.rows

    losses, rows = draw(jax.random.split(jax.random.key(0), 512))
    error = losses.std() / np.sqrt(len(losses))
    # Rows weigh the same here whatever their length: each gives two of its anchors.
    shares = np.array([min(2, len(labels_of(example))) for example in EXAMPLES])
    np.testing.assert_allclose(rows.mean(0), divisors, atol=4 * float(rows.std(0).max()) / np.sqrt(len(rows)))
    assert float(divisors[0]) == shares.sum()
    assert abs(float(losses.mean() - full)) < 4 * float(error) + 0.2 * float(full)
    assert float(losses.std()) > 0


def loss_terms(rows: EdgeRows, weights: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropies with edges and without, dense, in float64."""
    dense = {name: np.asarray(value, np.float64) for name, value in rows._asdict().items()}
    p = np.exp(reference.log_softmax(dense["teacher"] @ dense["teacher_lm_head"].T))
    base = dense["reads"] @ dense["lm_head"].T
    edge = base + dense["before"] @ dense["after"].T
    found = [-(p * reference.log_softmax(logits)).sum(-1) for logits in (edge, base)]
    return found[0] * (np.asarray(weights) != 0), found[1] * (np.asarray(weights) != 0)


def random_rows(count: int = 11, vocab: int = 20) -> tuple[EdgeRows, jax.Array]:
    rng = np.random.default_rng(0)
    shapes = ((count, 6), (count, 3), (vocab, 3), (vocab, 6), (count, 5), (vocab, 5))
    rows = EdgeRows(*(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes))
    return rows, jnp.asarray(np.where(rng.random(count) < 0.3, 0, rng.random(count)), jnp.float32)


@pytest.mark.parametrize("chunk", [1, 4, 64, None])
def test_edge_loss_is_the_dense_one(chunk: int | None) -> None:
    """Value and gradients, whatever the chunk; rows without weight cost and count nothing."""
    rows, weights = random_rows()
    edge, base = loss_terms(rows, weights)

    def dense(trained: dict[str, jax.Array]) -> jax.Array:
        some = rows._replace(**trained)
        p = jax.nn.softmax(some.teacher @ some.teacher_lm_head.T)
        logits = some.reads @ some.lm_head.T
        both = [-(p * jax.nn.log_softmax(x)).sum(-1) for x in (logits + some.before @ some.after.T, logits)]
        return (weights * (both[0] + 0.7 * both[1])).sum()

    def chunked(trained: dict[str, jax.Array]) -> jax.Array:
        return edge_loss(rows._replace(**trained), weights, base_weight=0.7, chunk=chunk).total

    trained = {name: getattr(rows, name) for name in ("reads", "before", "after")}
    loss = edge_loss(rows, weights, base_weight=0.7, chunk=chunk)
    assert_close(loss.cross_entropy, edge, 64)
    assert_close(loss.total, (np.asarray(weights) * (edge + 0.7 * base)).sum(), 128)
    assert_close(jax.grad(chunked)(trained), jax.grad(dense)(trained), gradient_terms(64, len(weights)))
    assert (np.asarray(loss.choice)[np.asarray(weights) == 0] < 0).all()


def test_frozen_parts_get_no_gradient() -> None:
    rows, weights = random_rows()
    grads = jax.grad(lambda rows: edge_loss(rows, weights, base_weight=0.5).total)(rows)
    for name in ("lm_head", "teacher", "teacher_lm_head"):
        assert not np.asarray(getattr(grads, name)).any()
    with pytest.raises(ValueError, match="differ in rows"):
        edge_loss(rows._replace(before=rows.before[1:]), weights, base_weight=0.5)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        edge_loss(rows, weights, base_weight=0.5, chunk=0)


def moved(weights: Any, direction: Any, by: float) -> Any:
    """Weights a step along a direction."""
    return jax.tree.map(lambda weight, change: weight + by * change, weights, direction)


def test_gradients_against_finite_differences() -> None:
    """Of the loss of the recipe in a random direction of all weights, the mask and the edges among them."""
    made, params, vocabulary = head()
    recipe = make_block_recipe(made, BlockConfig(num_anchors=3))
    batch = small.batch_of(EXAMPLES, 32)
    features, divisors, key = small.features_of(batch), recipe.divisors(batch), jax.random.key(1)

    @jax.jit
    def loss(weights: Any) -> jax.Array:
        changed = dataclasses.replace(params, weights=weights)
        return recipe.loss(changed, small.model()[2], vocabulary, batch, features, divisors, key)[0]

    grads = jax.grad(loss)(params.weights)
    rng = np.random.default_rng(0)
    for name in (*params.weights, "all"):
        direction = jax.tree.map(
            lambda path_leaf: jnp.asarray(rng.standard_normal(path_leaf.shape), jnp.float32), params.weights
        )
        if name != "all":
            direction = {
                part: value if part == name else jax.tree.map(jnp.zeros_like, value)
                for part, value in direction.items()
            }
        slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), grads, direction)))
        size = 2e-3
        ends = [loss(moved(params.weights, direction, by)) for by in (size, -size)]
        estimate = (ends[0] - ends[1]) / (2 * size)
        np.testing.assert_allclose(slope, estimate, rtol=2e-2, atol=2e-3, err_msg=name)


def test_steps_teach() -> None:
    """A few optimizer steps of the compiled step lower the loss; edges leave zero."""
    config, target, target_params = small.model()
    made = make_block_head(
        initialise.head_config(config, "one_pass", num_layers=2, block=BLOCK, edge_rank=RANK), target
    )
    _, _, vocabulary = head()
    weights = initialise.initial_weights(made, config, target_params, 0, layer=-1)
    optimizer, _ = step.make_optimizer(step.OptimizerConfig(steps=20, name="muon", learning_rate=1e-2))
    recipe = make_head_recipe(made, {"num_anchors": 8})
    train = step.make_train_step(recipe, target, optimizer, seed=0)
    batch = small.batch_of(EXAMPLES, 32)
    rows = {name: getattr(batch, name) for name in ("tokens", "segments", "positions", "supervised", "slots")}
    frozen = step.Frozen(target_params, vocabulary)
    measure = step.make_measure(recipe, target)
    state = step.initial_state({"weights": jax.tree.map(jnp.array, weights)}, optimizer, recipe.num_steps)
    before = rates_of(measure(state.trained, frozen, rows))
    for _ in range(20):
        state = train(state, frozen, rows)
    after = rates_of(measure(state.trained, frozen, rows))
    assert all(after[f"cross_entropy_{index}"] < before[f"cross_entropy_{index}"] for index in range(BLOCK))
    assert float(jnp.abs(state.trained["weights"]["edges"]["following"]).max()) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_anchors": 0}, "num_anchors and at_a_time must be at least 1, got 0, 64"),
        ({"base_weight": -1.0}, "base_weight must be at least 0, got -1.0"),
        ({"decay": 0.8}, "the recipe block has no knob 'decay'"),
        ({"name": "unroll"}, "a head of kind one_pass is trained by block, got recipe 'unroll'"),
    ],
)
def test_knobs_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_head_recipe(head()[0], settings)
