"""How large a tree pays: nodes x depth x top-k of EAGLE-3's dynamic tree.

    python -m experiments.sweep --config=configs/ablations/tree_sizes.py --data=DIRECTORY --output=sweeps/tree_sizes

tau grows with the tree, and so does what a round costs; where the speed-up is highest depends on the machine. The
published tree is (60, 7, 10); chains are trees of top-k 1.
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from configs.eval import heads

SIZES = (
    *((3, 1, 1), (5, 3, 1), (8, 6, 1)),  # chains
    *((8, 2, 4), (8, 5, 4), (16, 3, 4), (16, 5, 4), (16, 7, 4)),
    *((32, 5, 4), (32, 5, 8), (32, 7, 8)),
    *((60, 5, 10), (60, 7, 10), (120, 7, 10)),
)


def get_config() -> ml_collections.ConfigDict:
    """One method, and the tasks."""
    config = heads.get_config("eagle3")
    del config.methods
    config.method = {"method": "eagle3", "nodes": 60, "depth": 7, "top_k": 10}
    config.tasks = ("mt_bench", "gsm8k")
    config.num_prompts = 10
    config.temperatures = (0.0, 1.0)
    return config


def sweep(add: Callable[..., None]) -> None:
    """All sizes."""
    for nodes, depth, top_k in SIZES:
        sizes: dict[str, Any] = {"method.nodes": nodes, "method.depth": depth, "method.top_k": top_k}
        add(label=f"{nodes} nodes, depth {depth}, top-k {top_k}", **sizes)
