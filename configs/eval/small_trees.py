"""Trees small enough for a machine that computes a token for what reading the weights costs: what pays on a CPU?

    python -m experiments.evaluate --config=configs/eval/small_trees.py --data=DIRECTORY --output=small_trees.jsonl

EAGLE-3 on 24 prompts of MT-bench at T = 0, first turns. A pass over 2 tokens costs 1.3 times one over 1 on two cores,
over 8 tokens 1.6 times, so a tree has to bring that many tokens a round before anything is won. The last entry is what
`experiments.generate` does when nothing is asked for.
"""

import ml_collections

from configs.eval import heads

SIZES = ((2, 0, 1), (3, 1, 1), (4, 1, 2), (6, 2, 2), (8, 2, 3), (16, 5, 4))
"""Nodes, depth, top-k."""


def get_config() -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.num_prompts=80."""
    config = heads.get_config("eagle3")
    config.tasks = ("mt_bench",)
    config.num_prompts = 24
    config.temperatures = (0.0,)
    config.methods = [
        {"label": f"{nodes}, {depth}, {top_k}", "method": "eagle3", "nodes": nodes, "depth": depth, "top_k": top_k}
        for nodes, depth, top_k in SIZES
    ]
    config.methods += [{"label": "default, given up where it does not pay", "method": "eagle3", "give_up": True}]
    return config
