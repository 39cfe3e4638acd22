"""Training on eight devices: the losses of one, and a run that goes on on another mesh."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from eagle_jax.sharding import make_mesh, place, target_shardings
from eagle_jax.training import step as steps
from eagle_jax.training.data import make_iterator, pack
from eagle_jax.training.loop import LoopConfig, Outcome, train
from eagle_jax.training.run import Run
from eagle_jax.training.unroll_recipe import UnrollConfig, make_unroll_recipe
from tests.training import small

STEPS = 20
EXAMPLES = [small.document(seed, 12 + seed % 5, 4) for seed in range(16)]
CONFIG, TARGET, PARAMS = small.model()
HEAD, HEAD_PARAMS, VOCABULARY = small.head("eagle3", draft_size=40)
RECIPE = make_unroll_recipe(HEAD, UnrollConfig(num_steps=2, chunk=16))
OPTIMIZER, _ = steps.make_optimizer(steps.OptimizerConfig(steps=STEPS, learning_rate=3e-3))
STEP = steps.make_train_step(RECIPE, TARGET, OPTIMIZER, accumulate=2, seed=5)


def run(folder: Path, mesh: Mesh | None, num_steps: int = STEPS) -> Outcome:
    """Train in `folder`, from wherever it stands, to `num_steps`; the target is split."""
    params = PARAMS if mesh is None else place(PARAMS, target_shardings(mesh, CONFIG))
    state = steps.initial_state({"weights": jax.tree.map(jnp.array, HEAD_PARAMS.weights)}, OPTIMIZER, RECIPE.num_steps)
    data = make_iterator(pack(EXAMPLES, 32), 8, seed=7)  # two micro-batches of four rows
    config = LoopConfig(steps=num_steps, log_every=1, save_every=STEPS)
    with Run(folder, {"kind": "eagle3"}) as opened:
        return train(opened, state, data, STEP, steps.Frozen(params, VOCABULARY), config, mesh=mesh, quiet=True)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    folder = tmp_path_factory.mktemp("one")
    run(folder, None)
    return losses(folder)


def test_another_mesh_goes_on(tmp_path: Path, on_one_device: list[float]) -> None:
    """Saved on 4x2, resumed on 1x8: both parts have the losses of one device."""
    run(tmp_path, make_mesh(4, 2), STEPS // 2)
    mesh = make_mesh(1, 8)
    state = run(tmp_path, mesh).state
    np.testing.assert_allclose(losses(tmp_path), on_one_device, atol=1e-5, rtol=0)
    assert on_one_device[-1] < on_one_device[0]
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(state)} == {mesh}


def test_rows_that_do_not_divide(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 8 rows does not divide over the 3 devices of mesh axis data"):
        run(tmp_path, make_mesh(3, 1))
