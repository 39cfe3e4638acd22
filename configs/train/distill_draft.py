"""A draft model for SmolLM2-135M-Instruct, for speculative sampling: four of its own layers, taught by all thirty.

    python -m experiments.train --config=configs/train/distill_draft.py --data=answers.jsonl --run=runs/draft \
        --features=DIRECTORY --export=DIRECTORY

and then `--method=chain --draft=DIRECTORY`. It shares the features that a head's run has stored on disk. Expected on
two CPU cores, beside other work: 48 minutes for 3 epochs over 2,016 answers; held-out accuracy 0.388.
The draft model that ships went on from there with --config.draft.start: see its README.
"""

import ml_collections

from configs.train import eagle3_smollm2


def get_config() -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.epochs=2."""
    config = eagle3_smollm2.get_config()
    del config.head, config.start, config.recipe
    config.epochs = 3.0
    config.draft = ml_collections.ConfigDict()
    config.draft.layers = (0, 1, -2, -1)  # of the target, as the student's first ones
    config.draft.vocab_size = 8192  # tokens that the loss covers, 0 is all; so many are drafted by default too
    config.draft.start = ""  # a draft model to go on from, distilled or a directory; else these layers as they are
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.evaluation.drafted = 4
    return config
