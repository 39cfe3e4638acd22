"""Training on eight devices: the losses of one on every mesh, and a run that goes on on another mesh."""

import functools
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from eagle_jax.models.block_head import BlockHead, make_any_head
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.sharding import active, head_shardings, make_mesh, place, place_rows, place_weights, target_shardings
from eagle_jax.testing import tiny_transformer
from eagle_jax.training import initialise
from eagle_jax.training import step as steps
from eagle_jax.training.data import make_iterator, pack
from eagle_jax.training.loop import LoopConfig, Outcome, train
from eagle_jax.training.recipes.block_recipe import BlockConfig, make_block_recipe
from eagle_jax.training.recipes.feature_recipe import FeatureConfig, make_feature_recipe
from eagle_jax.training.recipes.unroll_recipe import UnrollConfig, make_unroll_recipe
from eagle_jax.training.records import Recipe, Vocabulary
from eagle_jax.training.run import Run
from eagle_jax.types import Params
from experiments.scaling.collectives import read_collectives
from tests.tolerance import gradient_terms, head_terms, rounding, written
from tests.training import small

STEPS = 20
EXAMPLES = [small.document(seed, 12 + seed % 5, 4) for seed in range(32)]
# Eight query heads: every mesh splits them. On 1x8 the four key/value heads stay whole.
CONFIG, TARGET, PARAMS = tiny_transformer(num_heads=8, num_kv_heads=4)
OPTIMIZER, _ = steps.make_optimizer(steps.OptimizerConfig(steps=STEPS, learning_rate=3e-3))

Kind = Literal["eagle", "eagle3", "one_pass"]


class Subject(NamedTuple):
    """A head that is trained, and how."""

    head: Head | BlockHead
    weights: Params
    vocabulary: Vocabulary
    recipe: Recipe
    step: Any


@functools.cache
def subject(kind: Kind) -> Subject:
    """A random head with the recipe of its kind; the step takes two micro-batches."""
    sizes = {"num_layers": 1, "block": 3, "edge_rank": 2} if kind == "one_pass" else {}
    head: Any = make_any_head(initialise.head_config(CONFIG, kind, **sizes), TARGET)
    ranks = np.random.default_rng(0).permutation(CONFIG.vocab_size).astype(np.int32)
    recipes = {
        "eagle": lambda: make_feature_recipe(head, FeatureConfig(chunk=16)),
        "eagle3": lambda: make_unroll_recipe(head, UnrollConfig(num_steps=2, chunk=16)),
        "one_pass": lambda: make_block_recipe(head, BlockConfig(num_anchors=4, chunk=16)),
    }
    recipe = recipes[kind]()
    return Subject(
        head=head,
        weights=nn.unbox(head.init(jax.random.key(0))),
        vocabulary=initialise.make_vocabulary(CONFIG, PARAMS, ranks, 40),
        recipe=recipe,
        step=steps.make_train_step(recipe, TARGET, OPTIMIZER, accumulate=2, seed=5),
    )


def run(
    folder: Path, mesh: Mesh | None, num_steps: int = STEPS, kind: Kind = "eagle3", split_head: bool = False
) -> Outcome:
    """Train in `folder`, from wherever it stands, to `num_steps`; the target is split."""
    head, weights, vocabulary, recipe, step = subject(kind)
    params = PARAMS if mesh is None else place(PARAMS, target_shardings(mesh, CONFIG))
    first = jax.tree.map(jnp.array, weights)
    if mesh is not None and split_head:
        first = place(first, head_shardings(mesh, head, HeadParams(weights), split=True).weights)
    state = steps.initial_state({"weights": first}, OPTIMIZER, recipe.num_steps)
    data = make_iterator(pack(EXAMPLES, 32), 16, seed=7)  # two micro-batches of eight rows
    config = LoopConfig(steps=num_steps, log_every=1, save_every=STEPS)
    with Run(folder, {"kind": kind}) as opened:
        return train(opened, state, data, step, steps.Frozen(params, vocabulary), config, mesh=mesh, quiet=True)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("one")
    run(folder, None)
    return losses(folder)


