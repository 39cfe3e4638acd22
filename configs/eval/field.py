"""All methods on six tasks at T = 0 and 1, in Spec-Bench's way (arXiv 2401.07851): batch 1, all turns.

Differences: answers of 128 tokens instead of 1,024, one run instead of the mean of three, float32. Short
answers leave methods that learn from the text (lookahead, Ouroboros, prompt lookup) less to learn from.

    python -m experiments.evaluate --config=configs/eval/field.py --data=DIRECTORY --output=field.jsonl
    python -m experiments.evaluate --config=configs/eval/field.py:prompt_lookup,chain=DIRECTORY ...   # some of them

Needs the heads `eagle` and `eagle3` and the draft model `distilled` that ship for the target, unless they are left out
or others are named; `chain=self:24` drafts with the target's first 24 layers. No head ships for `one_pass`: it takes
part as `one_pass=DIRECTORY`. Expected on two CPU cores: a minute for each prompt at each temperature with all methods.
"""

import ml_collections

from configs.eval import heads

TREE = {"nodes": 26, "depth": 5, "top_k": 8}
"""As many nodes as EAGLE's static tree has: what differs in tau is how they are chosen. Published is (60, 7, 10)."""

HEADS = ("eagle", "one_pass")
"""How methods begin that draft with a head."""

METHODS: dict[str, dict[str, object]] = {
    "vanilla": {},  # against itself: how far the times can be trusted
    "prompt_lookup": {"depth": 9},
    "lookahead": {},
    "lookahead_prompt": {"method": "lookahead", "pool_from_prompt": True},
    "chain": {"draft": "distilled", "depth": 4},
    "ouroboros": {"draft": "distilled"},
    "eagle": {},
    "eagle2": TREE,
    "eagle3": TREE,
    "one_pass": {},
    "eagle3_default": {"method": "eagle3"},  # with the tree that pays where this runs
}

NAMES = tuple(name for name in METHODS if name != "one_pass")
"""Those with all that they need."""


def get_config(names: str = ",".join(NAMES)) -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.num_prompts=80.

    Args:
      names: of the methods, separated by commas, each with `=` and the directory of its head or draft model where
        another one is wanted.
    """
    config = heads.get_config("eagle3")
    config.tasks = ("mt_bench", "humaneval", "gsm8k", "alpaca", "sum", "qa")
    config.num_prompts = 10  # the first of each task; with --config.spread as many of each category
    config.turns = "all"
    config.temperatures = (0.0, 1.0)
    config.methods = [method(*name.split("=", 1)) for name in names.split(",")]
    return config


def method(name: str, directory: str = "") -> dict[str, object]:
    """A method with its defaults, but for the draft or head in `directory`."""
    if name not in METHODS:
        raise ValueError(f"methods are {', '.join(METHODS)}, got {name!r}")
    drafts = {("head" if name.startswith(HEADS) else "draft"): directory} if directory else {}
    return {"label": name, "method": name, **METHODS[name], **drafts}
