"""One optimizer step as one compiled program: features, loss, gradients, update, and the sums that metrics come from.

Micro-batches are scanned inside; the divisors of the loss are those of the full batch, so accumulating gradients
changes nothing but memory. All randomness is keyed by the step, so a resumed run repeats an uninterrupted one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import struct

from eagle_jax.models.draft_head import HeadParams
from eagle_jax.models.layers import in_full_precision
from eagle_jax.sharding import keep_rows
from eagle_jax.training.features import compute_features
from eagle_jax.training.records import Batch, Features, Recipe, Tally, Vocabulary
from eagle_jax.types import Params, Target

RowBatch = dict[str, jax.Array]
"""Packed rows by field name, [rows, ...]: those of `Batch`, and those of `Features` where they are cached."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101) or Muon (arXiv 2502.16982) with linear warm-up and cosine decay (arXiv 1608.03983)."""

    steps: int
    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-4
    final_share: float = 0.1  # of the learning rate, at the last step
    warmup_share: float = 0.03  # of all steps
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.name not in ("adamw", "muon"):
            raise ValueError(f"optimizer must be adamw or muon, got {self.name!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.learning_rate <= 0 or self.clip_norm <= 0:
            raise ValueError(f"learning_rate and clip_norm must be above 0, got {self.learning_rate}, {self.clip_norm}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"warmup_share must be in [0, 1), got {self.warmup_share}")


def make_optimizer(config: OptimizerConfig) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer and its learning rate by step."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=max(1, round(config.warmup_share * config.steps)),
        decay_steps=max(config.steps, 2),
        end_value=config.final_share * config.learning_rate,
    )
    if config.name == "adamw":
        rule = optax.adamw(schedule, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay)
    else:
        rule = optax.contrib.muon(
            schedule,
            consistent_rms=0.2,  # steps as large as Adam's, so that learning rates mean the same
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=matrices,
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule), schedule


def matrices(trained: Params) -> Params:
    """How Muon reads each weight as a matrix; None where Adam takes it: norms, biases, an LM head."""

    def axes(path: Any, weight: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        names = [entry.key for entry in path]
        if names[-1] != "kernel":
            return None
        inputs = 2 if "o_proj" in names else 1  # heads and their size; all others read one axis
        return optax.contrib.MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, weight.ndim)))

    return jax.tree_util.tree_map_with_path(axes, trained)


@struct.dataclass
class Frozen:
    """What training reads and never changes."""

    target_params: Params
    vocabulary: Vocabulary


@struct.dataclass
class Window:
    """Sums since the last line of metrics."""

    tally: Tally
    loss: jax.Array  # f32[]
    grad_norm: jax.Array  # f32[], before clipping
    steps: jax.Array  # i32[]


@struct.dataclass
class TrainState:
    """Everything that a step changes: what a checkpoint holds."""

    step: jax.Array  # i32[], steps done
    tokens: jax.Array  # u32[], supervised tokens seen, modulo 2**32
    trained: dict[str, Any]  # `weights` of the head, and `lm_head` [U, E] where it is trained
    optimizer: Any
    window: Window


def empty_window(num_steps: int) -> Window:
    """Sums over nothing, for a recipe of `num_steps` unrolled steps."""
    # Arrays of their own: a donated state may not hold one buffer twice.
    by_step = [field.name for field in dataclasses.fields(Tally) if field.name != "feature_error"]
    tally = Tally(**{name: jnp.zeros(num_steps) for name in by_step}, feature_error=jnp.zeros(()))
    return Window(tally, jnp.zeros(()), jnp.zeros(()), jnp.zeros((), jnp.int32))


def initial_state(trained: dict[str, Any], optimizer: optax.GradientTransformation, num_steps: int) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((), jnp.uint32),
        trained=trained,
        optimizer=optimizer.init(trained),
        window=empty_window(num_steps),
    )


def head_params(trained: dict[str, Any], vocabulary: Vocabulary) -> HeadParams:
    """The head as a drafter takes it."""
    return HeadParams(
        weights=trained["weights"],
        lm_head=trained.get("lm_head", vocabulary.lm_head if vocabulary.target_ids is not None else None),
        target_ids=vocabulary.target_ids,
    )


