"""What of a one-pass head matters: layers, slots of its block, edges, where it starts.

    python -m experiments.sweep --config=configs/ablations/one_pass_training.py --data=DIRECTORY \
        --answers=answers.jsonl --features=DIRECTORY --output=sweeps/one_pass_training --mode=teacher_forced

Every point trains a head, 150 steps, then measures tau of its tree of 16 nodes; the same command continues with those
that were not finished. A block of 4 gives a tree of 4 levels. Expected of one CPU core by the time of a step in
configs/train/one_pass_smollm2.py: up to 20 minutes of training a point; not run yet.
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from configs.ablations import eagle3_training

VARIANTS: dict[str, dict[str, Any]] = {
    "3 layers, block of 8, edges of rank 64": {},
    "no edges": {"train.head.edge_rank": 0},
    "1 layer": {"train.head.num_layers": 1},
    "2 layers": {"train.head.num_layers": 2},
    "block of 4": {"train.head.block": 4, "method.depth": 3},
    "edges of rank 256": {"train.head.edge_rank": 256},
    "context not joined": {"train.head.joins_context": False},
    "random start": {"train.start.copy_layer": False, "train.start.scale_features": False},
    "no loss on logits without edges": {"train.recipe.base_weight": 0.0},
    "LM head of all tokens": {"train.head.draft_vocab_size": 0},
}
"""By label, the most telling first."""


def get_config() -> ml_collections.ConfigDict:
    """The tasks and steps of `eagle3_training`, so that heads of both kinds can be compared."""
    config = eagle3_training.get_config()
    config.method = {"method": "one_pass", "nodes": 16, "depth": 7, "top_k": 8}
    config.train.config = "configs/train/one_pass_smollm2.py"
    return config


def sweep(add: Callable[..., None]) -> None:
    """A head each."""
    for label, changes in VARIANTS.items():
        add(label=label, **changes)