def assert_same(found: list[float], wanted: list[float]) -> None:
    """Of a training that learns, but for rounding: a loss carries that of all steps before it."""
    of_a_step = gradient_terms(head_terms(subject("eagle3").head.config, 32, 2), rows=16 * 32)
    allowed = rounding(found, wanted, terms=STEPS * of_a_step) + written(found, wanted)
    np.testing.assert_allclose(found, wanted, atol=allowed, rtol=0)
    assert len(wanted) == STEPS
    assert wanted[-1] < wanted[0]


@pytest.mark.parametrize(("data", "model"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_losses_of_one_device(tmp_path: Path, on_one_device: list[float], data: int, model: int) -> None:
    run(tmp_path, make_mesh(data, model))
    assert_same(losses(tmp_path), on_one_device)


def test_losses_of_the_feature_recipe(tmp_path: Path) -> None:
    """Its noise is that of one device too."""
    run(tmp_path / "one", None, kind="eagle")
    run(tmp_path / "mesh", make_mesh(4, 2), kind="eagle")
    assert_same(losses(tmp_path / "mesh"), losses(tmp_path / "one"))


@pytest.mark.parametrize("split_head", [False, True])
def test_losses_of_the_one_pass_recipe(tmp_path: Path, split_head: bool) -> None:
    """Its anchors are those of one device, and so are the sums for the tables of its edges."""
    run(tmp_path / "one", None, kind="one_pass")
    run(tmp_path / "mesh", make_mesh(4, 2), kind="one_pass", split_head=split_head)
    assert_same(losses(tmp_path / "mesh"), losses(tmp_path / "one"))


def test_another_mesh_goes_on(tmp_path: Path, on_one_device: list[float]) -> None:
    """Saved on 4x2, resumed on 1x8: both parts have the losses of one device."""
    run(tmp_path, make_mesh(4, 2), STEPS // 2)
    mesh = make_mesh(1, 8)
    state = run(tmp_path, mesh).state
    assert_same(losses(tmp_path), on_one_device)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(state)} == {mesh}


def test_a_split_head_goes_on(tmp_path: Path, on_one_device: list[float]) -> None:
    """Each part of each leaf finds its new place, and moments lie as their weights before and behind steps."""
    saved = run(tmp_path, make_mesh(4, 2), STEPS // 2, split_head=True).state
    restored = run(tmp_path, make_mesh(1, 8), STEPS // 2, split_head=True).state
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    ended = run(tmp_path, make_mesh(1, 8), split_head=True).state
    assert_same(losses(tmp_path), on_one_device)
    for state in (saved, restored, ended):
        leaves = jax.tree_util.tree_leaves_with_path(state)
        specs = [leaf.sharding.spec for path, leaf in leaves if "up_proj" in jax.tree_util.keystr(path)]
        assert specs == [PartitionSpec(None, "model")] * 3


def test_rows_stay_where_they_are() -> None:
    """Eight groups of one device send each other sums: gradients, metrics, how long loops are."""
    _, weights, vocabulary, recipe, step = subject("eagle3")
    mesh = make_mesh(8, 1)
    state = steps.initial_state({"weights": weights}, OPTIMIZER, recipe.num_steps)
    rows = next(make_iterator(pack(EXAMPLES, 32), 16, seed=7))
    given = place_weights(mesh, (state, steps.Frozen(PARAMS, vocabulary)))
    with active(mesh):
        compiled = step.lower(*given, place_rows(mesh, dict(rows))).compile()
    assert {one.kind for one in read_collectives(compiled.as_text())} == {"all-reduce"}


def test_rows_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 16 rows does not divide over the 3 devices of mesh axis data"):
        run(tmp_path, make_mesh(3, 1))