def make_loss(
    recipe: Recipe, target: Target, dtype: str, everywhere: bool = False
) -> Callable[[dict[str, Any], Frozen, RowBatch, jax.Array, jax.Array | None], tuple[jax.Array, Tally]]:
    """The loss of rows as a function of (trained, frozen, rows, divisors, key); features are computed where missing."""

    def loss(
        trained: dict[str, Any], frozen: Frozen, rows: RowBatch, divisors: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, Tally]:
        batch = text_of(rows)
        if "taps" in rows:
            features = Features(rows["taps"], rows["hidden"], rows["choice"])
        else:
            features = compute_features(target, frozen.target_params, batch, everywhere=everywhere)
        features = dataclasses.replace(features, taps=features.taps.astype(dtype), hidden=features.hidden.astype(dtype))
        params = head_params(trained, frozen.vocabulary)
        return recipe.loss(params, frozen.target_params, frozen.vocabulary, batch, features, divisors, key)

    return loss


def text_of(rows: RowBatch) -> Batch:
    """The text among the fields of packed rows."""
    return Batch(**{field: rows[field] for field in ("tokens", "segments", "positions", "supervised", "slots")})


def make_train_step(
    recipe: Recipe,
    target: Target,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    seed: int = 0,
    dtype: str = "float32",
    everywhere: bool = False,
) -> Callable[[TrainState, Frozen, RowBatch], TrainState]:
    """The compiled step: (state, frozen, rows) -> state; the old state is donated.

    Args:
      recipe, target, optimizer: what is trained, and how.
      accumulate: micro-batches that the rows of a step are split into.
      seed: of the recipe's noise.
      dtype: of activations; weights and the optimizer's state stay float32.
      everywhere: as `compute_features` takes it.
    """
    loss = make_loss(recipe, target, dtype, everywhere)
    differentiate = jax.value_and_grad(loss, has_aux=True)

    @functools.partial(jax.jit, donate_argnames=("state",))
    @in_full_precision
    def step(state: TrainState, frozen: Frozen, rows: RowBatch) -> TrainState:
        divisors = recipe.divisors(text_of(rows))
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), state.step)

        def add(sums: Any, one: tuple[jax.Array, RowBatch]) -> tuple[Any, None]:
            index, some = one
            (value, tally), grads = differentiate(
                state.trained, frozen, keep_rows(some), divisors, jax.random.fold_in(key, index)
            )
            return jax.tree.map(jnp.add, sums, (value, tally, grads)), None

        # Every accumulate-th row: of those that a device of a mesh has, some for each micro-batch.
        parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), rows)
        window = state.window
        nothing = (jnp.zeros(()), empty_window(recipe.num_steps).tally, jax.tree.map(jnp.zeros_like, state.trained))
        (value, tally, grads), _ = jax.lax.scan(add, nothing, (jnp.arange(accumulate), parts))
        updates, optimizer_state = optimizer.update(grads, state.optimizer, state.trained)
        return TrainState(
            step=state.step + 1,
            tokens=state.tokens + tally.rows[0].astype(jnp.uint32),
            trained=optax.apply_updates(state.trained, updates),
            optimizer=optimizer_state,
            window=Window(
                tally=jax.tree.map(jnp.add, window.tally, tally),
                loss=window.loss + value,
                grad_norm=window.grad_norm + optax.tree.norm(grads),
                steps=window.steps + 1,
            ),
        )

    return step


def make_measure(
    recipe: Recipe, target: Target, *, dtype: str = "float32", everywhere: bool = False
) -> Callable[[dict[str, Any], Frozen, RowBatch], Tally]:
    """The compiled measurement: (trained, frozen, rows) -> tally; nothing is trained, and no noise is added."""
    loss = make_loss(recipe, target, dtype, everywhere)

    @jax.jit
    @in_full_precision
    def measure(trained: dict[str, Any], frozen: Frozen, rows: RowBatch) -> Tally:
        return loss(trained, frozen, rows, recipe.divisors(text_of(rows)), None)[1]

    return measure
