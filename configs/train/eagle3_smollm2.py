"""An EAGLE-3 head for SmolLM2-135M-Instruct on two cores (arXiv 2503.01840, with a frozen LM head of 8,192 rows).

    python -m experiments.train --config=configs/train/eagle3_smollm2.py --data=answers.jsonl --run=runs/eagle3

with --features=DIRECTORY, so that the target reads the text only once. Expected on two CPU
cores, features stored: 53 minutes for 5 epochs over 2,016 answers; simulated tau 1.75 on held-out answers, tau 2.58
with (60, 7, 10) over four tasks at T = 0. The head that ships went on from there with more text: see its README.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The defaults; every field can be set by a flag, as in --config.optimizer.learning_rate=1e-3."""
    config = ml_collections.ConfigDict()
    config.target = "smollm2-135m"
    config.dtype = "float32"  # of the target and of activations; weights that are trained stay float32
    config.seed = 0
    config.epochs = 5.0
    config.steps = 0  # optimizer steps; 0: as many as the epochs have

    config.head = ml_collections.ConfigDict()
    config.head.kind = "eagle3"
    config.head.draft_vocab_size = 8192  # 0 is the full vocabulary
    config.head.fc_norm = False
    config.head.norm_output = False
    config.head.norm_before_residual = False  # these two are of speculators, whose default is True for both
    config.head.norm_before_fc = False  # not beside fc_norm
    config.head.taps = ()  # layers whose inputs are fused, -1 is the last hidden state; (): the target's three

    config.start = ml_collections.ConfigDict()
    config.start.head = ""  # a trained head to go on from, as --head takes it; nothing else of `start` then counts
    config.start.copy_layer = True  # the head's layer starts as a layer of the target, else random
    config.start.layer = -1  # this one, counted from the end where negative
    config.start.scale_features = True  # scale `fc` at the start, so that all features contribute equally

    config.recipe = ml_collections.ConfigDict()
    config.recipe.num_steps = 3
    config.recipe.decay = 0.8
    config.recipe.normalise = True
    config.recipe.alignment = "target"
    config.recipe.train_lm_head = False
    config.recipe.objective = "cross_entropy"  # or lk_alpha, lk_lambda (arXiv 2602.23881)
    config.recipe.lk_decay = 3.0  # of lk_lambda
    config.recipe.feature_weight = 0.0  # of EAGLE's feature loss, which EAGLE-3 dropped; the tokens' weighs 1

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

    tree = {"nodes": 16, "depth": 5, "top_k": 4}
    config.evaluation = ml_collections.ConfigDict({"num_prompts": 8, "max_new_tokens": 64, **tree})
    return config
