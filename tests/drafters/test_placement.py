"""Where a draft head is to be: bytes and collectives counted by hand, and what follows for published shapes."""

import dataclasses
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType

from configs.targets.shapes import get_target, head_of
from eagle_jax.accelerators import GPUS, TPUS, Chip, chip_of, links_between, links_of
from eagle_jax.drafters import Drafter, make_eagle1, make_eagle2, make_eagle3, make_one_pass
from eagle_jax.drafters.placement import GATHERS, SEARCH, Placement, Work, draft_work, place_head
from eagle_jax.models.block_head import BlockHead, make_any_head
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.models.transformer import make_target
from eagle_jax.sharding import DATA, MODEL, make_mesh

TINY = ModelConfig(
    vocab_size=512,
    width=64,
    mlp_width=96,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    max_positions=256,
    norm_eps=1e-5,
    rope_theta=10000.0,
)
MAKE = {"eagle": make_eagle2, "eagle3": make_eagle3, "one_pass": make_one_pass}


class Drafting(NamedTuple):
    """A head, its shapes in bfloat16, and what drafts with it."""

    head: Any  # Head | BlockHead
    params: HeadParams
    drafter: Drafter


def drafting(kind: str, target: ModelConfig, rows: int | None, *sizes: int) -> Drafting:
    """With an LM head of so many rows, or the target's."""
    head: Head | BlockHead = make_any_head(head_of(kind, target), make_target(target))
    weights: Any = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16),
        nn.unbox(jax.eval_shape(head.init, jax.random.key(0))),
    )
    lm_head: Any = None if rows is None else jax.ShapeDtypeStruct((rows, target.width), jnp.bfloat16)
    return Drafting(head, HeadParams(weights, lm_head), MAKE[kind](head, *sizes))


