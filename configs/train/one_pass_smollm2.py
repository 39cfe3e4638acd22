"""A one-pass head for SmolLM2-135M-Instruct on one core: three layers, blocks of 8, edges of rank 64.

    python -m experiments.train --config=configs/train/one_pass_smollm2.py --data=answers.jsonl --run=runs/one_pass

DFlash (arXiv 2602.06036) with the causal block and the loss of JetSpec (arXiv 2606.18394) and the slots and edges of
DSpark (arXiv 2607.05147). Frozen are the embedding and an LM head of 8,192 rows, as in `eagle3_smollm2`.

With --features=DIRECTORY the target reads the text only once. Expected of one CPU core, features stored: 7.6 seconds a
step of 384 anchors, so about 90 minutes for 3 epochs over 2,512 answers. docs/training.md has a shorter run.
"""

import ml_collections

from configs.train import eagle3_smollm2


def get_config() -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.optimizer.learning_rate=1e-3."""
    config = eagle3_smollm2.get_config()
    config.epochs = 3.0

    config.head = ml_collections.ConfigDict()
    config.head.kind = "one_pass"
    config.head.draft_vocab_size = 8192  # 0 is the full vocabulary
    config.head.num_layers = 3  # with start.copy_layer they start as the target's last ones
    config.head.block = 8  # slots, as many as drafted tokens
    config.head.edge_rank = 64  # 0: tokens of a slot do not depend on the token before
    config.head.fc_norm = True  # a norm on each tap
    config.head.joins_context = True  # slots start with the features of the last token too; DFlash has False
    config.head.taps = ()  # layers whose inputs are fused, -1 is the last hidden state; (): the target's three

    config.recipe = ml_collections.ConfigDict()
    config.recipe.num_anchors = 128  # blocks a row, drawn anew in each step
    config.recipe.base_weight = 0.5  # of logits without edges; those with edges weigh 1

    config.evaluation.update(nodes=16, depth=7, top_k=4)
    return config
