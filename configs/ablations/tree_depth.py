"""What depth and a small draft vocabulary cost in tau: each level reads the head's layer and its LM head once more.

    python -m experiments.sweep --config=configs/ablations/tree_depth.py --data=DIRECTORY --output=sweeps/tree_depth \
        --mode=teacher_forced

The published depth is 7; docs/scaling.md has what a level costs on an accelerator. Defaults are not chosen on prompts
that results are reported on: these are ten prompts each of two files of training prompts, none of which the head has
seen, as DIRECTORY/NAME/question.jsonl.
"""

from collections.abc import Callable

import ml_collections

from configs.ablations import tree_sizes

POINTS = ((7, 8192), (5, 8192), (4, 8192), (3, 8192), (4, 4096))
"""Depth and draft vocabulary; the head that ships was trained with 8,192 tokens."""


def get_config() -> ml_collections.ConfigDict:
    """EAGLE-3 with 60 nodes and ten children a node."""
    config = tree_sizes.get_config()
    config.tasks = ("dolly_15k", "gsm8k_train")
    return config


def sweep(add: Callable[..., None]) -> None:
    """From deep to shallow."""
    for depth, size in POINTS:
        add(label=f"depth {depth}, {size:,} tokens", **{"method.depth": depth, "method.draft_vocab": size})
