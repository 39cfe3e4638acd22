"""Trees small enough for a CPU, where each further token of a pass costs time: which of them pay?

    python -m experiments.evaluate --config=configs/eval/small_trees.py --data=DIRECTORY --output=small_trees.jsonl
    python -m experiments.evaluate --config=configs/eval/small_trees.py:4/1/2,default ...     # some of them

EAGLE-3 on 24 prompts of MT-bench at T = 0, first turns. A pass over 2 tokens costs 1.3 times one over 1 on two cores,
over 8 tokens 1.6 times, so a tree has to bring that many tokens per round before anything is won. `default` is the
tree of `experiments.generate` without sizes, with `give_up`.
"""

import ml_collections

from configs.eval import heads

TREES = ("2/0/1", "3/1/1", "4/1/2", "6/2/2", "8/2/3", "16/5/4", "default")
"""Nodes, depth, top-k."""


def get_config(trees: str = ",".join(TREES)) -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.num_prompts=80."""
    config = heads.get_config("eagle3")
    config.tasks = ("mt_bench",)
    config.num_prompts = 24
    config.temperatures = (0.0,)
    config.methods = [method(tree) for tree in trees.split(",")]
    return config


def method(tree: str) -> dict[str, object]:
    """EAGLE-3 with a tree, its label."""
    if tree == "default":
        return {"label": tree, "method": "eagle3", "give_up": True}
    nodes, depth, top_k = map(int, tree.split("/"))
    return {"label": tree, "method": "eagle3", "nodes": nodes, "depth": depth, "top_k": top_k}
