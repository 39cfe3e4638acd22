"""What of EAGLE-3's training matters: fused layers, losses, more text, where the head starts, the optimizer.

    python -m experiments.sweep --config=configs/ablations/eagle3_training.py --data=DIRECTORY --answers=answers.jsonl \
        --features=DIRECTORY --output=sweeps/eagle3_training --mode=teacher_forced

Every point trains a head from scratch, 150 steps of 3 unrolled ones unless its label says otherwise, then measures tau;
the same command continues with those that were not finished. The paper's own ablation (arXiv 2503.01840, LLaMA-3.1-8B,
MT-bench, T = 0): without the feature loss tau rises from 4.05 to 5.37, with three layers fused to 6.13.
Expected on two CPU cores with nothing else to do: 8 minutes of training a point and 2 of measuring, two hours in all.

The amount of text is varied in two ways. "As many steps": all heads see as many tokens, less text is repeated more
often (an eighth 5.6 times); this measures the value of fresh text. "As many passes": training ends sooner on less text,
as on the paper's axis. Either way the draft vocabulary is counted on the text that is used.
"""

from collections.abc import Callable
from typing import Any

import ml_collections

from configs.ablations import tree_sizes

STEPS = 150
"""Optimizer steps: two thirds of a pass over 2,000 answers."""

SHARES = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5}

TOP = {"train.head.taps": (-1,)}
EAGLES_LOSS = {"train.recipe.feature_weight": 10.0}

VARIANTS: dict[str, dict[str, Any]] = {
    "3 layers fused": {},
    "top layer alone": TOP,
    "feature loss as heavy as EAGLE's": EAGLES_LOSS,
    **{f"{text} of the text, as many steps": {"train.data.share": share} for text, share in SHARES.items()},
    "top layer alone, feature loss as heavy as EAGLE's": {**TOP, **EAGLES_LOSS},
    "random start": {"train.start.copy_layer": False, "train.start.scale_features": False},
    "LM head trained": {"train.recipe.train_lm_head": True},
    "normalised taps": {"train.head.fc_norm": True},
    "LK loss, mixed": {"train.recipe.objective": "lk_lambda"},
    "LK loss, logarithm": {"train.recipe.objective": "lk_alpha"},
    "AdamW": {"train.optimizer.name": "adamw", "train.optimizer.learning_rate": 1e-3},
    "feature loss as heavy as the tokens'": {"train.recipe.feature_weight": 1.0},
    **{
        f"{text} of the text, as many passes": {"train.data.share": share, "train.steps": round(share * STEPS)}
        for text, share in SHARES.items()
    },
}
"""By label, the most telling first."""


def get_config() -> ml_collections.ConfigDict:
    """A short training, then the small tree."""
    config = tree_sizes.get_config()
    config.method = {"method": "eagle3", "nodes": 16, "depth": 5, "top_k": 4}
    config.tasks = ("mt_bench", "gsm8k", "humaneval", "alpaca")
    config.num_prompts = 10
    config.train = {
        "config": "configs/train/eagle3_smollm2.py",
        "time_limit": 600.0,  # seconds a visit
        "fields": {"steps": STEPS},
    }
    return config


def sweep(add: Callable[..., None]) -> None:
    """A head each."""
    for label, changes in VARIANTS.items():
        add(label=label, **changes)
