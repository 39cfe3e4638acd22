r"""Tau of trees on plain decoding's answers, METHOD[=DIRECTORY][:NODES/DEPTH/TOP_K], with shared noise and without.

    python -m experiments.evaluate --config=configs/eval/trees.py:eagle3:60/7/10,eagle3:16/5/4 --data=DIRECTORY \
        --output=trees.jsonl
    python -m experiments.evaluate --config=configs/eval/trees.py:eagle2=DIRECTORY:8/2/3,prompt_lookup ...

The first ten prompts of each task, first turns, 128 tokens, teacher-forced: no times. At T = 0 there is no noise to
share. `experiments.report --rows=trees.jsonl --tau_table=tau.json` makes of it the table from which the default tree of
a head follows.
"""

import ml_collections

from configs.eval import field, heads

TREES = ("eagle3:60/7/10", "eagle3:16/5/4")


def get_config(trees: str = ",".join(TREES)) -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.num_prompts=40.

    Args:
      trees: methods with their trees, separated by commas.
    """
    config = heads.get_config("eagle3")
    config.mode = "teacher_forced"
    config.batch = 10
    config.warm_ups = 0
    config.methods = [method for tree in trees.split(",") for method in methods(tree)]
    return config


def methods(text: str) -> list[dict[str, object]]:
    """A method with its tree, twice."""
    name, _, sizes = text.partition(":")
    method, _, directory = name.partition("=")
    one: dict[str, object] = {"label": text, "method": method}
    if directory:
        one["head" if method.startswith(field.HEADS) else "draft"] = directory
    if sizes:
        parts = sizes.split("/")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"a tree is METHOD or METHOD:NODES/DEPTH/TOP_K, such as eagle3:60/7/10, got {text!r}")
        one |= dict(zip(("nodes", "depth", "top_k"), map(int, parts), strict=True))
    unshared = {**one, "label": f"{text}, plain top-k", "share_noise": False, "temperatures": (0.3, 1.0)}
    return [one, unshared]
