"""What the drafter gains from seeing the target's noise, at three temperatures.

    python -m experiments.sweep --config=configs/ablations/noise.py --data=DIRECTORY --output=sweeps/noise

With --mode=teacher_forced all but the three points with residual are measured in minutes; those write texts of their
own, which takes two cores ten minutes each.

Shared: children are the best by draft logit plus the target's own noise. Plain top-k: the papers' drafting. Both write
the same text. Residual: children are drawn with noise of the drafter's own and accepted with min(1, p/q), which needs
a tree from which no child is dropped: EAGLE's static one, on which all three are compared, as on the chain of a draft
model. The dynamic tree for it has two children a node, of which one is drawn (RheoSampling, arXiv 2609.21827).
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from configs.ablations import tree_sizes

DRAFTS: dict[str, dict[str, Any]] = {
    "dynamic tree": {"method.method": "eagle3", "method.nodes": 60, "method.depth": 7, "method.top_k": 10},
    "static tree": {"method.method": "eagle"},
    "chain, distilled": {"method.method": "chain", "method.draft": "distilled", "method.depth": 4},
}


def get_config() -> ml_collections.ConfigDict:
    """Temperatures above 0: at 0 there is no noise."""
    config = tree_sizes.get_config()
    config.method = {"method": "eagle3"}
    config.temperatures = (0.3, 0.7, 1.0)
    return config


def sweep(add: Callable[..., None]) -> None:
    """Every draft with every kind of noise that is exact for it."""
    for name, draft in DRAFTS.items():
        add(label=f"{name}, shared noise", **draft)
        add(label=f"{name}, plain top-k", **draft, **{"method.share_noise": False})
        residual = {"method.share_noise": False, "method.rule": "residual"}
        if draft["method.method"] == "eagle3":
            residual["method.draws"] = True  # re-ranking would drop children of a sample without replacement
        add(label=f"{name}, residual", **draft, **residual)
