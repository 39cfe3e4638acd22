"""Convert draft heads: what the EAGLE repository saved with PyTorch, and heads for SGLang and vLLM.

    python -m experiments.convert --head=DIRECTORY --output=NEW               # pytorch_model.bin to safetensors
    python -m experiments.convert --head=eagle3 --export=vllm --output=NEW    # for an engine, LM head included
    python -m experiments.convert --head=NEW --validate                       # say what is wrong with the files

Only the first of these needs PyTorch (torch==2.13.0). Nothing is overwritten.
"""

import dataclasses
import pathlib
import pickle
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from eagle_jax.checkpoint.head_formats import ENGINES, HEAD_FORMATS
from eagle_jax.checkpoint.heads import TORCH_FILE, save_head
from eagle_jax.checkpoint.hf import SINGLE_FILE, read_json
from eagle_jax.checkpoint.pretrained import PIP_INSTALL, load_pretrained_head, load_target
from eagle_jax.checkpoint.validate_head import validate
from eagle_jax.files import new_directory
from eagle_jax.models.transformer import lm_head_rows
from experiments.cli import launch

FLAGS = flags.FlagValues()
flags.DEFINE_string("head", None, "directory of the head; with --export also one that ships", flag_values=FLAGS)
flags.DEFINE_string("output", None, "directory to write, which must not exist", flag_values=FLAGS)
flags.DEFINE_enum("export", None, list(ENGINES), "write for this engine", flag_values=FLAGS)
flags.DEFINE_bool("validate", False, "list what is wrong, with exit code 1 where anything is", flag_values=FLAGS)
flags.DEFINE_enum("engine", None, list(ENGINES), "of --validate: the engine to load it; else both", flag_values=FLAGS)
flags.DEFINE_string("target", "smollm2-135m", "of --export, as for experiments.generate", flag_values=FLAGS)
flags.DEFINE_string("dtype", "bfloat16", "of --export: type of the stored weights", flag_values=FLAGS)
flags.DEFINE_integer("draft_vocab", None, "of --export, as for experiments.generate", flag_values=FLAGS)


def main() -> None:
    """Convert, export or validate."""
    if not FLAGS.head:
        raise ValueError("--head is needed: the directory of a draft head")
    if FLAGS.validate:
        check(FLAGS.head)
        return
    if not FLAGS.output:
        raise ValueError("--output is needed: the directory to write")
    if FLAGS.export:
        export()
    else:
        convert(pathlib.Path(FLAGS.head), pathlib.Path(FLAGS.output))
    print(f"wrote {FLAGS.output}", flush=True)


def check(directory: str) -> None:
    """Print what is wrong with a head; exit code 1 where anything is."""
    problems = validate(directory, engines=[FLAGS.engine] if FLAGS.engine else list(ENGINES))
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    print(f"{directory}: nothing is wrong", flush=True)


def export() -> None:
    """Write a head for an engine; rows that it takes of its target's LM head are written out."""
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, progress=progress)
    config, params = load_pretrained_head(FLAGS.head, model, draft_vocab=FLAGS.draft_vocab)
    # Where engines use the target's LM head, any rows of it are dropped again.
    frozen = not HEAD_FORMATS[config.kind].own_lm_head
    if not frozen and params.lm_head is None:
        params = dataclasses.replace(params, lm_head=lm_head_rows(model.config, model.params))
    if frozen:
        params = dataclasses.replace(params, lm_head=None, target_ids=None)
    save_head(FLAGS.output, config, params, model.config, dtype=FLAGS.dtype, engine=FLAGS.export, frozen_lm_head=frozen)


def convert(directory: pathlib.Path, output: pathlib.Path) -> None:
    """From `pytorch_model.bin` to safetensors; tensors and config stay as they are.

    Raises:
      ValueError: PyTorch is not installed, or the directory does not hold what the EAGLE repository saves.
    """
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        remedy = f"{PIP_INSTALL} torch==2.13.0"
        raise ValueError(f"{TORCH_FILE} needs PyTorch, which is not installed: {remedy}") from error
    read_json(directory / "config.json")
    path = directory / TORCH_FILE
    if not path.is_file():
        raise ValueError(f"{directory} has no {TORCH_FILE}")
    try:
        tensors: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as weights alone: {reason}") from error
    plain = isinstance(tensors, Mapping) and all(isinstance(name, str) for name in tensors)
    if not plain or not all(torch.is_tensor(value) for value in tensors.values()):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, expected a mapping from names to tensors")
    with new_directory(output) as folder:
        # Clones, since safetensors refuses tensors that share memory.
        copies = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
        save_file(copies, folder / SINGLE_FILE, metadata={"format": "pt"})
        shutil.copyfile(directory / "config.json", folder / "config.json")
    for problem in validate(output):
        print(f"note: {problem}")


if __name__ == "__main__":
    launch.run(main, FLAGS)
