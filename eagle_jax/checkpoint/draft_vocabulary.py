"""The tokens that a head can draft: `d2t` of the file format, and the most frequent tokens of the target.

A head whose LM head was never trained uses rows of its target's. It ships none of them but a ranking, so that the size
of the draft vocabulary is chosen when it is loaded: fewer rows are faster, more rows guess more tokens right. A draft
model may have a ranking beside it too.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from eagle_jax.checkpoint.assemble import TensorSource
from eagle_jax.checkpoint.head_formats import D2T, T2D
from eagle_jax.files import check_fetched, read_json
from eagle_jax.kernels.packed import PackedMatrix
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.models.layers import lookup_rows
from eagle_jax.models.transformer import lm_head_rows
from eagle_jax.types import Params

RANKS_FILE = "token_ranks.npy"
"""Ids of the target's tokens beside a head or draft model, the most frequent first; uint16 or int32."""

DEFAULT_SIZE = "default_draft_vocab_size"
"""Our own key of a config, read by no engine: the draft vocabulary where no other is given."""


def ids_from_offsets(offsets: np.ndarray, vocab_size: int) -> np.ndarray:
    """Target ids i32[U] of the draft tokens, from `d2t` [U].

    Raises:
      ValueError: an id outside the vocabulary, or one that two draft tokens share.
    """
    if offsets.dtype.kind not in "iu":
        raise ValueError(f"d2t holds {offsets.dtype.name}, expected whole numbers")
    ids = np.arange(len(offsets)) + offsets.astype(np.int64)
    outside = np.flatnonzero((ids < 0) | (ids >= vocab_size))
    if outside.size:
        draft = outside[0]
        raise ValueError(
            f"d2t sends draft token {draft} to token {ids[draft]} of a vocabulary of {vocab_size}; it must hold "
            "offsets: target id less draft id"
        )
    _check_distinct(ids, "d2t sends two draft tokens to token {}")
    return ids.astype(np.int32)


def offsets_from_ids(ids: np.ndarray) -> np.ndarray:
    """`d2t` i64[U] for target ids [U]."""
    return ids.astype(np.int64) - np.arange(len(ids))


def check_mask(mask: np.ndarray, ids: np.ndarray) -> None:
    """Refuse a `t2d` bool[V] that does not name exactly the tokens `ids` of `d2t`."""
    named, wanted = mask.astype(bool), np.zeros(mask.shape, bool)
    wanted[ids] = True
    differ = np.flatnonzero(named != wanted)
    if differ.size:
        token = differ[0]
        sides = ("t2d", "d2t") if named[token] else ("d2t", "t2d")
        raise ValueError(f"token {token} is in the draft vocabulary of {sides[0]}, but not in that of {sides[1]}")


def read_target_ids(source: TensorSource, size: int, vocab_size: int) -> np.ndarray | None:
    """Target ids i32[U] of a head's `size` draft tokens; None where these are all of the target's vocabulary.

    Raises:
      ValueError: `d2t` is missing or no mapping into the vocabulary, or `t2d` says otherwise.
    """
    if size == vocab_size:
        return None
    if D2T not in source.shapes:
        raise ValueError(f"tensor {D2T} is missing: draft_vocab_size is {size}, vocab_size {vocab_size}")
    for name, length in ((D2T, size), (T2D, vocab_size)):
        if name in source.shapes and tuple(source.shapes[name]) != (length,):
            raise ValueError(f"tensor {name} has shape {tuple(source.shapes[name])}, expected {(length,)}")
    ids = ids_from_offsets(source.read(D2T), vocab_size)
    if T2D in source.shapes:
        check_mask(source.read(T2D), ids)
    return ids


