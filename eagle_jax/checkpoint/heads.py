"""Reads and writes draft heads: a `config.json`, flat or nested as in the library speculators, and safetensors.

What SGLang and vLLM load, and what is published for them. Engines skip or invent weights where names do not fit; here
every tensor of the file has a place in the head, and every place its tensor. Two exceptions, both of the format: most
files carry a copy of the target's embedding, which is dropped, since the target's own is used; and where the draft
vocabulary is the target's, `d2t` and `t2d` hold nothing new and are passed over.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from eagle_jax.checkpoint.assemble import Place, TensorSource, assemble, check_dtype, convert
from eagle_jax.checkpoint.draft_vocabulary import (
    DEFAULT_SIZE,
    check_ranks,
    offsets_from_ids,
    read_target_ids,
    write_ranks,
)
from eagle_jax.checkpoint.head_config import (
    OWN_EMBEDDING,
    config_from_flat,
    config_to_flat,
    fit_to_target,
)
from eagle_jax.checkpoint.head_formats import (
    D2T,
    EMBEDDING,
    ENGINES,
    FLAT,
    HEAD_FORMATS,
    LM_HEAD,
    T2D,
    Engine,
    flat_names,
    head_tensors,
    kind_of,
)
from eagle_jax.checkpoint.hf import LEGACY_BUFFERS, SINGLE_FILE, TORCH_FILE, open_safetensors, torch_files, weight_files
from eagle_jax.checkpoint.names import TensorSpec, insert, lookup, table
from eagle_jax.checkpoint.save_target import config_to_hf
from eagle_jax.checkpoint.speculators import LAYER as NESTED_LAYER
from eagle_jax.checkpoint.speculators import nest, read_head_config
from eagle_jax.files import new_directory
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadConfig, HeadParams, head_kind

Shardings = Callable[[HeadConfig, HeadParams], HeadParams]
"""(config, weights or their shapes) -> where each of them goes."""


@contextlib.contextmanager
def open_head(directory: pathlib.Path) -> Iterator[tuple[TensorSource, dict[str, str]]]:
    """The tensors of a head under their names in the flat format, and for each of these the one in the file.

    Raises:
      ValueError: no safetensors, damaged ones, or two tensors that mean the same.
    """
    if torch_files(directory) and not list(directory.glob("*.safetensors*")):
        raise ValueError(
            f"{directory} holds its weights as {TORCH_FILE} alone; make safetensors of it with: "
            f"python -m experiments.convert --head={directory} --output=DIRECTORY"
        )
    with open_safetensors(weight_files(directory), str(directory), integers=(D2T, T2D)) as source:
        stored = [name for name in source.shapes if not name.endswith(LEGACY_BUFFERS)]
        kind = kind_of(stored)
        names = flat_names(stored, kind)
        names = {flat: name for flat, name in names.items() if not flat.startswith(HEAD_FORMATS[kind].passed_over)}
        shapes = {flat: source.shapes[name] for flat, name in names.items()}
        read_part = source.read_part
        yield (
            TensorSource(
                source.origin,
                shapes,
                lambda flat: source.read(names[flat]),
                read_part and (lambda flat, part: read_part(names[flat], part)),
            ),
            names,
        )


def load_head(
    directory: str | os.PathLike[str],
    target: ModelConfig,
    *,
    dtype: str = "float32",
    place: Place | None = None,
    shardings: Shardings | None = None,
) -> tuple[HeadConfig, HeadParams]:
    """Read a head for a target.

    A head without an LM head comes back with `lm_head` None: it drafts from the target's, all of it or, through
    `draft_vocabulary.with_draft_vocabulary`, the rows of the most frequent tokens.

    Args:
      directory: with `config.json` and safetensors, in one file or in shards.
      target: shape of the target that the head is to draft for.
      dtype: of the weights: float32, bfloat16 or float16.
      place: as for `assemble`.
      shardings: where the weights go, one tensor after the other, instead of `place`.

    Raises:
      ValueError: whatever does not fit, in one line that names it: a key, a tensor, a token of `d2t`, or the target.
    """
    directory = pathlib.Path(directory)
    check_dtype(dtype)
    try:
        mapping = read_head_config(directory)
        with open_head(directory) as (source, _):
            config = fit_to_target(mapping, config_from_flat(mapping, source.shapes), target)
            stored = _Stored(
                mapping.get("draft_vocab_size"),
                config.layer.width != target.width or bool(mapping.get(OWN_EMBEDDING)),
            )
            return config, _read(source, config, stored, dtype, place, shardings)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(directory) in text else f"{directory}: {text}") from error


class _Stored(NamedTuple):
    """Which parts the file must hold."""

    draft_vocab_size: int | None  # of the config
    own_embedding: bool  # else what it may hold is a copy of the target's


def _read(
    source: TensorSource,
    config: HeadConfig,
    stored: _Stored,
    dtype: str,
    place: Place | None,
    shardings: Shardings | None,
) -> HeadParams:
    """The weights."""
    width, vocab_size = config.layer.width, config.layer.vocab_size
    size = stored.draft_vocab_size
    target_ids: Any = None
    shapes, specs = dict(source.shapes), head_tensors(config)
    if stored.own_embedding:
        specs[EMBEDDING] = table(("embedding",), vocab_size, width)
    elif tuple(shapes.pop(EMBEDDING, (vocab_size, width))) != (vocab_size, width):
        shape = tuple(source.shapes[EMBEDDING])
        raise ValueError(f"tensor {EMBEDDING} has shape {shape}, that of the target is {(vocab_size, width)}")
    if HEAD_FORMATS[config.kind].own_lm_head:
        if LM_HEAD in shapes or size is not None or width != config.target_width:
            specs[LM_HEAD] = table(("lm_head",), size or vocab_size, width)
        target_ids = read_target_ids(source, size or vocab_size, vocab_size)
        shapes = {name: shape for name, shape in shapes.items() if name not in (D2T, T2D)}
    places: Any = None
    if shardings:
        at: Any = shardings(config, _shapes(specs, target_ids))
        places = {**at.weights, "lm_head": at.lm_head, "embedding": at.embedding}
        if target_ids is not None:
            target_ids = jax.make_array_from_callback(target_ids.shape, at.target_ids, target_ids.__getitem__)
    elif place and target_ids is not None:
        target_ids = place(("target_ids",), target_ids)
    source = dataclasses.replace(source, shapes=shapes)
    tree = assemble(specs, source, dtype=dtype, place=place, shardings=places)
    return _params(tree, target_ids)


def _shapes(specs: Mapping[str, TensorSpec], target_ids: np.ndarray | None) -> HeadParams:
    """The shapes of the weights that `specs` name."""
    tree: dict[str, Any] = {}
    for spec in specs.values():
        insert(tree, spec.path, jax.ShapeDtypeStruct(spec.shape, np.float32))
    return _params(tree, target_ids)


def _params(tree: Mapping[str, Any], target_ids: Any) -> HeadParams:
    """From a tree that holds the LM head and the embedding beside the weights."""
    weights = {name: leaf for name, leaf in tree.items() if name not in ("lm_head", "embedding")}
    return HeadParams(weights, tree.get("lm_head"), target_ids, tree.get("embedding"))


def save_head(
    directory: str | os.PathLike[str],
    config: HeadConfig,
    params: HeadParams,
    target: ModelConfig,
    *,
    dtype: str = "bfloat16",
    engine: Engine | None = "sglang",
    frozen_lm_head: bool = False,
    token_ranks: Sequence[int] | np.ndarray | None = None,
    verifier: str = "",
) -> None:
    """Write a head as an engine loads it, all of it or nothing.

    Args:
      directory: must not exist, or be empty.
      config: shape of the head.
      params: its weights.
      target: shape of the target; taps other than the default are written in the conventions of both engines.
      dtype: of the stored weights.
      engine: EAGLE-1 heads differ (SGLang needs a bias of fc, vLLM refuses it); EAGLE-3 heads are the same for both,
        but vLLM knows more norms. speculators has a nested config and no frozen LM heads. None: no engine has heads
        of this kind, it is written for this package alone.
      frozen_lm_head: the LM head is the target's own rows, so none is stored; engines then use all of the target's.
      token_ranks: target ids, the most frequent first, stored beside a frozen LM head, of which they pick the rows.
      verifier: name or path under which vLLM shall load the target; the directories of speculators need it.

    Raises:
      ValueError: something is there already, or the format cannot hold this head.
    """
    tensors = {
        name: spec.to_stored(np.asarray(lookup(params.weights, spec.path)))
        for name, spec in head_tensors(config).items()
    }
    config = _fit_bias(config, tensors, engine)
    if params.embedding is not None:
        tensors[EMBEDDING] = np.asarray(params.embedding)
    size = None
    if not frozen_lm_head:
        size = _add_lm_head(tensors, config, params)
    mapping = config_to_flat(config, target, engine=engine, dtype=dtype, draft_vocab_size=size)
    ranks = None if token_ranks is None else check_ranks(np.asarray(token_ranks), target.vocab_size)
    mapping |= _default_size(params, ranks, frozen_lm_head)
    own_embedding = params.embedding is not None
    _check_embedding(config, target, engine, own=own_embedding)
    if engine is not None and engine not in FLAT:
        if frozen_lm_head or not verifier:
            lacks = "an LM head" if frozen_lm_head else "the name of its target (verifier)"
            raise ValueError(f"a head for {ENGINES[engine]} is stored with {lacks}, got none")
        form, of_target = HEAD_FORMATS[config.kind], config_to_hf(target, dtype)
        mapping = nest({**mapping, OWN_EMBEDDING: own_embedding}, form, verifier, of_target["architectures"])
        tensors = {name.replace(form.layer, NESTED_LAYER): value for name, value in tensors.items()}
    wanted = check_dtype(dtype)
    tensors = {name: convert(value, wanted, name, str(directory)) for name, value in tensors.items()}
    if params.target_ids is not None and size not in (None, target.vocab_size):
        ids = np.sort(np.asarray(params.target_ids))
        tensors |= {D2T: offsets_from_ids(ids), T2D: np.isin(np.arange(target.vocab_size), ids)}
    with new_directory(directory) as folder:
        save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(mapping, indent=2) + "\n", encoding="utf-8")
        if ranks is not None:
            write_ranks(folder, ranks, target.vocab_size)


def _fit_bias(config: HeadConfig, tensors: dict[str, np.ndarray], engine: Engine | None) -> HeadConfig:
    """Give fc the bias that the engine's head has, or take it away where it is zero."""
    if engine is None:
        return config
    if engine in HEAD_FORMATS[config.kind].fc_bias and not config.fc_bias:
        tensors["fc.bias"] = np.zeros(config.layer.width, np.float32)  # left out, the engine's values stay random
        return dataclasses.replace(config, fc_bias=True)
    if engine != "sglang" and config.fc_bias:
        largest = float(np.abs(tensors.pop("fc.bias").astype(np.float32)).max())
        if largest:
            raise ValueError(f"{ENGINES[engine]} knows no bias of fc, this head has one of up to {largest:g}")
        return dataclasses.replace(config, fc_bias=False)
    return config


