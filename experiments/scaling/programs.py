"""Programs of the decoder, lowered for a mesh from shapes alone, without weights.

Every argument is a `jax.ShapeDtypeStruct` with a sharding, by the same rules as arrays that are placed. Unused
arguments are not dropped (`keep_unused`), because a device holds them all the same.

    prefill   reads a prompt chunk by chunk; a loop over one chunk's pass
    round     draft, verify, commit, observe
    step      the same without a draft: a round of plain decoding
    decode, plain     the loops over rounds of both kinds, as `eagle_jax.decode` compiles them
    pass, one the target alone over the nodes of the tree, and over one token: layers and logits
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import AbstractMesh, Mesh

from configs.targets.shapes import DRAFT_VOCAB, head_of
from eagle_jax import sharding
from eagle_jax.accelerators import Chip
from eagle_jax.checkpoint.head_formats import HEAD_FORMATS
from eagle_jax.decode import DecodeState, Models, decode, one_round, prefill
from eagle_jax.drafters import make_vanilla
from eagle_jax.drafters.default_tree import TauTable, TreeChoice, TreeSize, best_tree
from eagle_jax.drafters.placement import Placement, place_head
from eagle_jax.evaluation.bounded_costs import bounded_costs
from eagle_jax.evaluation.tables import tau_table
from eagle_jax.files import read_jsonl, with_fields
from eagle_jax.generator import ALL_ROUNDS, default_chunk
from eagle_jax.models.block_head import BlockHead, make_any_head
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.models.transformer import init_params, make_target
from eagle_jax.sampling import make_sampling
from eagle_jax.sharding import Split
from eagle_jax.types import Params, Sampling
from experiments.cli.methods import HEAD_METHODS

TAU_BY_DEPTH = pathlib.Path(__file__).parents[2] / "results" / "ablations" / "tree_depth.jsonl"
"""tau of the EAGLE-3 head of SmolLM2 by depth, of `configs/ablations/tree_depth.py`."""
TRAINED_WITH = "8,192 tokens"
"""The end of the labels of those rows that have the draft vocabulary which this head was trained with."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is compiled."""

    target: ModelConfig
    method: str  # one of `HEAD_METHODS`
    nodes: int
    depth: int
    top_k: int
    batch: int
    context: int  # slots of all caches; tokens of a row in training
    dtype: str
    split_head: bool  # the head over `model` too, not replicated
    draft_vocab: int = DRAFT_VOCAB  # rows of an LM head of the head's own


class Shapes(NamedTuple):
    """The arguments of all programs: shapes, dtypes and shardings."""

    models: Models  # the drafter's weights are `HeadParams`
    head: Head | BlockHead
    state: DecodeState
    plain: Models  # the same target without a draft
    plain_state: DecodeState
    sampling: Sampling
    split: Split


def clamped(context: int, target: ModelConfig) -> int:
    """Slots of all caches: no more than a target has positions."""
    return min(context, target.max_positions)


