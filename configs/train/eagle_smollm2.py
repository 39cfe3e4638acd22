"""An EAGLE-1/2 head for SmolLM2-135M-Instruct on two cores (arXiv 2401.15077, section 3.2).

    python -m experiments.train --config=configs/train/eagle_smollm2.py --data=answers.jsonl --run=runs/eagle

Differences from EAGLE-3: one step instead of several, the last feature instead of three, a feature loss besides the
token loss. The token loss covers 8,192 tokens of the vocabulary: over all 49,152 it costs six times as much.
Expected on two CPU cores, features stored: 27 minutes; held-out accuracy 0.418, tau 2.41 as EAGLE-2 with (60, 7, 10)
and 2.05 with EAGLE's static tree over four tasks at T = 0. The head that ships went on from there: see its README.
"""

import ml_collections

from configs.train import eagle3_smollm2


def get_config() -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.recipe.noise=0.2."""
    config = eagle3_smollm2.get_config()
    config.head.kind = "eagle"
    config.head.draft_vocab_size = 8192
    config.start.copy_layer = False  # no norm before the target's layer here, and none after it
    config.recipe = ml_collections.ConfigDict()
    config.recipe.feature_weight = 1.0
    config.recipe.token_weight = 0.1
    config.recipe.objective = "cross_entropy"  # of the tokens' loss
    config.recipe.lk_decay = 3.0
    config.recipe.noise = 0.1
    return config
