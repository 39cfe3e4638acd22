"""A reader's folder: everything that the pages name, tiny. `smollm2-135m` in it is a random model of two layers."""

import contextlib
import importlib
import importlib.util
import json
import shutil
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

import eagle_jax.drafters
from eagle_jax.checkpoint import pretrained
from eagle_jax.checkpoint.distilled import save_draft
from eagle_jax.checkpoint.draft_vocabulary import with_draft_vocabulary
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.pick_layers import truncate_layers
from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.figures.charts import CHARTS
from eagle_jax.testing import tiny_transformer
from experiments import evaluate, generate, report, sweep
from experiments.cli import launch
from tests.checkpoint.files import stored_tensors, write_gguf
from tests.checkpoint.heads import random_block_head, random_head
from tests.checkpoint.test_gguf_tokenizer import byte_level_metadata
from tests.docs.pages import ROOT, blocks, changed_file
from tests.experiments.conftest import write_model

DRAFT_SIZE = 40
TASKS = ("mt_bench", "gsm8k", "humaneval", "alpaca", "sum", "qa")

SHRUNK: dict[str, list[str]] = {
    "generate": ["--max_new_tokens=8"],
    "measure": ["--prompt_tokens=12", "--new_tokens=4", "--repeats=1"],
    "batches": ["--drafts=eagle3", "--batches=2", "--num_prompts=3", "--max_new_tokens=4", "--repeats=1"],
    "contexts": [
        *("--draft_method=eagle3:5/1/2", "--contexts=64", "--windows=0", "--num_prompts=2", "--max_new_tokens=6"),
    ],
    "compile": ["--topology=cpu:8", "--num_layers=1", "--context=128", "--target_config=llama2-7b"],
    "fit": ["--targets=llama2-7b", "--kinds=v5p"],
    "loading": ["--target_config=qwen2.5-0.5b", "--num_layers=1", "--dtypes=bfloat16"],
    "regenerate": ["--num_prompts=3", "--batch=2", "--max_new_tokens=8", "--max_prompt_tokens=64", "--quiet"],
    "draw": ["--max_new_tokens=8"],
    "evaluate": ["--quiet"],
    "sweep": ["--quiet", "--points=5_nodes_depth_3_top-k_1"],
    "train": [
        *("--quiet", "--config.epochs=0.6", f"--config.head.draft_vocab_size={DRAFT_SIZE}"),
        *("--config.recipe.num_steps=2", "--config.data.length=64", "--config.data.slots=48", "--config.data.batch=2"),
        *("--config.data.heldout=1", "--config.features.length=64", "--config.features.batch=2"),
        *("--config.evaluation.num_prompts=1", "--config.evaluation.max_new_tokens=6", "--config.evaluation.nodes=4"),
        *("--config.evaluation.depth=1", "--config.evaluation.top_k=2"),
    ],
}
"""Flags that make a command small; those of the page are parsed before them."""

SMALLER = {"60/7/10": "5/1/2", "16/5/4": "4/1/2", "self:24": "self:1"}
"""Values of flags, small."""
WORDS = {"--nodes=60": "--nodes=5", "--depth=7": "--depth=1", "--top_k=10": "--top_k=2", "--dtype=bfloat16": ""}
WORDS |= {"--first=16": "", "--first=15": ""}
"""Whole flags, small: the published tree; one dtype, so that the programs of the pages are the same; round 1."""


def _small_evaluation(config: Any, *arguments: Any, **options: Any) -> Any:
    """`experiments.evaluate.evaluate` on one prompt of each task, greedy, with small trees."""
    config.num_prompts, config.max_new_tokens, config.warm_ups, config.temperatures = 1, 8, 0, (0.0,)
    config.tasks = config.tasks[:1]
    config.methods = [
        {**method, **({"nodes": 5, "depth": 1, "top_k": 2} if "top_k" in method else {})} for method in config.methods
    ]
    return _evaluate(config, *arguments, **options)


_evaluate = evaluate.evaluate


