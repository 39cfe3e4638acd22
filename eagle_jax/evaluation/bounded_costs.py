"""Costs of rounds by a lower bound, for devices on which nothing is timed: those of a mesh, or that are not there.

A pass takes at least as long as its products, or as reading the weights, and after that what it sends; a round of
drafting adds the bound of `drafters.placement`. Each is a sum of what a program cannot avoid, so trees are compared by
what they read, send and compute, and by nothing else.
"""

import jax
from jax.sharding import AbstractMesh, Mesh

from eagle_jax.accelerators import Chip
from eagle_jax.drafters import make_eagle2
from eagle_jax.drafters.default_tree import RoundCosts
from eagle_jax.drafters.placement import Work, draft_work
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.sharding import DATA, MODEL, device_bytes
from eagle_jax.types import Params

PASS_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Nodes a row of the passes whose bound is computed; in between it is linear."""


def bounded_costs(
    config: ModelConfig,
    params: Params,
    head: Head,
    head_params: HeadParams,
    mesh: Mesh | AbstractMesh,
    chip: Chip,
    links: int,
    *,
    split: bool | None = None,
    batch: int = 1,
    slots: int = 0,
) -> RoundCosts:
    """Milliseconds of the parts of a round, at least.

    Args:
      config: the target, one without experts: how many of those a pass reads depends on its tokens.
      params: its weights, or shapes with shardings.
      head, head_params: an EAGLE head, or the shapes of its weights.
      mesh: the devices.
      chip, links: their numbers, as of `placement.place_head`.
      split: whether the head is split; None takes what costs less at each depth.
      batch: rows that decode together.
      slots: of all caches, which are read in full.

    Raises:
      ValueError: a target with experts.
    """
    if config.experts is not None:
        raise ValueError("the bound on a pass is one of dense targets, this one has experts")
    one = target_work(config, params, mesh, batch=batch, slots=slots)
    rows = max(1, batch // mesh.shape[DATA])
    weight = jax.tree.leaves(params)[0].dtype.itemsize
    flops = 2 * rows * one.read / weight  # of a token a row, that of attention among them

    def verify(nodes: int) -> float:
        alone = max(one.read / chip.bandwidth, nodes * flops / chip.flops)
        return alone + nodes * one.sent / (chip.link * max(links, 1)) + one.collectives * chip.latency

    def drafted(depth: int) -> float:
        return min(
            draft_work(
                head, head_params, make_eagle2(head, 8, depth), mesh, split=each, batch=batch, slots=slots
            ).seconds(chip, links)
            for each in ((False, True) if split is None else (split,))
        )

    first, second = map(drafted, (0, 1))
    return RoundCosts(
        passes={nodes: 1e3 * verify(nodes) for nodes in PASS_SIZES},
        rest=0.0,
        draft=1e3 * first,
        step=1e3 * (second - first),
    )


def target_work(config: ModelConfig, params: Params, mesh: Mesh | AbstractMesh, *, batch: int, slots: int) -> Work:
    """What a device reads in a pass of the target, and sends for one token a row."""
    count, rows = mesh.shape[MODEL], max(1, batch // mesh.shape[DATA])
    weight = jax.tree.leaves(params)[0].dtype.itemsize
    gathered = device_bytes(params["embed_tokens"]) if "lm_head" in params else 0  # tied: the LM head reads all of it
    kv_heads = config.num_kv_heads // (count if config.num_kv_heads % count == 0 else 1)
    cache = config.num_layers * 2 * rows * slots * kv_heads * config.head_dim * weight
    sums = 2 * config.num_layers + 1 if count > 1 else 0
    sent = sums * 2 * (count - 1) / count * rows * config.width * weight
    return Work(device_bytes(params) - gathered + cache, sent, sums)
