"""How many tokens a head needs to be able to draft: a smaller LM head is faster and misses more.

    python -m experiments.sweep --config=configs/ablations/draft_vocab.py --data=DIRECTORY --output=sweeps/draft_vocab

Tokens are taken in the order in which the target's own answers use them. Needs a head that stores no LM head.
"""

from collections.abc import Callable

import ml_collections

from configs.ablations import tree_sizes

SIZES = {4096: "4,096", 8192: "8,192", 16384: "16,384", 0: "all"}


def get_config() -> ml_collections.ConfigDict:
    """EAGLE-3 with the published tree."""
    return tree_sizes.get_config()


def sweep(add: Callable[..., None]) -> None:
    """From few to all."""
    for size, text in SIZES.items():
        add(label=f"{text} tokens", **{"method.draft_vocab": size})
