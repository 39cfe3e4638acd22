"""Chains of the draft model that ships, timed: of two and four tokens, on its draft vocabulary and on all tokens.

    python -m experiments.evaluate --config=configs/eval/draft_models.py --data=DIRECTORY --output=draft_models.jsonl

Beside them EAGLE-2 with its default tree. The first four prompts of four tasks, first turns, 64 tokens, T = 0.
"""

import ml_collections

from configs.eval import field


def get_config() -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.num_prompts=10."""
    config = field.get_config("chain")
    config.tasks = ("mt_bench", "gsm8k", "humaneval", "alpaca")
    config.num_prompts = 4
    config.turns = "first"
    config.max_new_tokens = 64
    config.temperatures = (0.0,)
    config.warm_ups = 2
    chain = {"method": "chain", "draft": "distilled"}
    config.methods = [
        {**chain, "label": f"chain of {drafted}, {size or 'all'} tokens", "depth": drafted - 1, "draft_vocab": size}
        for drafted in (2, 4)
        for size in (8192, 0)
    ]
    config.methods.append({"method": "eagle2", "label": "eagle2, default"})
    return config
