"""The same EAGLE-3 head on an accelerator: bfloat16, large batches, seven unrolled steps as in the paper's code.

    python -m experiments.train --config=configs/train/eagle3_gpu.py --data=answers.jsonl --run=runs/eagle3

Features are computed along the way: the target reads 20 million tokens faster than a disk gives 90 GB. Chunks of logits
follow the platform (`sharding.ROWS_AT_A_TIME`). Not measured on a GPU or TPU yet.
"""

import ml_collections

from configs.train import eagle3_smollm2


def get_config() -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.data.batch=64."""
    config = eagle3_smollm2.get_config()
    config.dtype = "bfloat16"
    config.epochs = 2.0
    config.recipe.num_steps = 7
    config.data.update(length=1024, slots=704, batch=32, heldout=512)
    config.loop.update(save_every=200, heldout_every=200, evaluate_every=1000)
    config.evaluation.update(num_prompts=32, max_new_tokens=128)
    return config