def make_shapes(setting: Setting, mesh: Mesh | AbstractMesh) -> Shapes:
    """All arguments; a mesh without devices is enough.

    Raises:
      ValueError: sizes that name no tree, or a batch that does not divide over the mesh.
    """
    if setting.batch % mesh.shape[sharding.DATA]:
        devices = mesh.shape[sharding.DATA]
        raise ValueError(f"a batch of {setting.batch} does not divide over the {devices} devices of mesh axis data")
    target = make_target(setting.target)
    method = HEAD_METHODS[setting.method]
    head = make_any_head(head_of(method.kind, setting.target), target)
    sizes = (setting.nodes, setting.depth, setting.top_k) if method.dynamic else ()
    drafter = method.make(head, *sizes)
    target_params = like(_weights(functools.partial(init_params, setting.target)), setting.dtype)
    target_params = at(target_params, sharding.target_shardings(mesh, setting.target))
    head_params = _head_params(setting, head)
    head_params = at(head_params, sharding.head_shardings(mesh, head, head_params, split=setting.split_head))
    sampling = jax.eval_shape(functools.partial(make_sampling, setting.batch))
    sampling = at(sampling, sharding.row_shardings(mesh, sampling))
    split = sharding.split_of(target_params, head_params)

    def state_of(models: Models) -> DecodeState:
        text = jax.ShapeDtypeStruct((setting.batch, setting.context), jnp.int32)
        length = jax.ShapeDtypeStruct((setting.batch,), jnp.int32)
        state = jax.eval_shape(prefill, models, text, length, sampling)
        places = dataclasses.replace(
            sharding.row_shardings(mesh, state, split=split.target),
            drafter=sharding.row_shardings(mesh, state.drafter, split=split.drafter),
        )
        return at(state, places)

    models = Models(target, drafter, target_params, head_params)
    plain = Models(target, make_vanilla(), target_params)
    return Shapes(
        models=models,
        head=head,
        state=state_of(models),
        plain=plain,
        plain_state=state_of(plain),
        sampling=sampling,
        split=split,
    )


def placement_of(setting: Setting, mesh: Mesh | AbstractMesh, chip: Chip | None, links: int) -> Placement:
    """Whether the head of a setting is split, by the bound on drafting, whatever the setting says."""
    shapes = make_shapes(dataclasses.replace(setting, split_head=False), mesh)
    models = shapes.models
    sizes = {"batch": setting.batch, "slots": setting.context}
    return place_head(shapes.head, models.drafter_params, models.drafter, mesh, chip=chip, links=links, **sizes)


def tree_by_bound(
    setting: Setting, mesh: Mesh | AbstractMesh, chip: Chip, links: int, split: bool | None
) -> TreeChoice | None:
    """The tree with the most tokens per second by bounds, of those whose tau is known of the head of SmolLM2.

    None for methods of which none is known.
    """
    known = read_jsonl(TAU_BY_DEPTH, with_fields("label", "method"))
    rows = [row for row in known if row["label"].endswith(TRAINED_WITH) and row["method"] == setting.method]
    if not rows:
        return None
    tau = {
        TreeSize(*map(int, size.split("/"))): {float(temperature): value for temperature, value in at.items()}
        for size, at in tau_table(rows)["tau"].items()
    }
    temperatures = sorted({temperature for at in tau.values() for temperature in at})
    shapes = make_shapes(dataclasses.replace(setting, split_head=False), mesh)
    head: Any = shapes.head  # one of EAGLE: others have no tree by level
    costs = bounded_costs(
        setting.target,
        shapes.models.target_params,
        head,
        shapes.models.drafter_params,
        mesh,
        chip,
        links,
        split=split,
        batch=setting.batch,
        slots=setting.context,
    )
    return best_tree(TauTable(tau), costs, temperatures)


def _weights(init: Callable[[jax.Array], Params]) -> Params:
    return nn.unbox(jax.eval_shape(init, jax.random.key(0)))


def _head_params(setting: Setting, head: Head | BlockHead) -> HeadParams:
    """As published: an EAGLE-3 head has an LM head of its own, and its embedding is the target's."""
    weights: Any = like(_weights(head.init), setting.dtype)
    if not HEAD_FORMATS[head.config.kind].own_lm_head:
        return HeadParams(weights=weights)
    rows = min(setting.draft_vocab, setting.target.vocab_size)
    lm_head: Any = jax.ShapeDtypeStruct((rows, head.config.layer.width), jnp.dtype(setting.dtype))
    target_ids: Any = jax.ShapeDtypeStruct((rows,), jnp.int32) if rows < setting.target.vocab_size else None
    return HeadParams(weights=weights, lm_head=lm_head, target_ids=target_ids)


