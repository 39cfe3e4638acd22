"""The draft model that ships for a target: a few layers between the target's own embedding and LM head.

Its directory is a Hugging Face one, in shards, but for those two tables, which make up most of a small model: they are
the target's arrays and not stored again. `configs/train/distill_draft.py` trains such a model.
"""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from eagle_jax import sharding
from eagle_jax.checkpoint import hf
from eagle_jax.checkpoint.assemble import Place, assemble, check_dtype, convert
from eagle_jax.checkpoint.draft_vocabulary import DEFAULT_SIZE, Ranking, ranks_for
from eagle_jax.checkpoint.names import TensorSpec, lookup, target_tensors
from eagle_jax.checkpoint.pretrained import LoadedModel, shipped
from eagle_jax.checkpoint.save_target import config_to_hf
from eagle_jax.files import new_directory, read_json
from eagle_jax.models.config import ModelConfig
from eagle_jax.types import Params

NAME = "distilled"
"""What the draft model that ships is called beside its target."""

BORROWED = ("embed_tokens", "lm_head")
"""Weights that are the target's."""

SHARD_BYTES = 15 * 2**20
"""No file is larger, unless a single tensor is."""


def load_pretrained_draft(
    target: LoadedModel,
    dtype: str = "float32",
    *,
    directory: str | os.PathLike[str] | None = None,
    place: Place | None = None,
) -> tuple[ModelConfig, Params]:
    """Load the draft model that ships for a target, for `make_chain` and `make_ouroboros`.

    Args:
      target: the loaded target, whose embedding and LM head are shared.
      dtype: of the other weights; the target's.
      directory: another one that `save_draft` has written.
      place: puts one finished weight where it belongs; left out, each goes to JAX's default device or, where the target
        is on a mesh, is split over that as a target's.

    Raises:
      ValueError: none ships for this target, or the directory holds something else than a draft of it.
    """
    folder = pathlib.Path(directory) if directory else shipped("distilled draft model", NAME, target.name)
    config = hf.load_config(folder)
    for field in ("vocab_size", "width", "tie_embeddings"):
        own, wanted = getattr(config, field), getattr(target.config, field)
        if own != wanted:
            raise ValueError(f"{folder}: {field} is {own}, that of target {target.name} is {wanted}")
    with hf.open_safetensors(hf.weight_files(folder), str(folder)) as source:
        where: dict[str, Any] = {"place": place or (lambda _, value: jax.device_put(value))}
        if place is None and target.mesh is not None:
            where = {"shardings": sharding.target_shardings(target.mesh, config)}
        params = assemble(_own_tensors(config), source, dtype=dtype, **where)
    return config, params | {name: target.params[name] for name in BORROWED if name in target.params}


def ranking_of(directory: str | os.PathLike[str], vocab_size: int, size: int | None = None) -> Ranking | None:
    """The tokens that the draft model of a directory drafts; None for all.

    Args:
      directory: of this module's kind or a whole model.
      vocab_size: V of the target.
      size: the draft vocabulary that was requested, 0 for all; None: the number that its config recommends.

    Raises:
      ValueError: a part of the vocabulary, and no ranking; or a config that recommends no number.
    """
    folder = pathlib.Path(directory)
    recommended = read_json(folder / "config.json").get(DEFAULT_SIZE)
    if recommended is not None and (not isinstance(recommended, int) or recommended < 0):
        raise ValueError(f"{folder}: {DEFAULT_SIZE} is {recommended!r}, expected a number of tokens")
    return ranks_for(folder, vocab_size, size, recommended)


def save_draft(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    params: Params,
    *,
    dtype: str = "bfloat16",
    shard_bytes: int = SHARD_BYTES,
    ranking: Ranking | None = None,
) -> None:
    """Write what a draft model does not share with its target, all of it or nothing.

    Args:
      directory: must not exist, or be empty.
      config: shape of the draft model.
      params: its weights; those of embedding and LM head are left out.
      dtype: of the stored weights.
      shard_bytes: most bytes of tensors in a file.
      ranking: the tokens that it should draft.

    Raises:
      ValueError: something is there already.
    """
    mapping, wanted = config_to_hf(config, dtype), check_dtype(dtype)
    shards: list[dict[str, np.ndarray]] = [{}]
    for name, spec in _own_tensors(config).items():
        tensor = convert(spec.to_stored(np.asarray(lookup(params, spec.path))), wanted, name, str(directory))
        if shards[-1] and sum(held.nbytes for held in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    files = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    with new_directory(directory) as folder:
        for file, shard in zip(files, shards, strict=True):
            save_file(shard, folder / file, metadata={"format": "pt"})
        for file, content in (("config.json", mapping), (hf.INDEX_FILE, {"weight_map": weight_map})):
            (folder / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if ranking is not None:
            ranking.save(folder, config.vocab_size)


def _own_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """The tensors of a draft model but for those that it borrows."""
    return {name: spec for name, spec in target_tensors(config).items() if spec.path[0] not in BORROWED}
