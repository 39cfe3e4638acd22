"""SentencePiece BPE, the tokenizer of Llama 1 and 2 and of early Mistrals: as GGUF metadata or as `tokenizer.model`.

A space is put before each stretch of text between special tokens, as in Llama 2's own files and in llama.cpp, so both
formats give the same ids. The file is a protocol buffer (`sentencepiece_model.proto` of the SentencePiece repository),
of which a few fields are read here, so that neither package is needed.
"""

import dataclasses
import pathlib
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from eagle_jax.files import check_fetched

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Types: pieces that BPE makes, the one for all else, marks such as end of text, and words that BPE may not split."""

_BPE = 2  # `model_type` of the trainer


@dataclasses.dataclass(frozen=True)
class Pieces:
    """A vocabulary, by token id."""

    texts: Sequence[str]
    scores: Sequence[float]  # the greater, the earlier it is merged
    types: Sequence[int]
    bos_id: int | None = None
    eos_id: int | None = None
    unknown_id: int | None = None
    space_prefix: bool = True


def sentencepiece_bpe(pieces: Pieces) -> Tokenizer:
    """A tokenizer without special tokens.

    SentencePiece stores scores instead of merges: any pair of pieces that makes a piece is a merge, best first.
    """
    vocab = {text: index for index, text in enumerate(pieces.texts)}
    merges = [
        (-pieces.scores[index], -cut, index, (text[:cut], text[cut:]))
        for text, index in vocab.items()
        if pieces.types[index] == NORMAL
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[merge[-1] for merge in sorted(merges)],
            unk_token=None if pieces.unknown_id is None else pieces.texts[pieces.unknown_id],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space: list[Any] = [normalizers.Replace(" ", "▁")]
    strip = []
    if pieces.space_prefix:
        space.insert(0, normalizers.Prepend("▁"))
        strip.append(decoders.Strip(" ", left=1, right=0))
    tokenizer.normalizer = normalizers.Sequence(space)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer, texts: Sequence[str], types: Sequence[int]) -> None:
    """Mark control tokens and user-defined words, which stand for themselves wherever a text has them."""
    listed = [(text, kind) for text, kind in zip(texts, types, strict=True) if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(text, special=kind == CONTROL, normalized=False) for text, kind in listed])


def start_with(tokenizer: Tokenizer, text: str, token: int) -> None:
    """Let every text begin with this token."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{text} $A", pair=None, special_tokens=[(text, token)]
    )


def read_sentencepiece(path: pathlib.Path) -> Pieces:
    """The vocabulary of a `tokenizer.model`.

    Raises:
      ValueError: no SentencePiece model, or one of another kind than Llama's.
    """
    check_fetched(path)
    try:
        return _parse(path.read_bytes())
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a complete SentencePiece model: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parse(data: bytes) -> Pieces:
    texts, scores, types = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            texts.append(piece[1].decode() if 1 in piece else "")
            scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
            types.append(piece.get(3, NORMAL))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    if not texts:
        raise ValueError("it is no SentencePiece model: it has no pieces")
    if trainer.get(3, 1) != _BPE:
        raise ValueError(f"a SentencePiece model of type {trainer.get(3, 1)}; BPE, which is {_BPE}, is supported")
    if normalizer.get(2) or normalizer.get(4, 1):
        raise ValueError("its SentencePiece model normalises texts or drops spaces, which is not supported")
    ids = {name: trainer.get(field, default) for name, field, default in _IDS}
    known = {name: token if 0 <= token < len(texts) else None for name, token in ids.items()}
    return Pieces(texts, scores, types, **known, space_prefix=bool(normalizer.get(3, 1)))


_IDS = (("unknown_id", 40, 0), ("bos_id", 41, 1), ("eos_id", 42, 2))
"""Fields of the trainer's settings and their defaults; -1, which is 2**64 - 1 in the file, is no token."""


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of the fields of a message: whole numbers, or bytes."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"it is no SentencePiece model: wire type {kind} at byte {place}")
        if place + size > len(data):
            raise IndexError(f"it ends before byte {place + size}")
        yield tag >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, and the place after it."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