def _check_embedding(config: HeadConfig, target: ModelConfig, engine: Engine | None, *, own: bool) -> None:
    """Refuse heads of another width than their target's without an embedding, and one where no place is for it."""
    needs_one = config.layer.width != target.width
    if own != needs_one and (engine in (*FLAT, None) or needs_one):
        raise ValueError(
            f"a head of width {config.layer.width} for a target of width {target.width} needs "
            f"{'no' if own else 'an'} embedding of its own"
        )


def _add_lm_head(tensors: dict[str, np.ndarray], config: HeadConfig, params: HeadParams) -> int | None:
    """Put the LM head among the tensors, its rows in the order of the target's ids; returns their number U."""
    if not HEAD_FORMATS[config.kind].own_lm_head:
        if params.lm_head is not None:
            title = head_kind(config.kind).title
            raise ValueError(f"{title} heads are stored without an LM head: it must be the target's, frozen_lm_head")
        return None
    if params.lm_head is None:
        raise ValueError("the head has no LM head to store: give it rows of the target's, or say frozen_lm_head")
    rows = np.asarray(params.lm_head)
    if params.target_ids is not None:
        rows = rows[np.argsort(np.asarray(params.target_ids))]
    tensors[LM_HEAD] = rows
    return len(rows)


def _default_size(params: HeadParams, ranks: np.ndarray | None, frozen: bool) -> dict[str, Any]:
    """The config's key for the rows to take of a frozen LM head."""
    if ranks is not None and not frozen:
        raise ValueError("a ranking of tokens belongs to a frozen LM head, this head stores its own")
    if not frozen or params.target_ids is None:
        return {}
    ids = np.asarray(params.target_ids)
    if ranks is None or set(ranks[: len(ids)].tolist()) != set(ids.tolist()):
        has = "none was given" if ranks is None else f"the first {len(ids)} of the one given are others"
        raise ValueError(f"a draft vocabulary of {len(ids)} tokens is stored as a ranking of tokens, and {has}")
    return {DEFAULT_SIZE: len(ids)}
