"""One optimizer step on a draft head, lowered for a mesh from shapes alone, the target's features included.

The head is trained in float32 with AdamW and sharded as for decoding, replicated or split; its moments are sharded like
it. Rows of packed text are sharded over `data`, and every one of their slots may carry a loss.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from eagle_jax import sharding
from eagle_jax.models.transformer import lm_head_rows
from eagle_jax.training.recipes import make_head_recipe
from eagle_jax.training.records import Recipe, Vocabulary
from eagle_jax.training.step import (
    Frozen,
    OptimizerConfig,
    TrainState,
    initial_state,
    make_optimizer,
    make_train_step,
)
from experiments.scaling.programs import Setting, Shapes, at, like


def lower_train_step(shapes: Shapes, setting: Setting, mesh: Mesh) -> jax.stages.Lowered:
    """The step with the default recipe of the head's kind."""
    optimizer, _ = make_optimizer(OptimizerConfig(steps=1000))
    recipe = make_head_recipe(shapes.head, {})
    fields = {**dict.fromkeys(("tokens", "segments", "positions", "slots"), jnp.int32), "supervised": jnp.bool_}
    rows = {name: jax.ShapeDtypeStruct((setting.batch, setting.context), dtype) for name, dtype in fields.items()}
    step: Any = make_train_step(recipe, shapes.models.target, optimizer, dtype=setting.dtype)
    return step.lower(
        _state(shapes, optimizer, recipe, mesh),
        Frozen(shapes.models.target_params, _vocabulary(shapes, setting)),
        at(rows, sharding.row_shardings(mesh, rows)),
    )


def _state(shapes: Shapes, optimizer: optax.GradientTransformation, recipe: Recipe, mesh: Mesh) -> TrainState:
    trained = {"weights": like(shapes.models.drafter_params.weights, "float32")}
    state = jax.eval_shape(lambda trained: initial_state(trained, optimizer, recipe.num_steps), trained)
    beside = {"weights": jax.tree.map(lambda x: x.sharding, shapes.models.drafter_params.weights)}
    everywhere = sharding.replicated(mesh)
    shape: Any = jax.tree.structure(trained)

    def moment(node: Any) -> bool:
        return bool(shape == jax.tree.structure(node))

    moments = jax.tree.map(lambda node: beside if moment(node) else everywhere, state.optimizer, is_leaf=moment)
    places = jax.tree.map(lambda _: everywhere, state)
    return at(state, dataclasses.replace(places, trained=beside, optimizer=moments))


def _vocabulary(shapes: Shapes, setting: Setting) -> Vocabulary:
    """The rows of the LM head that the loss reads: the draft head's own, or all of the target's."""
    params = shapes.models.drafter_params
    if params.lm_head is not None:
        return Vocabulary(lm_head=params.lm_head, target_ids=params.target_ids)
    return Vocabulary(lm_head=lm_head_rows(setting.target, shapes.models.target_params))
