"""Whether a draft head is replicated over a mesh or split as its target is: what takes a device less time, by a bound.

Drafting is a chain, in which every level waits for the one before it. So what a device does in a round adds up:

    seconds = bytes read / bandwidth of its memory + bytes sent / bandwidth of its links + collectives * latency

                replicated                              split over n devices
    reads       the layer and the LM head, in full,     a part of each
                level after level
    sends       embeddings of a level's nodes           also the sums of each layer (arXiv 1909.08053, section 3), and
                                                        the scores of the draft vocabulary

A large head is better split, a small one replicated, and so is any head if many rows decode, whose scores are sent. The
counts are those of programs that the TPU compiler has made (docs/scaling.md); nothing here has been measured.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh, Mesh

from eagle_jax import sharding
from eagle_jax.accelerators import Chip, chip_of, links_between
from eagle_jax.drafters.base import Drafter
from eagle_jax.models.block_head import BlockHead
from eagle_jax.models.draft_head import Head, HeadConfig, HeadParams, head_kind

SEARCH = 17
"""Collectives that find the best children of a level's nodes among scores that are split: 17 with libtpu 0.0.50.1, 24
with 0.0.42.1."""

GATHERS = 3
"""How often these scores are sent, in float32: 3 times with libtpu 0.0.50.1, twice with 0.0.42.1."""


class HeadBytes(NamedTuple):
    """Of the parts of a head, on one device."""

    weights: int  # read in every pass; without the tables of edges, whose rows are gathered
    fusion: int  # of these, what fuses the target's features once a round
    context: int  # of these, what makes keys and values of the context; 0 for heads that draft token by token
    lm_head: int  # its own or the target's
    cache: int


class Work(NamedTuple):
    """What a device does in a round to draft and to observe."""

    read: float  # bytes
    sent: float  # bytes
    collectives: int

    def seconds(self, chip: Chip, links: int) -> float:
        """The bound of this module's docstring."""
        return self.read / chip.bandwidth + self.sent / (chip.link * max(links, 1)) + self.collectives * chip.latency


class Placement(NamedTuple):
    """Where a head is to be, and why."""

    split: bool  # over the axis `model`; else replicated
    reason: str  # one line


def place_head(
    head: Head | BlockHead,
    params: HeadParams,
    drafter: Drafter,
    mesh: Mesh | AbstractMesh,
    *,
    chip: Chip | None = None,
    links: int | None = None,
    batch: int = 1,
    slots: int = 0,
) -> Placement:
    """Whether to split a head.

    Args:
      head: the head as functions.
      params: its weights, or their shapes.
      drafter: what drafts with it, for the size of the tree.
      mesh: the devices.
      chip: their peak numbers; left out, those of the mesh's first device. Where they are not known a head is
        replicated.
      links: of a chip, for collectives; left out, by the coordinates of the devices.
      batch: rows that decode together.
      slots: of the head's cache, which is read in full.
    """
    count = mesh.shape[sharding.MODEL]
    if count == 1:
        return Placement(False, "head replicated: one device has all of the target's weights")
    if isinstance(mesh, Mesh):
        devices = list(mesh.devices.flat)
        chip = chip or chip_of(devices[0])
        links = links_between(devices) if links is None else links
        kind = devices[0].device_kind
    else:
        kind = "no device"
    if chip is None:
        return Placement(False, f"head replicated: bandwidths of {kind} are not known")
    full, parts = (
        draft_work(head, params, drafter, mesh, split=split, batch=batch, slots=slots).seconds(chip, links or 1)
        for split in (False, True)
    )
    split = parts < full
    times = f"drafting takes at least {1e3 * parts:.2f} ms with its head split over {count} devices"
    return Placement(
        split, f"head {'split' if split else 'replicated'}: {times}, {1e3 * full:.2f} with all of it on each"
    )


