"""What the parts of a one-pass tree bring: nodes, edges, and each level of shared noise.

    python -m experiments.sweep --config=configs/ablations/one_pass.py --data=DIRECTORY --output=sweeps/one_pass \
        --mode=teacher_forced

Needs the head `one_pass` for the target, or another by --config.method.head. Plain: the drafter sees no noise, as
published drafters. Without edges all nodes of a depth have the same children (DDTree, arXiv 2604.12989), and
predecessors decide nothing, so noise has the levels 0 and 1 only. At T = 0 there is no noise. A chain has 8 drafted
tokens.
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from configs.ablations import tree_sizes

NODES = (8, 16, 32, 64)


def get_config() -> ml_collections.ConfigDict:
    """The method with its default tree, greedy and at T = 1."""
    config = tree_sizes.get_config()
    config.method = {"method": "one_pass"}
    return config


def sweep(add: Callable[..., None]) -> None:
    """From the plainest draft to the complete one, by size."""
    chain: dict[str, Any] = {"method.nodes": 9, "method.depth": 7, "method.top_k": 1}
    _with_noise(add, "chain", chain, levels=(2,))
    for nodes in NODES:
        tree: dict[str, Any] = {"method.nodes": nodes, "method.depth": 7, "method.top_k": 8}
        _with_noise(add, f"no edges, {nodes} nodes", {**tree, "method.edges": False}, levels=(0, 1))
        _with_noise(add, f"edges, {nodes} nodes", tree, levels=(0, 1, 2))
    for predecessors in (8, 16, 64):  # 32 above; with 64, the complete shortlist, levels 1 and 2 are one
        more: dict[str, Any] = {"method.nodes": 32, "method.depth": 7, "method.top_k": 8}
        add(label=f"edges, 32 nodes, {predecessors} predecessors", **more, **{"method.predecessors": predecessors})


def _with_noise(add: Callable[..., None], name: str, draft: dict[str, Any], levels: tuple[int, ...]) -> None:
    """A draft that sees no noise, at all temperatures, and with noise where there is some."""
    add(label=f"{name}, plain", **draft, **{"method.share_noise": False})
    for level in levels:
        noise = {"method.noise_level": level, "method.temperatures": (1.0,)}
        add(label=f"{name}, noise level {level}", **draft, **noise)