def like(tree: Any, dtype: str) -> Any:
    """The shapes of a tree in another dtype."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), tree)


def at(tree: Any, places: Any) -> Any:
    """The shapes of a tree with the shardings `places`."""
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places)


def _prefill(shapes: Shapes, setting: Setting, mesh: Mesh) -> jax.stages.Lowered:
    read: Any = prefill
    return jax.jit(read.__wrapped__, static_argnames=("chunk", "split"), keep_unused=True).lower(
        shapes.models,
        shapes.state.text,
        shapes.state.prompt_length,
        shapes.sampling,
        chunk=min(default_chunk(mesh.devices.flat[0].platform), setting.context),
        split=shapes.split,
    )


def check_places(shapes: Shapes, compiled: jax.stages.Compiled) -> None:
    """Check that a compiled prefill returns its state with the shardings that a round takes.

    Raises:
      ValueError: an array with another sharding.
    """
    leaves = jax.tree_util.tree_leaves_with_path(shapes.state)
    for (path, x), place in zip(leaves, jax.tree.leaves(compiled.output_shardings), strict=True):
        if not place.is_equivalent_to(x.sharding, x.ndim):
            name = jax.tree_util.keystr(path)
            raise ValueError(f"prefill leaves {name} in {place.spec}, a round takes it in {x.sharding.spec}")


def _round_of(models: Models, state: DecodeState, sampling: Sampling) -> jax.stages.Lowered:
    """One round whose state stays where it is, as the carry of the decoding loop does."""
    run = jax.jit(
        one_round,
        donate_argnames=("state",),
        keep_unused=True,
        out_shardings=jax.tree.map(lambda x: x.sharding, state),
    )
    return run.lower(models, state, sampling)


def _round(shapes: Shapes, setting: Setting, mesh: Mesh) -> jax.stages.Lowered:
    return _round_of(shapes.models, shapes.state, shapes.sampling)


def _step(shapes: Shapes, setting: Setting, mesh: Mesh) -> jax.stages.Lowered:
    return _round_of(shapes.plain, shapes.plain_state, shapes.sampling)


def _loop_of(models: Models, state: DecodeState, sampling: Sampling, split: Split) -> jax.stages.Lowered:
    return decode.lower(models, state, sampling, ALL_ROUNDS, split=split)


def _decode(shapes: Shapes, setting: Setting, mesh: Mesh) -> jax.stages.Lowered:
    return _loop_of(shapes.models, shapes.state, shapes.sampling, shapes.split)


def _plain(shapes: Shapes, setting: Setting, mesh: Mesh) -> jax.stages.Lowered:
    return _loop_of(shapes.plain, shapes.plain_state, shapes.sampling, shapes.split)


def _pass_over(count: int, shapes: Shapes, setting: Setting, mesh: Mesh) -> jax.stages.Lowered:
    target = shapes.models.target

    def run(params: Params, tokens: jax.Array, mask: jax.Array, state: DecodeState) -> Any:
        with jax.named_scope("target"):
            positions = state.cache.length[:, None] + jnp.arange(count)[None, :]
            output = target.forward(params, tokens, positions, state.cache, mask)
            return target.unembed(params, output.hidden), output

    tokens = jax.ShapeDtypeStruct((setting.batch, count), jnp.int32)
    mask = jax.ShapeDtypeStruct((setting.batch, count, count), jnp.bool_)
    tokens, mask = at((tokens, mask), sharding.row_shardings(mesh, (tokens, mask)))
    return jax.jit(run, keep_unused=True).lower(shapes.models.target_params, tokens, mask, shapes.plain_state)


def _pass(shapes: Shapes, setting: Setting, mesh: Mesh) -> jax.stages.Lowered:
    return _pass_over(shapes.models.drafter.nodes, shapes, setting, mesh)


def _one(shapes: Shapes, setting: Setting, mesh: Mesh) -> jax.stages.Lowered:
    return _pass_over(1, shapes, setting, mesh)


PROGRAMS: dict[str, Callable[[Shapes, Setting, Mesh], jax.stages.Lowered]] = {
    "prefill": _prefill,
    "round": _round,
    "step": _step,
    "decode": _decode,
    "plain": _plain,
    "pass": _pass,
    "one": _one,
}