def check_ranks(ranks: np.ndarray, vocab_size: int) -> np.ndarray:
    """The ranking as i32[R]: distinct tokens of the vocabulary, not necessarily all of them."""
    if ranks.ndim != 1 or ranks.dtype.kind not in "iu" or not ranks.size:
        raise ValueError(f"a ranking is a list of token ids, got {ranks.dtype.name} of shape {ranks.shape}")
    if ranks.min() < 0 or ranks.max() >= vocab_size:
        bad = ranks.min() if ranks.min() < 0 else ranks.max()
        raise ValueError(f"the ranking holds token {bad}, outside the vocabulary of {vocab_size}")
    _check_distinct(ranks, "the ranking holds token {} twice")
    return ranks.astype(np.int32)


def read_ranks(directory: pathlib.Path, vocab_size: int) -> np.ndarray | None:
    """The ranking beside a head, None where there is none.

    Raises:
      ValueError: a file that is none, or ranks other tokens than the target's.
    """
    path = directory / RANKS_FILE
    if not path.exists():
        return None
    check_fetched(path)
    try:
        ranks = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not readable: {error}") from error
    try:
        return check_ranks(ranks, vocab_size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


class Ranking(NamedTuple):
    """What is stored beside a head or a draft model for its draft vocabulary."""

    ranks: np.ndarray  # ids of the target's tokens, the most frequent first
    size: int  # of them drafted where no other number is given

    def save(self, directory: pathlib.Path, vocab_size: int) -> None:
        """The ranking in its file, and the size in the `config.json` that is there."""
        write_ranks(directory, self.ranks, vocab_size)
        path = directory / "config.json"
        content = {**read_json(path), DEFAULT_SIZE: self.size}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def ranks_for(directory: pathlib.Path, vocab_size: int, size: int | None, recommended: int | None) -> Ranking | None:
    """The tokens that a head or draft model without an LM head of its own drafts; None for all.

    Args:
      directory: where its ranking is.
      vocab_size: V of the target.
      size: the draft vocabulary that was requested, 0 for all; None: as recommended.
      recommended: the size that its config names, if any.

    Raises:
      ValueError: a part of the vocabulary, and no ranking.
    """
    size = recommended if size is None else size
    if not size or size == vocab_size:
        return None
    ranks = read_ranks(directory, vocab_size)
    if ranks is None:
        raise ValueError(f"{directory} has no {RANKS_FILE}, which a draft vocabulary of {size} tokens needs")
    return Ranking(ranks, size)


def write_ranks(directory: pathlib.Path, ranks: np.ndarray, vocab_size: int) -> None:
    """Put a ranking beside a head."""
    np.save(directory / RANKS_FILE, ranks.astype(np.uint16 if vocab_size <= 1 << 16 else np.int32))


def with_draft_vocabulary(
    head_params: HeadParams,
    target_config: ModelConfig,
    target_params: Params,
    ranks: Sequence[int] | np.ndarray,
    size: int,
) -> HeadParams:
    """The head with the target's LM-head rows of its `size` most frequent tokens, in the order of their ids.

    Args:
      head_params: a head without an LM head of its own, or one that got its rows here.
      target_config: shape of the target.
      target_params: its weights.
      ranks: token ids, the most frequent first.
      size: U; for all V the target's LM head itself is used, without a copy.

    Raises:
      ValueError: more tokens than the ranking has.
    """
    if size == target_config.vocab_size:
        return dataclasses.replace(head_params, lm_head=None, target_ids=None)
    ranked = check_ranks(np.asarray(ranks), target_config.vocab_size)
    if not 1 <= size <= len(ranked):
        raise ValueError(f"a draft vocabulary of {size} tokens was requested, the ranking has 1 to {len(ranked)}")
    ids = jnp.asarray(np.sort(ranked[:size]))
    table = lm_head_rows(target_config, target_params)
    rows = lookup_rows(table, ids)
    if isinstance(table, PackedMatrix):
        rows = rows.astype(table.dtype)
    return dataclasses.replace(head_params, lm_head=rows, target_ids=ids)


def _check_distinct(ids: np.ndarray, message: str) -> None:
    distinct, counts = np.unique(ids, return_counts=True)
    if counts.max(initial=1) > 1:
        raise ValueError(message.format(distinct[counts.argmax()]))
