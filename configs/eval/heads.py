"""Draft heads: two sizes of tree, three temperatures, with the target's noise and without.

    python -m experiments.evaluate --config=configs/eval/heads.py --data=DIRECTORY --output=heads.jsonl
    python -m experiments.evaluate --config=configs/eval/heads.py:eagle3 ...                  # heads of one kind
    python -m experiments.evaluate --config=configs/eval/heads.py:eagle3=DIRECTORY,eagle ...  # one that does not ship

The first ten prompts of each task, first turns, 128 tokens. Plain top-k drafting is run at T > 0 only: at
T = 0 there is no noise to share. That makes 1,120 answers, plain decoding's among them; expected on two CPU cores with
nothing else to do: 80 minutes.
"""

import ml_collections

TREES = ((60, 7, 10), (16, 5, 4))
"""Nodes, depth, top-k: the published tree, and one for a machine on which verification is expensive."""

STATIC_TREE = (26, 4, 4)
"""The size of EAGLE's tree, which is the published one."""

KINDS = ("eagle3", "eagle2", "eagle")


def get_config(kinds: str = ",".join(KINDS)) -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.num_prompts=40.

    Args:
      kinds: methods separated by commas, each with `=` and the directory of its head where none ships.
    """
    config = ml_collections.ConfigDict()
    config.target = "smollm2-135m"
    config.dtype = "float32"
    config.tasks = ("mt_bench", "gsm8k", "humaneval", "alpaca")
    config.num_prompts = 10  # of each task
    config.spread = False  # the first of its file; True: as many of each category
    config.turns = "first"  # or all
    config.max_new_tokens = 128
    config.temperatures = (0.0, 0.3, 1.0)
    config.seeds = (0,)
    config.warm_ups = 3
    config.mode = "timed"  # or teacher_forced: tau alone, in a fraction of the time
    config.batch = 1  # conversations that are answered together; times compare best at 1
    config.top_k, config.top_p, config.min_p = 0, 1.0, 0.0
    config.methods = [method for kind in kinds.split(",") for method in methods(*kind.split("=", 1))]
    return config


def methods(kind: str, head: str = "") -> list[dict[str, object]]:
    """A kind of head in all its trees, twice each."""
    if kind not in KINDS:
        raise ValueError(f"kinds of heads are {', '.join(KINDS)}, got {kind!r}")
    entries: list[dict[str, object]] = []
    for tree in TREES if kind != "eagle" else [STATIC_TREE]:
        sizes = dict(zip(("nodes", "depth", "top_k"), tree, strict=True)) if kind != "eagle" else {}
        shared = {"label": f"{kind}, {tree[0]} nodes", "method": kind, "head": head, **sizes}
        label = f"{shared['label']}, plain top-k"
        entries += [shared, {**shared, "label": label, "share_noise": False, "temperatures": (0.3, 1.0)}]
    return entries