def run(words: list[str]) -> int:
    """The exit code of `python -m experiments.NAME ...` in this process, on something small."""
    name = words[2].rpartition(".")[2]
    script = importlib.import_module(words[2])
    flags = [small for word in words[3:] if (small := WORDS.get(word, word))] + SHRUNK.get(name, [])
    for value, small in SMALLER.items():
        flags = [flag.replace(value, small) for flag in flags]
    try:
        return launch.call(script.main, script.FLAGS, flags)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a directory and as a GGUF file, and heads for it."""
    folder = tmp_path_factory.mktemp("shelf")
    model = load_target(str(write_model(folder / "model")))
    for kind in ("eagle", "eagle3"):
        config, params = random_head(kind, model.config)
        if kind == "eagle3":
            save_head(folder / "whole-eagle3", config, params, model.config)
        params = with_draft_vocabulary(params, model.config, model.params, range(257), DRAFT_SIZE)
        ranks = {"frozen_lm_head": True, "token_ranks": range(257)}
        save_head(folder / "heads" / f"smollm2-135m-{kind}", config, params, model.config, **ranks)
    save_head(folder / "one_pass", *random_block_head(model.config, block=8), model.config, engine=None)
    save_draft(folder / "heads" / "smollm2-135m-distilled", *truncate_layers(model.config, model.params, 1))
    metadata = byte_level_metadata("gpt-2")
    config, _, weights = tiny_transformer(vocab_size=len(metadata["tokenizer.ggml.tokens"]))
    write_gguf(folder / "model.gguf", config, stored_tensors(config, weights), metadata=metadata)
    if importlib.util.find_spec("torch"):
        write_torch(folder / "whole-eagle3", folder / "torch")
        write_torch(folder / "model", folder / "torch-target")
    return folder


def write_torch(saved: Path, folder: Path) -> None:
    """A head or a target as PyTorch saves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, at its import
        import torch
        from safetensors.torch import load_file

    shutil.copytree(saved, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(saved / "model.safetensors"), folder / "pytorch_model.bin")


@pytest.fixture
def reader(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the pages' commands run in."""
    for name, content in {
        "configs": ROOT / "configs",
        "results": ROOT / "results",
        "smollm2-135m": shelf / "model",
        "models/Qwen3-0.6B": shelf / "model",
        "models/Llama-3.1-8B-Instruct": shelf / "model",
        "models/model.gguf": shelf / "model.gguf",
        "heads/EAGLE3-LLaMA3.1-Instruct-8B": shelf / "whole-eagle3",
        "heads/mine": shelf / "whole-eagle3",
        "heads/one_pass": shelf / "one_pass",
        "downloads/EAGLE-head": shelf / "torch",
        "downloads/vicuna-7b-v1.3": shelf / "torch-target",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(content)
    asked = [{"prompt": f"Count to {n}, count to {n}"} for n in range(10)]
    prompts = [{"messages": [{"role": "user", "content": one["prompt"]}]} for one in asked]
    for folder in ("mt_bench", *(f"spec_bench/{task}" for task in TASKS)):
        write_lines(tmp_path / folder / "question.jsonl", asked)
    write_lines(tmp_path / "prompts.jsonl", prompts)
    write_lines(
        tmp_path / "held_out.jsonl", [{"messages": [{"role": "user", "content": f"Add {n}"}]} for n in range(9)]
    )
    write_lines(tmp_path / "mydata" / "mine" / "question.jsonl", [asked[0], {"turns": ["Count to 3", "Now to 4"]}])
    # The name stands for the directory of that name from here on.
    monkeypatch.setattr(pretrained, "SMOLLM2", "the real one")
    monkeypatch.setattr(pretrained, "SHIPPED", shelf / "heads")
    monkeypatch.setattr(evaluate, "evaluate", _small_evaluation)
    monkeypatch.setattr(sweep, "evaluate", _small_evaluation)
    monkeypatch.setattr(report, "CHARTS", {"n_alpha": CHARTS["n_alpha"]})
    monkeypatch.chdir(tmp_path)
    jax.config.update("jax_disable_most_optimizations", True)  # programs run for milliseconds and compile for seconds
    yield tmp_path
    jax.config.update("jax_disable_most_optimizations", False)


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def new_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], types.ModuleType]:
    """Runs source text as a module of a name, until the test ends."""

    def run_source(name: str, source: str) -> types.ModuleType:
        module = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        exec(compile(source, name, "exec"), vars(module))
        return module

    return run_source


@pytest.fixture
def with_successor(
    new_module: Callable[[str, str], types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> dict[str, types.ModuleType]:
    """The files that docs/add_a_drafter.md changes, changed, by their paths."""
    page = ROOT / "docs" / "add_a_drafter.md"
    drafter = new_module("eagle_jax.drafters.successor", next(blocks(page, "python")).text)
    monkeypatch.setattr(eagle_jax.drafters, "make_successor", drafter.make_successor, raising=False)
    diffs = [changed_file(block) for block in blocks(page, "diff")]
    changes = {path: text for path, text in diffs if path.endswith(".py")}
    changed = {path: new_module(f"changed.{Path(path).stem}", text) for path, text in changes.items()}
    monkeypatch.setattr(generate, "methods", changed["experiments/cli/methods.py"])
    return changed


@contextlib.contextmanager
def as_main(name: str) -> Iterator[dict[str, Any]]:
    """A namespace for the Python of a page."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        yield vars(module)
    finally:
        del sys.modules[name]
