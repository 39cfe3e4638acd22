"""EAGLE-2 without its parts: values, re-ranking, both (arXiv 2406.16858, table 3).

    python -m experiments.sweep --config=configs/ablations/eagle2_parts.py --data=DIRECTORY --output=sweeps/eagle2_parts

Without values, nodes are expanded by their own confidence and selected by the lowest on their path, instead of the
product along it. Without re-ranking, the tree holds the k nodes that expansion picked at each level, as deep as they
go. The paper reports that both parts raise speed-up and tau.
"""

from collections.abc import Callable

import ml_collections

from configs.ablations import tree_sizes


def get_config() -> ml_collections.ConfigDict:
    """The published tree; the head of EAGLE-1/2."""
    config = tree_sizes.get_config()
    config.method.method = "eagle2"
    return config


def sweep(add: Callable[..., None]) -> None:
    """All four."""
    add(label="EAGLE-2")
    add(label="without value", **{"method.use_value": False})
    add(label="without re-ranking", **{"method.reranks": False})
    add(label="without both", **{"method.use_value": False, "method.reranks": False})
