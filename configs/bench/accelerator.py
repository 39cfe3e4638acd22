"""What to run first on an accelerator that is there for a quarter of an hour, the most telling sections first.

    python -m experiments.bench.sections --config=configs/bench/accelerator.py --output=DIRECTORY --data=DIRECTORY \
        --prompts=prompts.jsonl --time_limit=840
    python -m experiments.bench.sections --config=configs/bench/accelerator.py:rehearsal ...      # small, for a CPU

Costs of a large target, exactness, speed with the heads that ship, then text of the target's own, a head from it, its
tau, and the tests where pytest is installed. Not run on an accelerator yet; the limits are guesses from bounds.
"""

import ml_collections

SEVEN = "eagle3={output}/head:60/7/10,eagle3={output}/head:16/5/4"

SECTIONS: dict[str, tuple[int, str, str]] = {
    "smoke": (
        60,
        "experiments.generate --method=eagle3 --compare --nodes=60 --depth=7 --top_k=10 '--prompt=Name three colours.'",
        "--nodes=4 --depth=1 --top_k=2 --max_new_tokens=16",
    ),
    "costs": (
        200,
        "experiments.bench.device --shapes=llama3-8b --dtypes=bfloat16 --batches=1,8 --output={output}/costs.jsonl"
        " --time_limit={seconds}",
        "--shapes=smollm2-135m --num_layers=2 --batches=1 --prompt_tokens=32 --repeats=1 --passes=8 --trees=4/2/1",
    ),
    "exact_float32": (
        60,
        "experiments.evaluate --config=configs/eval/exactness.py:eagle3 --data={data} --near_tie=1e-3"
        " --output={output}/exact_float32.jsonl --quiet",
        "--config.num_prompts=2 --config.batch=2 --config.max_new_tokens=16",
    ),
    "exact_bfloat16": (
        60,
        "experiments.evaluate --config=configs/eval/exactness.py:eagle3 --data={data} --config.dtype=bfloat16"
        " --output={output}/exact_bfloat16.jsonl --quiet",
        "--config.num_prompts=2 --config.batch=2 --config.max_new_tokens=16",
    ),
    "speed": (
        100,
        "experiments.evaluate --config=configs/eval/small_trees.py:60/7/10,26/5/8,16/5/4 --data={data}"
        " --config.dtype=bfloat16 --config.temperatures=(0.0,1.0) --output={output}/speed.jsonl --quiet",
        "--config.num_prompts=1 --config.max_new_tokens=16 --config.warm_ups=0",
    ),
    "text": (
        130,
        "experiments.regenerate --prompts={prompts} --dtype=bfloat16 --batch=512 --temperatures=0,1"
        " --max_new_tokens=384 --output={output}/answers.jsonl --time_limit={seconds} --quiet",
        "--batch=4 --num_prompts=80 --max_new_tokens=24",
    ),
    "train": (
        180,
        "experiments.train --config=configs/train/eagle3_gpu.py --data={output}/answers.jsonl --run={output}/run"
        " --export={output}/head --config.steps=400 --time_limit={seconds} --quiet",
        "--config.dtype=float32 --config.data.batch=1 --config.data.length=256 --config.data.slots=128"
        " --config.data.heldout=8 --config.steps=2 --config.recipe.num_steps=2",
    ),
    "head": (
        60,
        f"experiments.evaluate --config=configs/eval/trees.py:{SEVEN} --data={{data}} --config.dtype=bfloat16"
        " --output={output}/head.jsonl --quiet",
        "--config.num_prompts=1 --config.tasks=mt_bench --config.max_new_tokens=16 --config.temperatures=(0.0,)",
    ),
    "tests": (240, "pytest -q -n 8 --dist=loadfile", "tests/test_tree.py"),
}
"""By name: seconds, what follows `python -m`, and what makes it small."""


def get_config(size: str = "") -> ml_collections.ConfigDict:
    """The sections; a field of one can be set by a flag, as in --config.sections.costs.seconds=60.

    Args:
      size: `rehearsal` for small numbers everywhere, to see that all commands run.
    """
    if size not in ("", "rehearsal"):
        raise ValueError(f"the size of the sections is rehearsal or nothing, got {size!r}")
    config = ml_collections.ConfigDict({"sections": {}, "order": tuple(SECTIONS)})
    for name, (seconds, command, small) in SECTIONS.items():
        section = (
            {"seconds": 900, "command": f"{command} {small}"} if size else {"seconds": seconds, "command": command}
        )
        config.sections[name] = section
    return config
