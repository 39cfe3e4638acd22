"""What a pass of the target and a step of its head cost on this machine, measured in seconds and remembered on disk.

Compiling whole programs of all candidate trees would take minutes. The target is timed in groups of a few layers: one
small program for each number of nodes, run over all groups in turn, which reads all weights from memory as a pass does.
The head has one layer anyway. Sizes that are not measured lie on lines between those that are.
"""

import functools
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from eagle_jax.checkpoint.pick_layers import pick_layers
from eagle_jax.checkpoint.pretrained import LoadedModel, head_directory
from eagle_jax.drafters import make_eagle2
from eagle_jax.drafters.base import Observation
from eagle_jax.drafters.default_tree import (
    TAU_FILE,
    RoundCosts,
    TreeChoice,
    best_tree,
    ladder_tree,
    read_tau_table,
)
from eagle_jax.files import cache_directory, write_whole
from eagle_jax.kernels.packed import is_packed, pack
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import first_largest
from eagle_jax.types import Params, Target, TargetOutput

PASS_SIZES = (1, 2, 4, 8, 12, 16, 32, 60)
"""Nodes of the passes that are timed; the last is the largest candidate."""

STEP_SIZES = (1, 4, 10)
"""Nodes of the head's steps that are timed."""

GROUP = 3
"""Layers of a timed program."""

PREFIX = 192
"""Tokens in the caches, about what a chat has."""

REPEATS = 7

VERSION = 1
"""Of the way of measuring: others are not comparable."""


def choose_tree(
    model: LoadedModel,
    name: str,
    head: Head,
    head_params: HeadParams,
    *,
    batch: int = 1,
    temperatures: Sequence[float] = (0.0,),
) -> TreeChoice:
    """The tree for a head that nobody gave sizes for.

    Args:
      model: the target.
      name: of the head, as `load_pretrained_head` takes it: its directory has the table of tau by tree.
      head, head_params: the draft head.
      batch: rows that decode together; on a mesh those of one part of its axis `data`.
      temperatures: of sampling.
    """
    table = read_tau_table(head_directory(name, model.name))
    if table is not None and model.mesh is None:
        return best_tree(table, round_costs(model, head, head_params, batch), temperatures)
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
    params = pack(model.params)
    path = cache_directory() / "round_costs" / f"{_key(model, params, head, batch)}.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        passes, steps = ({int(size): cost for size, cost in found[name].items()} for name in ("passes", "steps"))
        return RoundCosts(passes, found["observe"], steps)
    costs = measure(model, params, head, pack(head_params), batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(costs._asdict()))
    return costs


def _key(model: LoadedModel, params: Params, head: Head, batch: int) -> str:
    """What decides the costs."""
    device = jax.devices()[0]
    about = [VERSION, model.config, head.config, batch, device.device_kind, platform.processor(), os.cpu_count()]
    stored = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)})
    return hashlib.sha256(repr([*about, stored, is_packed(params), jax.__version__]).encode()).hexdigest()[:32]


def measure(model: LoadedModel, params: Params, head: Head, head_params: HeadParams, batch: int) -> RoundCosts:
    """Time all parts in turn, several times; medians."""
    target = make_target(model.config)
    sizes = [size for size in PASS_SIZES if size * batch <= max(PASS_SIZES)] or [1]
    runs: dict[tuple[str, int], Callable[[], object]] = {}
    for size in {1, *sizes}:
        runs["pass", size] = _pass_over(model, params, target, batch, size)
    steps = [size for size in STEP_SIZES if size * batch <= max(PASS_SIZES)] or [1]
    for name, size, run in _draft_runs(model, params, target, head, head_params, batch, steps):
        runs[name, size] = run
    flush = _unembed_of(target, params, jnp.zeros((batch, 1, model.config.width), target.activation_dtype(params)))
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in runs}
    for turn in range(REPEATS + 1):
        for key, run in runs.items():
            jax.block_until_ready(flush())  # in a round, too, other weights have passed through the caches since
            started = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[key].append(time.perf_counter() - started)
    cost = {key: 1e3 * statistics.median(found) for key, found in seconds.items()}
    read = cost["read", 1]
    return RoundCosts(
        passes={size: cost["pass", size] for size in sorted({1, *sizes})},
        observe=cost["observe", 1] + read,
        steps={size: max(0.0, cost["grow", size] - read) for size in steps},
    )


def _pass_over(model: LoadedModel, params: Params, target: Target, batch: int, size: int) -> Callable[[], object]:
    """A pass of the whole target over `size` nodes: groups of layers, then the choice."""
    count = min(GROUP, model.config.num_layers)
    firsts = [min(first, model.config.num_layers - count) for first in range(0, model.config.num_layers, count)]
    groups = [pick_layers(model.config, params, range(first, first + count)) for first in firsts]
    part = make_target(groups[0][0])
    cache = _filled(part.init_cache(batch, 2 * PREFIX, target.activation_dtype(params)))
    tokens = jnp.zeros((batch, size), jnp.int32)
    positions = jnp.broadcast_to(PREFIX + jnp.arange(size), (batch, size))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool)), (batch, size, size))
    layers = jax.jit(functools.partial(_hidden, part))
    unembed = _unembed_of(target, params, layers(groups[0][1], tokens, positions, cache, mask))

    def run() -> object:
        for _, some in groups:
            layers(some, tokens, positions, cache, mask)
        return unembed()

    return run


def _hidden(target: Target, params: Params, *given: Any) -> jax.Array:
    return target.forward(params, *given).hidden


def _unembed_of(target: Target, params: Params, hidden: jax.Array) -> Callable[[], jax.Array]:
    choose = jax.jit(lambda params, hidden: first_largest(target.unembed(params, hidden)))
    return lambda: choose(params, hidden)


def _filled(cache: Any) -> Any:
    return cache.replace(length=jnp.full_like(cache.length, PREFIX))


def _draft_runs(
    model: LoadedModel,
    params: Params,
    target: Target,
    head: Head,
    head_params: HeadParams,
    batch: int,
    steps: Sequence[int],
) -> list[tuple[str, int, Callable[[], object]]]:
    """Reading what was accepted, the root's children alone, and one level more of `steps` nodes."""
    dtype = target.activation_dtype(params)
    text, length = jnp.zeros((batch, 2 * PREFIX), jnp.int32), jnp.full(batch, PREFIX, jnp.int32)
    noise = jnp.zeros((batch, 3, model.config.vocab_size))
    path = jnp.broadcast_to(jnp.arange(3), (batch, 3))
    taps = jnp.zeros((batch, 3, model.config.width * len(model.config.taps)), dtype)
    output = TargetOutput(hidden=taps[..., : model.config.width], taps=taps, keys=(), values=())
    seen = Observation(text=text, length=length, output=output, path=path, count=jnp.full(batch, 2))
    first = make_eagle2(head, 2, 0, 1)
    state = first.init(batch, 2 * PREFIX, dtype)
    state = state.replace(cache=_filled(state.cache))
    observe = jax.jit(first.observe)

    def growing(depth: int, top_k: int) -> Callable[[], object]:
        drafter = make_eagle2(head, 2, depth, top_k)
        propose = jax.jit(drafter.propose)
        return lambda: propose(head_params, params, state, text, length, noise[:, : depth + 1])

    return [
        ("observe", 1, lambda: observe(head_params, params, state, seen)),
        ("read", 1, growing(0, 1)),
        *(("grow", size, growing(1, size)) for size in steps),
    ]
