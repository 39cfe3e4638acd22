"""A one-pass head for SmolLM2-135M-Instruct on one core: three layers, blocks of 8, edges of rank 64.

    python -m experiments.train --config=configs/train/one_pass_smollm2.py --data=answers.jsonl --run=runs/one_pass

DFlash (arXiv 2602.06036) with the causal block and the loss of JetSpec (arXiv 2606.18394) and the slots and edges of
DSpark (arXiv 2607.05147). Frozen are the embedding and an LM head of 8,192 rows, as in `eagle3_smollm2`.

With --features=DIRECTORY the target reads the text only once. Expected of one CPU core, features stored: 7.6 seconds a
step of 384 anchors, so about 90 minutes for 3 epochs over 2,512 answers. docs/training.md has a shorter run.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.optimizer.learning_rate=1e-3."""
    config = ml_collections.ConfigDict()
    config.target = "smollm2-135m"
    config.dtype = "float32"  # of the target and of activations; weights that are trained stay float32
    config.seed = 0
    config.epochs = 3.0
    config.steps = 0  # optimizer steps; 0: as many as the epochs have

    config.head = ml_collections.ConfigDict()
    config.head.kind = "one_pass"
    config.head.draft_vocab_size = 8192  # 0 is the full vocabulary
    config.head.num_layers = 3
    config.head.block = 8  # slots, as many as drafted tokens
    config.head.edge_rank = 64  # 0: tokens of a slot do not depend on the token before
    config.head.fc_norm = True  # a norm on each tap
    config.head.joins_context = True  # slots start with the features of the last token too; DFlash has False
    config.head.taps = ()  # layers whose inputs are fused, -1 is the last hidden state; (): the target's three

    config.start = ml_collections.ConfigDict()
    config.start.head = ""  # a trained head to go on from, as --head takes it; nothing else of `start` then counts
    config.start.copy_layer = True  # the head's layers start as the target's, else random
    config.start.layer = -1  # the last of these, counted from the end where negative
    config.start.scale_features = True  # scale `fc` at the start, so that all features contribute equally

    config.recipe = ml_collections.ConfigDict()
    config.recipe.num_anchors = 128  # blocks a row, drawn anew in each step
    config.recipe.base_weight = 0.5  # of logits without edges; those with edges weigh 1

    config.data = ml_collections.ConfigDict()
    config.data.length = 768  # tokens a packed row
    config.data.slots = 528  # of those, supervised ones
    config.data.batch = 3  # rows a step
    config.data.accumulate = 1  # micro-batches a step
    config.data.heldout = 32  # conversations never trained on, at least: all answers to a prompt are on one side
    config.data.cut_loops = True  # answers with token ids end where they begin to repeat themselves
    config.data.share = 1.0  # of all others, the first ones of the order that `seed` draws

    config.features = ml_collections.ConfigDict()
    config.features.dtype = "float16"
    config.features.length = 768  # tokens a row of a pass: no conversation may be longer, so at least data.length
    config.features.batch = 3  # rows a pass

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "muon"  # or adamw
    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_share = 0.05
    config.optimizer.warmup_share = 0.03
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 1.0

    config.loop = ml_collections.ConfigDict({"log_every": 10, "save_every": 100})
    config.loop.heldout_every = 100
    config.loop.evaluate_every = 500

    tree = {"nodes": 16, "depth": 7, "top_k": 4}
    config.evaluation = ml_collections.ConfigDict({"num_prompts": 8, "max_new_tokens": 64, **tree})
    return config
