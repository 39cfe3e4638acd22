r"""Does every method write plain decoding's text, token for token? 24 prompts of MT-bench, 128 tokens, T = 0 and 1.

    python -m experiments.evaluate --config=configs/eval/exactness.py --data=DIRECTORY --output=exactness.jsonl \
        --near_tie=1e-3
    python -m experiments.evaluate --config=configs/eval/exactness.py:lookahead,eagle3=DIRECTORY ...   # some of them
    python -m experiments.evaluate --config=configs/eval/exactness.py ... --config.temperatures=0.7 --config.top_p=0.9

Answers are compared; where one differs, the margin of the target's best score at that place tells a near-tie of the
arithmetic from a mistake, and --near_tie makes the latter an error. In batches of 8, so its times mean little.
"""

import ml_collections

from configs.eval import field

TREE = {"nodes": 16, "depth": 5, "top_k": 4}

NAMES = ("prompt_lookup", "lookahead", "chain", "ouroboros", "eagle", "eagle2", "eagle3")


def get_config(names: str = ",".join(NAMES)) -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag. `names` as in configs/eval/field.py."""
    config = field.get_config(names)
    config.tasks = ("mt_bench",)
    config.num_prompts = 24
    config.turns = "first"
    config.batch = 8
    config.warm_ups = 0
    config.methods = [{**method, **(TREE if "top_k" in method else {})} for method in config.methods]
    return config
