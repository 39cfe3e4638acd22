"""A complete Hugging Face directory of a few kilobytes, a random Llama on bytes; and a head trained on it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from eagle_jax.checkpoint.names import lookup, target_tensors
from eagle_jax.checkpoint.save_target import config_to_hf
from eagle_jax.testing import tiny_transformer
from tests.experiments.training_runs import BASES, CONFIG, Task, conversation, run, write_lines

CONTEXT = 160
EOS = 256
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def write_model(folder: Path, seed: int = 0, vocab_size: int = 257) -> Path:
    """Write config, weights and tokenizer of a model with random weights."""
    folder.mkdir(parents=True)
    sizes: dict[str, Any] = {"vocab_size": vocab_size, "num_layers": 2, "max_positions": CONTEXT}
    config, _, params = tiny_transformer(seed, **sizes)
    tensors = {
        name: spec.to_stored(np.asarray(lookup(params, spec.path))) for name, spec in target_tensors(config).items()
    }
    save_file(tensors, folder / "model.safetensors")
    settings = config_to_hf(dataclasses.replace(config, eos_ids=(EOS,)), "float32")
    del settings["torch_dtype"]  # transformers would import torch for it
    (folder / "config.json").write_text(json.dumps(settings))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={mark: index for index, mark in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    declared = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the tiny model."""
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def task(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Task:
    """What the training script is run on."""
    folder = tmp_path_factory.mktemp("train")
    for kind, base in BASES.items():
        (folder / f"{kind}.py").write_text(CONFIG.replace("BASE", base).replace("TARGET", repr(str(tiny_model))))
    records = [conversation(number) for number in range(12)]
    records[0] |= {"answer_ids": [*b"0 1 2 3"], "finished": False}
    return Task(tiny_model, write_lines(folder / "data.jsonl", records), folder)


@pytest.fixture(scope="session")
def finished(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an EAGLE-3 run with features on disk that nothing interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    assert run(task, folder, f"--features={folder / 'features'}", f"--export={folder / 'head'}") == 0
    return folder