def draft_work(
    head: Head | BlockHead,
    params: HeadParams,
    drafter: Drafter,
    mesh: Mesh | AbstractMesh,
    *,
    split: bool,
    batch: int = 1,
    slots: int = 0,
) -> Work:
    """What a device of a mesh reads and sends in a round; arguments as of `place_head`."""
    config, count = head.config, mesh.shape[sharding.MODEL]
    layer, rows = config.layer, max(1, batch // mesh.shape[sharding.DATA])
    places = sharding.head_shardings(mesh, head, params, split=split)
    placed: Any = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params, places)
    bytes_each = jax.tree.leaves(params.weights)[0].dtype.itemsize
    vocab_split = layer.vocab_size % count == 0
    own = placed.lm_head
    scored = layer.vocab_size if own is None else own.shape[0]
    lm_head = sharding.device_bytes(own)
    if own is None:
        lm_head = layer.vocab_size * layer.width * bytes_each // (count if vocab_split else 1)
    kv_heads = layer.num_kv_heads // (count if split and layer.num_kv_heads % count == 0 else 1)
    cache = config.num_layers * 2 * rows * slots * kv_heads * layer.head_dim * bytes_each
    read = bytes_read(config, head_bytes(config, placed, lm_head, cache), drafter.max_depth)

    sums = _split_sums(placed.weights)
    scores_split = vocab_split if own is None else sharding.device_bytes(own) * count == own.size * own.dtype.itemsize
    share = (count - 1) / count
    sent, collectives = 0.0, 0
    for embedded, fed, read_out in passes(config, drafter):
        if embedded and vocab_split:
            sent += 2 * share * rows * embedded * layer.width * bytes_each
            collectives += 1
        if fed:
            sent += sums * 2 * share * rows * fed * layer.width * bytes_each
            collectives += sums
        if read_out and scores_split:
            sent += GATHERS * share * rows * read_out * scored * 4
            collectives += SEARCH
    return Work(sum(read), sent, collectives)


def passes(config: HeadConfig, drafter: Drafter) -> list[tuple[int, int, int]]:
    """Tokens embedded, fed to the layers and scored in each pass of a round, that of observing included."""
    if head_kind(config.kind).drafts_blocks:
        return [(1, config.block, config.num_drafted)]
    levels = drafter.max_depth
    width = max(drafter.top_k, math.ceil((drafter.nodes - 1) / levels))
    return [(levels + 1, levels + 1, 0), (0, 0, 1), *[(width, width, width)] * (levels - 1)]


def head_bytes(config: HeadConfig, params: HeadParams, lm_head: int, cache: int) -> HeadBytes:
    """Of one device; `params` has arrays or shapes with shardings, `lm_head` and `cache` are bytes."""
    what, weights = head_kind(config.kind), params.weights
    context = 0
    if what.drafts_blocks:
        attention = [weights[name]["self_attn"] for name in config.layer_names]
        context = sharding.device_bytes([[own["k_proj"], own["v_proj"]] for own in attention])
    return HeadBytes(
        weights=sharding.device_bytes(weights) - sharding.device_bytes(weights.get("edges", ())),
        fusion=sharding.device_bytes(weights["fc"]) if what.fuses_once else 0,
        context=context,
        lm_head=lm_head,
        cache=cache,
    )


def bytes_read(config: HeadConfig, held: HeadBytes, levels: int) -> tuple[int, int]:
    """Bytes that a device reads in a round, to observe and to draft `levels` of a tree."""
    if head_kind(config.kind).drafts_blocks:  # one pass; what was accepted becomes keys and values only
        return held.fusion + held.context, held.weights - held.fusion + held.cache + held.lm_head
    # The layer is read at every level but the last and once more to observe, where what fuses once is read too.
    layer = held.weights - held.fusion + held.cache
    return held.weights + held.cache, (levels - 1) * layer + levels * held.lm_head


def _split_sums(weights: Any) -> int:
    """Products with weights of which each device has a part of the inputs: one sum each, in a pass over all layers."""
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    return sum(
        sharding.MODEL in leaf.sharding.spec
        for path, leaf in leaves
        if any(f"'{name}'" in jax.tree_util.keystr(path) for name in ("o_proj", "down_proj")) and leaf.ndim > 1
    )
