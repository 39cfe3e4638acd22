"""One head, three trees: a chain, EAGLE's static tree, and EAGLE-2's dynamic tree of the same number of nodes.

    python -m experiments.sweep --config=configs/ablations/static_vs_dynamic.py --data=DIRECTORY --output=sweeps/dynamic

The static tree has 26 nodes, five levels below the root (arXiv 2401.15077, appendix A).
"""

from collections.abc import Callable

import ml_collections

from configs.ablations import tree_sizes


def get_config() -> ml_collections.ConfigDict:
    """The head of EAGLE-1/2 with its static tree."""
    config = tree_sizes.get_config()
    config.method = {"method": "eagle"}
    return config


def sweep(add: Callable[..., None]) -> None:
    """From the plainest to the largest."""

    def dynamic(nodes: int, depth: int, top_k: int) -> dict[str, object]:
        return {"method.method": "eagle2", "method.nodes": nodes, "method.depth": depth, "method.top_k": top_k}

    add(label="chain, 6 nodes", **dynamic(6, 4, 1))
    add(label="static, 26 nodes")
    add(label="dynamic, 26 nodes", **dynamic(26, 4, 4))
    add(label="dynamic, 26 nodes, deeper", **dynamic(26, 7, 10))
    add(label="dynamic, 60 nodes", **dynamic(60, 7, 10))
