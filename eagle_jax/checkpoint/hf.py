"""Reads a Hugging Face directory: `config.json` and safetensors, in one file or in shards.

Where both `model.safetensors` and an index are there, the single file counts, as in `transformers`. Nothing is
guessed: every tensor of the files has a place in the model, and every place its tensor.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from eagle_jax.checkpoint.assemble import Place, Progress, TensorSource, assemble
from eagle_jax.checkpoint.hf_config import config_from_hf, context_remark
from eagle_jax.checkpoint.names import target_tensors
from eagle_jax.files import check_fetched, read_json
from eagle_jax.models.config import ModelConfig
from eagle_jax.types import Params

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_FILE = "pytorch_model.bin"
"""What PyTorch writes, or its parts with a number in their names; read by `experiments.convert` alone."""

LEGACY_BUFFERS = ("rotary_emb.inv_freq", "self_attn.masked_bias")
"""Endings of tensors that old versions of transformers saved and that hold nothing learnt."""

_LOG = logging.getLogger(__name__)

_LANGUAGE_MODEL = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",  # since transformers 4.52
}
"""How a checkpoint with an image encoder begins the names of its language model, and how one of text does."""

_IMAGE_ENCODER = tuple(
    f"{above}{part}." for above in ("", "model.") for part in ("vision_tower", "multi_modal_projector")
)

_FLOATS = ("F64", "F32", "F16", "BF16")


def load_config(directory: str | os.PathLike[str]) -> ModelConfig:
    """The shape of the model in a directory; a context that RoPE scaling stretches is named in the log."""
    directory = pathlib.Path(directory)
    mapping = read_json(directory / "config.json")
    try:
        config = config_from_hf(mapping)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error
    if remark := context_remark(mapping.get("max_position_embeddings", config.max_positions), config):
        _LOG.warning("%s: %s", directory, remark)
    return config


def load_params(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    *,
    dtype: str = "float32",
    place: Place | None = None,
    shardings: Params | None = None,
    progress: Progress | None = None,
) -> Params:
    """The parameter tree of a target; arguments and errors as for `assemble`.

    A tied model may still store an `lm_head.weight`, but only one that equals its embedding. Of a checkpoint with an
    image encoder the language model alone is read.
    """
    specs = target_tensors(config)
    with open_safetensors(weight_files(pathlib.Path(directory)), str(directory)) as source:
        source = language_model(source)
        shapes = {name: shape for name, shape in source.shapes.items() if not name.endswith(LEGACY_BUFFERS)}
        if config.tie_embeddings and "lm_head.weight" in shapes:
            _check_redundant_head(source)
            del shapes["lm_head.weight"]
        source = dataclasses.replace(source, shapes=shapes)
        return assemble(specs, source, dtype=dtype, place=place, shardings=shardings, progress=progress)


def torch_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files of a checkpoint that PyTorch has written, in one part or several."""
    stem, suffix = TORCH_FILE.split(".")
    return sorted(directory.glob(f"{stem}*.{suffix}"))


def weight_files(directory: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
    """The safetensors files of a checkpoint, each with the tensors that an index promises in it (None: no index)."""
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file():
        return {single: None}
    if not index.is_file():
        if torch_files(directory):
            raise ValueError(
                f"{directory} holds its weights as {TORCH_FILE} alone; make safetensors of it with: "
                f"python -m experiments.convert --target={directory} --output=DIRECTORY"
            )
        raise ValueError(f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map")
    files: dict[pathlib.Path, set[str] | None] = {}
    for shard in sorted({str(shard) for shard in weight_map.values()}):
        if not (directory / shard).is_file():
            raise ValueError(f"{index} names the shard {shard}, which is not there")
        files[directory / shard] = {name for name, holder in weight_map.items() if holder == shard}
    return files


@contextlib.contextmanager
def open_safetensors(
    files: Mapping[pathlib.Path, set[str] | None], origin: str, *, integers: tuple[str, ...] = ()
) -> Iterator[TensorSource]:
    """Open safetensors files as one source.

    Args:
      files: as `weight_files` finds them.
      origin: what error messages call the checkpoint.
      integers: endings of tensors that hold whole numbers or booleans and no weights.

    Raises:
      ValueError: a file is cut or damaged, disagrees with the index, holds a tensor that another one holds too, or one
        that is not floating-point.
    """
    with contextlib.ExitStack() as stack:
        holders: dict[str, Any] = {}
        where: dict[str, pathlib.Path] = {}
        for path in files:
            check_fetched(path)
            try:
                handle = stack.enter_context(safe_open(path, framework="numpy"))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path} is not a complete safetensors file: {error}") from error
            for name in handle.keys():  # noqa: SIM118 (a handle is no dict)
                if name in where:
                    raise ValueError(f"{origin}: tensor {name} is in both {where[name].name} and {path.name}")
                holders[name], where[name] = handle, path
        _check_index(files, where)
        shapes = {}
        for name, handle in holders.items():
            part = handle.get_slice(name)
            if part.get_dtype() not in _FLOATS and not name.endswith((*LEGACY_BUFFERS, *integers)):
                known = ", ".join(_FLOATS)
                raise ValueError(f"{where[name]}: tensor {name} has type {part.get_dtype()}; {known} are supported")
            shapes[name] = tuple(part.get_shape())
        yield TensorSource(
            origin,
            shapes,
            lambda name: holders[name].get_tensor(name),
            lambda name, part: holders[name].get_slice(name)[part],
        )


def _check_index(files: Mapping[pathlib.Path, set[str] | None], where: Mapping[str, pathlib.Path]) -> None:
    """Each file holds exactly the tensors that the index promises in it, but for buffers that need not be there."""
    for path, promised in files.items():
        present = {name for name, holder in where.items() if holder == path}
        differing = present ^ (promised or present)
        differing = {name for name in differing if name in present or not name.endswith(LEGACY_BUFFERS)}
        if differing:
            name = min(differing)
            side = "the file but not in the index" if name in present else "the index but not in the file"
            raise ValueError(f"{path}: tensor {name} is in {side}")


def language_model(source: TensorSource) -> TensorSource:
    """The language model of a checkpoint that has an image encoder too, under the names of one of text alone."""
    if not any(name.startswith(tuple(_LANGUAGE_MODEL)) for name in source.shapes):
        return source
    stored = {_text_name(name): name for name in source.shapes if not name.startswith(_IMAGE_ENCODER)}
    read_part = source.read_part
    return TensorSource(
        source.origin,
        {name: source.shapes[there] for name, there in stored.items()},
        lambda name: source.read(stored[name]),
        None if read_part is None else lambda name, part: read_part(stored[name], part),
    )


def _text_name(name: str) -> str:
    for prefix, ours in _LANGUAGE_MODEL.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name


def _check_redundant_head(source: TensorSource) -> None:
    """A tied model reads its LM head from the embedding; a stored one that differs would be dropped silently."""
    embedding = "model.embed_tokens.weight"
    if embedding not in source.shapes:
        raise ValueError(f"{source.origin}: tensor {embedding} is missing")
    if not np.array_equal(source.read("lm_head.weight"), source.read(embedding)):
        raise ValueError(f"{source.origin}: tie_word_embeddings is true, but lm_head.weight differs from {embedding}")
