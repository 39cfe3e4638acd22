"""Costs of a target pass and of a draft step on this machine, measured within seconds and cached on disk.

Compiling the programs of all candidate trees would take minutes. Instead the LM head and some layers of the target are
timed, too many to fit into a processor's cache; the costs of drafting, verification and commit are the rest of real
rounds with a target of few layers. All run in loops on the device, as a call from the host costs as much as a few
tokens. Sizes in between are interpolated.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from eagle_jax.accelerators import chip_of, links_between
from eagle_jax.checkpoint.pick_layers import pick_layers
from eagle_jax.checkpoint.pretrained import LoadedModel, head_directory
from eagle_jax.drafters import Drafter, make_eagle2, make_vanilla
from eagle_jax.drafters.default_tree import (
    TAU_FILE,
    RoundCosts,
    TreeChoice,
    TreeSize,
    best_tree,
    between,
    ladder_tree,
    read_tau_table,
)
from eagle_jax.evaluation.bounded_costs import bounded_costs
from eagle_jax.files import cache_directory, read_json, write_whole
from eagle_jax.generator import Generator
from eagle_jax.kernels.packed import is_packed, pack
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import first_largest, make_sampling
from eagle_jax.sharding import DATA
from eagle_jax.types import KVCache, Params, Target

PASS_SIZES = (1, 2, 4, 8, 12, 16, 32, 60)
"""Nodes of the passes that are timed; the last is the largest candidate."""

DRAFTED = TreeSize(2, 0, 1), TreeSize(8, 2, 3)
"""Trees whose rounds are timed for the cost of drafting: one draft step, and two levels more."""

STREAMED = 96 * 2**20
"""Bytes of weights that are read from memory in each loop, not from a cache."""

LOOPS = 4
"""How often a part runs in one call."""

PREFIX = 192
"""Tokens in the caches, about the length of a chat."""

REPEATS = 7

FEW = 2
"""Layers of the target in the timed rounds."""

CAPACITY = 512
"""Cache slots of these rounds: room for `REPEATS` + 1 calls of `LOOPS` rounds."""

VERSION = 4
"""Version of this method of measuring: stored costs of another one are not used."""


def choose_tree(
    model: LoadedModel,
    name: str,
    head: Head,
    head_params: HeadParams,
    *,
    batch: int = 1,
    temperatures: Sequence[float] = (0.0,),
    split: bool | None = None,
) -> TreeChoice:
    """The default tree of a head: by costs, which are measured on one device and bounds on a mesh of known chips.

    Args:
      model: the target.
      name: of the head, as `load_pretrained_head` takes it: its directory has the table of tau by tree.
      head, head_params: the draft head.
      batch: rows that decode together; on a mesh those of one part of its axis `data`.
      temperatures: of sampling.
      split: whether the head is to be split over the mesh; None: where that costs less.
    """
    table, mesh = read_tau_table(head_directory(name, model.name)), model.mesh
    if table is not None and mesh is None:
        return best_tree(table, round_costs(model, head, head_params, batch), temperatures)
    devices = [] if mesh is None else list(mesh.devices.flat)
    chip = chip_of(devices[0]) if devices else None
    if table is not None and mesh is not None and chip is not None and model.config.experts is None:
        links, about = links_between(devices), (model.config, model.params, head, head_params, mesh)
        choice = best_tree(
            table,
            bounded_costs(*about, chip, links, split=split, batch=batch * mesh.shape[DATA], slots=PREFIX),
            temperatures,
        )
        return TreeChoice(choice.size, f"{choice.reason}, by bounds")
    size = ladder_tree(batch)
    why = "costs are not measured on a mesh" if table is not None else f"head {name} has no {TAU_FILE}"
    return TreeChoice(size, f"tree {size}: by platform and batch, {why}")


def round_costs(model: LoadedModel, head: Head, head_params: HeadParams, batch: int = 1) -> RoundCosts:
    """Costs for a batch, from the file of an earlier measurement where this machine has made it.

    Args:
      model: the target, on one device.
      head, head_params: the draft head.
      batch: rows that decode together.
    """
    params, head_params = pack(model.params), pack(head_params)
    path = cache_directory() / "round_costs" / f"{_key(model, params, head, head_params, batch)}.json"
    # A damaged file is measured anew, as one that is not there.
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        stored = read_json(path)
        return RoundCosts(**{**stored, "passes": {int(size): cost for size, cost in stored["passes"].items()}})
    costs = measure(model, params, head, head_params, batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(costs._asdict()))
    return costs


def _key(model: LoadedModel, params: Params, head: Head, head_params: HeadParams, batch: int) -> str:
    """Hash of everything that the costs depend on."""
    device = jax.devices()[0]
    about = [VERSION, model.config, head.config, batch, device.device_kind, platform.processor(), os.cpu_count()]
    stored = [sorted({str(leaf.dtype) for leaf in jax.tree.leaves(tree)}) for tree in (params, head_params)]
    return hashlib.sha256(repr([*about, stored, is_packed(params), jax.__version__]).encode()).hexdigest()[:32]


def measure(model: LoadedModel, params: Params, head: Head, head_params: HeadParams, batch: int) -> RoundCosts:
    """Time all parts in turn, several times; the minimum of each, as differences of them are used."""
    target = make_target(model.config)
    sizes = sorted({1, *(size for size in PASS_SIZES if size * batch <= max(PASS_SIZES))})
    count, few_layers, few = _some_layers(model, params)
    runs: dict[tuple[str, int], Callable[[], object]] = {}
    for size in sizes:
        runs["layers", size] = _layers(few_layers, few, batch, size)
        runs["unembed", size] = _unembed(target, params, batch, size, model.config.width)
    for nodes, drafter in {1: make_vanilla(), **{size.nodes: make_eagle2(head, *size) for size in DRAFTED}}.items():
        runs["round", nodes] = _rounds(model, params, drafter, () if nodes == 1 else head_params, batch)
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for turn in range(REPEATS + 1):
        for key, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[key].append(time.perf_counter() - started)
    cost = {key: 1e3 / LOOPS * min(times) for key, times in seconds.items()}
    layers = {size: cost["layers", size] / count for size in sizes}
    unembed = {size: cost["unembed", size] for size in sizes}
    # What a round takes besides its pass, of which `_rounds` has few layers.
    flat, deep = DRAFTED
    rest = {
        nodes: max(0.0, cost["round", nodes] - between(layers, nodes) * FEW - between(unembed, nodes))
        for nodes in (1, flat.nodes, deep.nodes)
    }
    return RoundCosts(
        passes={size: layers[size] * model.config.num_layers + unembed[size] for size in sizes},
        rest=rest[1],
        draft=rest[flat.nodes],
        step=max(0.0, rest[deep.nodes] - rest[flat.nodes]) / (deep.depth - flat.depth),
    )


def _rounds(
    model: LoadedModel, params: Params, drafter: Drafter, drafter_params: Params, batch: int
) -> Callable[[], object]:
    """`LOOPS` rounds of decoding with a target of few layers: drafting, verification, commit and all else are real."""
    config, few = pick_layers(model.config, params, range(min(FEW, model.config.num_layers)))
    generator = Generator(make_target(config), few, drafter, drafter_params, capacity=CAPACITY)
    sampling = make_sampling(batch, max_new_tokens=CAPACITY - PREFIX - drafter.max_depth - 1)
    state = generator.start([[0] * PREFIX] * batch, sampling)

    def run() -> object:
        nonlocal state
        state = generator.advance(state, sampling, LOOPS)
        return state.rounds

    return run


def _timed(part: Callable[[jax.Array, Params], object], weights: Params) -> Callable[[], jax.Array]:
    """Runs a part `LOOPS` times in one program, each time after the one before it has ended, as rounds do.

    Iterations are chained through a zero that XLA cannot fold, computed from the last iteration's results.
    """

    @jax.jit
    def loop(weights: Params) -> jax.Array:
        def again(_: jax.Array, zero: jax.Array) -> jax.Array:
            results = jax.tree.leaves(part(zero, weights))
            return (sum(leaf.astype(jnp.float32).sum() for leaf in results) == jnp.inf).astype(jnp.int32)

        return lax.fori_loop(0, LOOPS, again, jnp.int32(0))

    return lambda: loop(weights)


def _some_layers(model: LoadedModel, params: Params) -> tuple[int, Target, Params]:
    """Enough layers to exceed any processor cache, so that each loop reads their weights from memory."""
    layer = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers_0"]))
    count = min(model.config.num_layers, -(-STREAMED // layer))
    config, few = pick_layers(model.config, params, range(count))
    return count, make_target(config), few


def _layers(target: Target, params: Params, batch: int, size: int) -> Callable[[], jax.Array]:
    """The layers over `size` nodes a row."""
    cache = _filled(target.init_cache(batch, 2 * PREFIX, target.activation_dtype(params)))
    positions = jnp.broadcast_to(PREFIX + jnp.arange(size), (batch, size))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool)), (batch, size, size))

    def part(zero: jax.Array, weights: Params) -> jax.Array:
        return target.forward(weights, jnp.full((batch, size), zero), positions, cache, mask).hidden

    return _timed(part, params)


def _unembed(target: Target, params: Params, batch: int, size: int, width: int) -> Callable[[], jax.Array]:
    """Logits and choice for `size` nodes a row."""

    def part(zero: jax.Array, weights: Params) -> jax.Array:
        hidden = jnp.full((batch, size, width), zero, target.activation_dtype(weights))
        return first_largest(target.unembed(weights, hidden))

    return _timed(part, params)


def _filled(cache: KVCache) -> KVCache:
    return dataclasses.replace(cache, length=jnp.full_like(cache.length, PREFIX))
