"""How often a head has to be fed its own output while it is trained: 1, 3, 5 and 7 unrolled steps.

    python -m experiments.sweep --config=configs/ablations/unrolled_steps.py --data=DIRECTORY --answers=answers.jsonl \
        --features=DIRECTORY --output=sweeps/unrolled_steps --mode=teacher_forced

One step is EAGLE's own way of training without its feature loss: the head never sees its own output, and in the paper
1-alpha falls to a quarter (arXiv 2503.01840, section 3.2 and figure 4); its code has 7. All heads see the same tokens,
equally often. Expected on two CPU cores with nothing else to do: 2 to 8 minutes of training a point and 2 of measuring,
half an hour in all.
"""

from collections.abc import Callable

import ml_collections

from configs.ablations import eagle3_training

STEPS = 75
"""Optimizer steps: as many as 7 unrolled steps allow within ten minutes."""

UNROLLED = (1, 7, 3, 5)
"""The ends first."""


def get_config() -> ml_collections.ConfigDict:
    """A training that is shorter still."""
    config = eagle3_training.get_config()
    config.train.fields.steps = STEPS
    return config


def sweep(add: Callable[..., None]) -> None:
    """A head each."""
    for steps in UNROLLED:
        add(label=f"{steps} unrolled step{'s' * (steps > 1)}", **{"train.recipe.num_steps": steps})
