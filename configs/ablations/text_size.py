"""How much text a head needs: EAGLE-3 heads from scratch on 1/16, 1/8, 1/4, 1/2 and all of it, as many passes each.

    python -m experiments.sweep --config=configs/ablations/text_size.py --data=DIRECTORY --answers=answers.jsonl \
        --features=DIRECTORY --output=sweeps/text_size --mode=teacher_forced
    python -m experiments.report --tau_by_tokens=sweeps/text_size/tau_by_tokens.jsonl --output=text_size

The second command draws tau against the tokens that each head saw, with a line up to 50 million. The draft vocabulary
is counted on the text that is used. Training all points takes twice as long as training the last one.
"""

from collections.abc import Callable

import ml_collections

from configs.ablations import eagle3_training

SHARES = {"1/16": 0.0625, "1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "all": 1.0}


def get_config() -> ml_collections.ConfigDict:
    """The recipe as it is, with all its epochs."""
    config = eagle3_training.get_config()
    config.train = {"config": "configs/train/eagle3_smollm2.py", "time_limit": 36000.0, "fields": {}}
    return config


def sweep(add: Callable[..., None]) -> None:
    """The least text first."""
    for text, share in SHARES.items():
        add(label=f"{text} of the text", **{"train.data.share": share})