def mesh_of(data: int, model: int) -> AbstractMesh:
    return AbstractMesh((data, model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def placed(target: str, kind: str, layout: tuple[int, ...], *, batch: int = 1, depth: int = 7) -> Placement:
    """Of a published shape, 32,000 rows in its LM head, on a slice of v5e chips."""
    made = drafting(kind, get_target(target), 32000, 60, depth, 10)
    mesh = mesh_of(1, layout[0] * layout[1])
    return place_head(*made, mesh, chip=TPUS["v5e"], links=links_of(layout), batch=batch, slots=2048)


FC, NORMS = 2 * 192 * 64, 2 * 4 * 64
LAYER = 2 * (128 * 64 + 2 * 128 * 32 + 64 * 64 + 3 * 64 * 96)  # without its norms
ROW = 2 * 64  # one state
SLOTS = 128


@pytest.mark.parametrize(("data", "model", "batch"), [(1, 4, 1), (2, 4, 2), (2, 4, 6)])
def test_replicated_by_hand(data: int, model: int, batch: int) -> None:
    """Two levels: the layer once to observe and once to draft, the LM head twice, `fc` once; embeddings are sent."""
    rows = batch // data
    cache, lm_head = 2 * 2 * rows * SLOTS * 4 * 8, 2 * 512 * 64
    read = FC + 2 * (LAYER + NORMS + cache) + 2 * lm_head
    embedded = rows * (3 + 3)  # the path that observing reads, and the three nodes of level 1
    sent = 2 * (model - 1) / model * embedded * ROW
    made = drafting("eagle3", TINY, 512, 6, 1, 3)
    assert draft_work(*made, mesh_of(data, model), split=False, batch=batch, slots=SLOTS) == Work(read, sent, 2)


@pytest.mark.parametrize(("data", "model", "batch"), [(1, 4, 1), (2, 4, 2), (2, 4, 6)])
def test_split_by_hand(data: int, model: int, batch: int) -> None:
    """A part of all but `fc` and norms; also two sums a pass, and the scores of the root and of three nodes."""
    rows = batch // data
    cache, lm_head = 2 * 2 * rows * SLOTS * 4 * 8 // model, 2 * 512 * 64 // model
    read = FC + 2 * (LAYER // model + NORMS + cache) + 2 * lm_head
    states = 3 * rows * (3 + 3)  # an embedding and two sums
    sent = (model - 1) / model * (2 * states * ROW + GATHERS * 4 * rows * (1 + 3) * 512)
    made = drafting("eagle3", TINY, 512, 6, 1, 3)
    work = draft_work(*made, mesh_of(data, model), split=True, batch=batch, slots=SLOTS)
    assert work == Work(read, pytest.approx(sent), 2 * 3 + 2 * SEARCH)


def test_what_does_not_divide_stays_whole() -> None:
    """Eight devices, four key/value heads: each has all of these and of the cache; 250 rows have no eighth."""
    made = drafting("eagle3", TINY, 250, 6, 1, 3)
    work = draft_work(*made, mesh_of(1, 8), split=True, slots=SLOTS)
    layer = 2 * (128 * 64 + 64 * 64 + 3 * 64 * 96) // 8 + 2 * 2 * 128 * 32
    cache, lm_head = 2 * 2 * SLOTS * 4 * 8, 2 * 250 * 64
    assert work.read == FC + 2 * (layer + NORMS + cache) + 2 * lm_head
    assert work.collectives == 2 * 3


def test_one_pass_by_hand() -> None:
    """Three layers once, whatever the depth; of them keys and values once more, of what was accepted."""
    attention, mlp = 2 * (2 * 64 * 64 + 2 * 64 * 32), 2 * 3 * 64 * 96
    norms, mask = 2 * (3 * 2 + 2) * 64, 2 * 64
    lm_head, cache = 2 * 512 * 64, 3 * 2 * 2 * SLOTS * 4 * 8
    read = FC + 3 * (attention + mlp + 2 * 2 * 64 * 32) + norms + mask + lm_head + cache
    shallow, deep = (drafting("one_pass", TINY, 512, 6, depth, 3) for depth in (1, 7))
    for made in (shallow, deep):
        assert draft_work(*made, mesh_of(1, 4), split=False, slots=SLOTS) == Work(read, 2 * 3 / 4 * ROW, 1)
    assert draft_work(*deep, mesh_of(1, 4), split=True).collectives == 1 + 3 * 2 + SEARCH


def test_an_lm_head_of_the_target_is_split_with_it() -> None:
    """Wherever the head is: its scores are sent in any case."""
    made = drafting("eagle", TINY, None, 6, 1, 3)
    whole, parts = (draft_work(*made, mesh_of(1, 4), split=split) for split in (False, True))
    assert whole.collectives == 2 + 2 * SEARCH
    assert parts.collectives == 2 * 3 + 2 * SEARCH
    assert whole.read - parts.read == 3 / 4 * 2 * (2 * (2 * 64 * 64 + 2 * 64 * 32) + 2 * 3 * 64 * 96)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_each_level_costs_more(kind: str, split: bool) -> None:
    target = get_target("llama3-8b")
    works = [
        draft_work(*drafting(kind, target, 32000, 60, depth, 10), mesh_of(1, 4), split=split, slots=2048)
        for depth in range(1, 8)
    ]
    for less, more in itertools.pairwise(works):
        assert all(a < b for a, b in zip(less, more, strict=True))
        assert less.seconds(TPUS["v5e"], 2) < more.seconds(TPUS["v5e"], 2)


def test_seconds() -> None:
    chip = Chip(flops=1.0, hbm=1.0, bandwidth=100.0, link=10.0, latency=0.5)
    assert Work(200, 60, 5).seconds(chip, 3) == pytest.approx(2 + 2 + 5 * 0.5)
    assert Work(200, 0, 0).seconds(chip, 0) == 2


@pytest.mark.parametrize(
    ("target", "kind", "batch", "split"),
    [
        ("llama3-8b", "eagle3", 1, True),
        ("llama3-8b", "one_pass", 1, True),
        ("vicuna-13b", "eagle", 1, True),
        ("llama3-8b", "eagle3", 64, False),  # the scores of 64 trees
        ("smollm2-135m", "eagle3", 1, False),  # read in less time than collectives take
    ],
)
def test_published_shapes_on_four_chips(target: str, kind: str, batch: int, split: bool) -> None:
    found = placed(target, kind, (2, 2), batch=batch)
    assert found.split == split
    assert found.reason.startswith(f"head {'split' if split else 'replicated'}: drafting takes at least ")
    assert found.reason.count("\n") == 0


def test_gpus_wait_longer_for_each_other() -> None:
    """Of eight GPUs each reads the head of an 8B target in less time than 216 collectives take, not of a 70B one."""
    for target, split in (("llama3-8b", False), ("llama3-70b", True)):
        made = drafting("eagle3", get_target(target), 32000, 60, 7, 10)
        assert place_head(*made, mesh_of(1, 8), chip=GPUS["h200"], links=1).split == split


def test_a_deeper_tree_saves_more() -> None:
    """Of a large head each level more is one more reason to split it."""
    target, mesh = get_target("llama3-8b"), mesh_of(1, 4)
    saved = []
    for depth in range(1, 8):
        made = drafting("eagle3", target, 32000, 60, depth, 10)
        whole, parts = (draft_work(*made, mesh, split=split).seconds(TPUS["v5e"], 2) for split in (False, True))
        saved.append(whole - parts)
    assert saved == sorted(saved)
    assert saved[0] > 0


def test_one_device_replicates() -> None:
    found = placed("llama3-8b", "eagle3", (1, 1))
    assert found == Placement(False, "head replicated: one device has all of the target's weights")
    rows = drafting("eagle3", TINY, 512, 6, 1, 3)
    assert not place_head(*rows, mesh_of(8, 1), chip=TPUS["v5e"]).split


def test_devices_that_are_not_known() -> None:
    made = drafting("eagle3", TINY, 512, 6, 1, 3)
    assert place_head(*made, make_mesh(1, 8)).reason == "head replicated: bandwidths of cpu are not known"
    assert not place_head(*made, mesh_of(1, 8)).split


def test_the_mesh_says_what_it_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices of which jax says that they are TPUs."""
    made, mesh = drafting("eagle3", get_target("llama3-8b"), 32000, 60, 7, 10), make_mesh(1, 8)
    monkeypatch.setattr("eagle_jax.drafters.placement.chip_of", lambda device: TPUS["v5e"])
    monkeypatch.setattr("eagle_jax.drafters.placement.links_between", lambda devices: 2)
    assert place_head(*made, mesh) == place_head(*made, mesh_of(1, 8), chip=TPUS["v5e"], links=2)
    assert place_head(*made, mesh).split


@dataclasses.dataclass
class Device:
    device_kind: str
    coords: list[int] | None = None


@pytest.mark.parametrize(
    ("kind", "name"),
    [("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e")],
)
def test_kinds_of_tpus(kind: str, name: str) -> None:
    assert chip_of(Device(kind)) is TPUS[name]  # type: ignore[arg-type]


def test_other_kinds() -> None:
    h100, h200 = (chip_of(Device(kind)) for kind in ("NVIDIA H100 80GB HBM3", "NVIDIA H200"))  # type: ignore[arg-type]
    assert h100 is not None
    assert h200 is not None
    assert h100.bandwidth < h200.bandwidth
    assert chip_of(Device("cpu")) is None  # type: ignore[arg-type]
    assert chip_of(jax.devices()[0]) is None


@pytest.mark.parametrize(
    ("sizes", "links"),
    [((1, 1, 1), 1), ((2, 2, 1), 2), ((2, 4, 1), 2), ((2, 2, 2), 3), ((4, 4, 4), 6), ((16, 16, 1), 4)],
)
def test_links_by_coordinates(sizes: tuple[int, int, int], links: int) -> None:
    places = [[x, y, z] for x in range(sizes[0]) for y in range(sizes[1]) for z in range(sizes[2])]
    assert links_between([Device("TPU", place) for place in places]) == links  # type: ignore[misc]
    assert links_between(jax.devices()) == 1


def test_static_trees() -> None:
    head = drafting("eagle", TINY, None, 6, 1, 3)
    drafter = make_eagle1(head.head)
    work = draft_work(head.head, head.params, drafter, mesh_of(1, 4), split=True)
    assert work.collectives == drafter.max_depth * (3 + SEARCH)
