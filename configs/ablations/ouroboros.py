"""Ouroboros beside the chain of its own draft model (arXiv 2402.13720): drafts and phrases of several lengths.

    python -m experiments.sweep --config=configs/ablations/ouroboros.py --data=DIRECTORY --output=sweeps/ouroboros

Phrases follow the last token of the draft, so they count only in rounds in which the target accepts all of it: a draft
model that is right less often than the authors' needs a shorter draft. The authors draft 6 tokens for Spec-Bench and 4
to 12 elsewhere, with phrases of 4 tokens (5 or 6 elsewhere) and up to 15 phrases a token; their pool goes on from one
request to the next, here it begins with the prompt. T = 0, batches of ten: tau alone means something.
"""

from collections.abc import Callable

import ml_collections

from configs.eval import field

DRAFTED = (1, 2, 3, 4, 6)


def get_config() -> ml_collections.ConfigDict:
    """Ten prompts of each task, batches of ten."""
    config = field.get_config("ouroboros")
    del config.methods
    config.temperatures = (0.0,)
    config.turns = "first"
    config.batch = 10
    config.warm_ups = 0
    config.method = {"method": "ouroboros", "draft": "distilled"}
    return config


def sweep(add: Callable[..., None]) -> None:
    """Pairs of a draft alone and with phrases, then the authors' number of phrases."""
    for drafted in DRAFTED:
        add(label=f"chain of {drafted}", **{"method.method": "chain", "method.depth": drafted - 1})
        add(label=f"{drafted} and phrases", **{"method.num_drafted": drafted})
    for drafted in (2, 6):
        many = {"method.num_drafted": drafted, "method.phrases": 15, "method.draft_phrases": 15}
        add(label=f"{drafted} and 15 phrases", **many)
