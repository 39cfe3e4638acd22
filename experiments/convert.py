"""Convert draft heads and targets: what was saved with PyTorch, and heads for SGLang and vLLM.

    python -m experiments.convert --head=DIRECTORY --output=NEW               # pytorch_model.bin to safetensors
    python -m experiments.convert --target=DIRECTORY --output=NEW             # the same of a target, in parts or not
    python -m experiments.convert --head=eagle3 --export=vllm --output=NEW    # for an engine, LM head included
    python -m experiments.convert --head=eagle3 --export=speculators --output=NEW    # for `vllm serve NEW`
    python -m experiments.convert --head=NEW --validate                       # say what is wrong with the files

Only the first two of these need PyTorch (torch==2.13.0). Nothing is overwritten.
"""

import dataclasses
import json
import pathlib
import pickle
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from eagle_jax.checkpoint.head_formats import ENGINES, HEAD_FORMATS
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.hf import INDEX_FILE, SINGLE_FILE, TORCH_FILE, load_config, torch_files
from eagle_jax.checkpoint.hf_tokenizer import tokenizer_from_directory
from eagle_jax.checkpoint.pretrained import PIP_INSTALL, load_pretrained_head, load_target
from eagle_jax.checkpoint.validate_head import validate
from eagle_jax.files import check_fetched, check_new_directory, new_directory, read_json
from eagle_jax.models.transformer import lm_head_rows
from experiments.cli import launch

FLAGS = flags.FlagValues()
flags.DEFINE_string("head", None, "directory of the head; with --export also one that ships", flag_values=FLAGS)
flags.DEFINE_string("output", None, "directory to write, which must not exist", flag_values=FLAGS)
flags.DEFINE_enum("export", None, list(ENGINES), "write for this engine", flag_values=FLAGS)
flags.DEFINE_bool("validate", False, "list what is wrong, with exit code 1 where anything is", flag_values=FLAGS)
text = "of --validate: the engine to load it; else those that its format is for"
flags.DEFINE_enum("engine", None, list(ENGINES), text, flag_values=FLAGS)
text = "directory to convert, without --head; of --export as for experiments.generate, smollm2-135m where left out"
flags.DEFINE_string("target", None, text, flag_values=FLAGS)
flags.DEFINE_string("dtype", "bfloat16", "of --export: type of the stored weights", flag_values=FLAGS)
text = "of --export=speculators: name or path of the target, as vLLM shall load it; else --target"
flags.DEFINE_string("verifier", "", text, flag_values=FLAGS)
flags.DEFINE_integer("draft_vocab", None, "of --export, as for experiments.generate", flag_values=FLAGS)


def main() -> None:
    """Convert, export or validate."""
    if not FLAGS.head and (not FLAGS.target or FLAGS.validate or FLAGS.export):
        raise ValueError("--head is needed, the directory of a draft head; or to convert, --target, that of a target")
    if FLAGS.validate:
        check(FLAGS.head)
        return
    if not FLAGS.output:
        raise ValueError("--output is needed: the directory to write")
    check_new_directory(FLAGS.output)
    if FLAGS.export:
        export()
    else:
        convert(pathlib.Path(FLAGS.head or FLAGS.target), pathlib.Path(FLAGS.output))
        for problem in validate(FLAGS.output) if FLAGS.head else target_problems(FLAGS.output):
            print(f"note: {problem}")
    print(f"wrote {FLAGS.output}", flush=True)


def check(directory: str) -> None:
    """Print what is wrong with a head; exit code 1 where anything is."""
    problems = validate(directory, engines=[FLAGS.engine] if FLAGS.engine else None)
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    print(f"{directory}: nothing is wrong", flush=True)


def export() -> None:
    """Write a head for an engine; rows that it takes of its target's LM head are written out."""
    name = FLAGS.target or "smollm2-135m"
    with launch.status(f"Loading {name}") as progress:
        model = load_target(name, progress=progress)
    config, params = load_pretrained_head(FLAGS.head, model, draft_vocab=FLAGS.draft_vocab)
    # Where engines use the target's LM head, any rows of it are dropped again.
    frozen = not HEAD_FORMATS[config.kind].own_lm_head
    if not frozen and params.lm_head is None:
        params = dataclasses.replace(params, lm_head=lm_head_rows(model.config, model.params))
    if frozen:
        params = dataclasses.replace(params, lm_head=None, target_ids=None)
    save_head(
        FLAGS.output,
        config,
        params,
        model.config,
        dtype=FLAGS.dtype,
        engine=FLAGS.export,
        frozen_lm_head=frozen,
        verifier=FLAGS.verifier or name,
    )


def convert(directory: pathlib.Path, output: pathlib.Path) -> None:
    """From `pytorch_model.bin`, or its parts, to safetensors; tensors, configs and tokenizer stay as they are.

    Host memory holds one of the files.

    Raises:
      ValueError: PyTorch is not installed, or the directory does not hold what it saves.
    """
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        remedy = f"{PIP_INSTALL} torch==2.13.0"
        raise ValueError(f"{TORCH_FILE} needs PyTorch, which is not installed: {remedy}") from error
    read_json(directory / "config.json")
    parts = torch_parts(directory)
    with new_directory(output) as folder:
        holders: dict[str, str] = {}
        for number, path in enumerate(parts, start=1):
            name = SINGLE_FILE if len(parts) == 1 else f"model-{number:05}-of-{len(parts):05}.safetensors"
            tensors = _load(path, torch)
            # Clones, since safetensors refuses tensors that share memory.
            copies = {key: tensors.pop(key).detach().clone().contiguous() for key in list(tensors)}
            save_file(copies, folder / name, metadata={"format": "pt"})
            holders |= dict.fromkeys(copies, name)
        if len(parts) > 1:
            (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": holders}, indent=1) + "\n")
        for pattern in ("*.json", "*.model", "*.jinja"):
            for path in directory.glob(pattern):
                if not path.name.endswith(".index.json"):
                    shutil.copyfile(path, folder / path.name)


def torch_parts(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files that PyTorch has saved.

    Raises:
      ValueError: none, one that the index names and that is not there, or a pointer of Git LFS in place of one.
    """
    files, index = torch_files(directory), directory / f"{TORCH_FILE}.index.json"
    if not files:
        raise ValueError(f"{directory} has no {TORCH_FILE}")
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        named = {str(name) for name in weight_map.values()} if isinstance(weight_map, dict) else set()
        missing = sorted(named - {path.name for path in files})
        if missing:
            raise ValueError(f"{index} names {missing[0]}, which is not there")
    for path in files:
        check_fetched(path)
    return files


def _load(path: pathlib.Path, torch: Any) -> dict[str, Any]:
    """The tensors of a file."""
    try:
        tensors: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as weights alone: {reason}") from error
    plain = isinstance(tensors, Mapping) and all(isinstance(name, str) for name in tensors)
    if not plain or not all(torch.is_tensor(value) for value in tensors.values()):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, expected a mapping from names to tensors")
    return dict(tensors)


def target_problems(directory: str) -> list[str]:
    """Why a target does not load, as far as that shows without its weights."""
    try:
        load_config(directory)
        tokenizer_from_directory(directory)
    except ValueError as error:
        return [str(error)]
    return []


if __name__ == "__main__":
    launch.run(main, FLAGS)
