"""What of EAGLE-3's training matters: unrolled steps, where the head starts, the LM head, the optimizer.

    python -m experiments.sweep --config=configs/ablations/eagle3_training.py --data=DIRECTORY --answers=answers.jsonl \
        --features=DIRECTORY --output=sweeps/eagle3_training

Every point trains a head from scratch for as many steps as the others, at most ten minutes at a time; the same command
goes on with those that were not finished. One step is EAGLE's own way of training without its feature loss: the head
never sees its own output (arXiv 2503.01840, section 3.2 and figure 4).
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from configs.ablations import tree_sizes

STEPS = (1, 3, 5, 7)
VARIANTS: dict[str, dict[str, Any]] = {
    "random start": {"train.start.copy_layer": False, "train.start.scale_features": False},
    "LM head trained": {"train.recipe.train_lm_head": True},
    "normalised taps": {"train.head.fc_norm": True},
    "AdamW": {"train.optimizer.name": "adamw", "train.optimizer.learning_rate": 1e-3},
}


def get_config() -> ml_collections.ConfigDict:
    """A short training, then the small tree."""
    config = tree_sizes.get_config()
    config.method = {"method": "eagle3", "nodes": 16, "depth": 5, "top_k": 4}
    config.train = {
        "config": "configs/train/eagle3_smollm2.py",
        "time_limit": 600.0,  # seconds a visit
        "fields": {"epochs": 0.5},
    }
    return config


def sweep(add: Callable[..., None]) -> None:
    """A head each."""
    for steps in STEPS:
        add(label=f"{steps} unrolled steps", **{"train.recipe.num_steps": steps})
    for label, changes in VARIANTS.items():
        add(label=f"3 unrolled steps, {label}", **{"train.recipe.num_steps": 3, **changes})
