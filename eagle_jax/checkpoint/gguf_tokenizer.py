"""Builds a tokenizer from GGUF metadata: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`).

How a text is split before BPE is not in the file, only the name of a rule (`tokenizer.ggml.pre`). The rules below are
those of the models' own `tokenizer.json`; an unknown name is an error, since a wrong split gives wrong ids silently.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from eagle_jax.checkpoint.gguf import token_id
from eagle_jax.checkpoint.sentencepiece import NORMAL, Pieces, add_special_tokens, sentencepiece_bpe, start_with

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def _isolate(pattern: str) -> list[Any]:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

_SPLITS: dict[str, list[Any]] = {
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _BYTE_LEVEL],
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _isolate(_LLAMA3_SPLIT)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _isolate(_QWEN2_SPLIT)),
    "tekken": _isolate(_TEKKEN_SPLIT),  # Mistral from Nemo on
}
_WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Rules whose vocabularies take a word as it is where it is a token, whatever its merges say."""


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a file describes.

    Raises:
      ValueError: no vocabulary, or a kind of tokenizer that is not known; the message names it.
    """
    try:
        return _build(metadata)
    except ValueError:
        raise
    # Values of other types, and what tokenizers refuses, for which it has no type of its own.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the tokenizer of this file is damaged: {reason}") from error


def _build(metadata: Mapping[str, Any]) -> Tokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise ValueError(f"tokenizer.ggml.model is {kind!r}; supported are {', '.join(builders)}")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ValueError("tokenizer.ggml.tokens is missing or empty")
    tokenizer = builders[kind](metadata)
    add_special_tokens(tokenizer, tokens, _by_token(metadata, "token_type", [NORMAL] * len(tokens)))
    # As llama.cpp: these families start a text with BOS unless the file says otherwise.
    default = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS_FIRST
    if metadata.get("tokenizer.ggml.add_bos_token", default):
        bos = token_id(metadata, "bos")
        if bos is None:
            raise ValueError("texts start with BOS, but tokenizer.ggml.bos_token_id is missing")
        start_with(tokenizer, tokens[bos], bos)
    return tokenizer


def _by_token(metadata: Mapping[str, Any], name: str, default: Sequence[Any] = ()) -> Sequence[Any]:
    """A list that has something for each token.

    Raises:
      ValueError: there is none and no default, or one of another length.
    """
    key = f"tokenizer.ggml.{name}"
    values, size = metadata.get(key) or default, len(metadata["tokenizer.ggml.tokens"])
    if not values:
        raise ValueError(f"{key} is missing or empty")
    if len(values) != size:
        raise ValueError(f"{key} has {len(values)} entries, but there are {size} tokens")
    return values


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _SPLITS:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}; supported are {', '.join(_SPLITS)}")
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", [])]
    if not merges:
        raise ValueError("tokenizer.ggml.merges is missing or empty")
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST))
    if _SPLITS[pre] is _SPLITS["qwen2"]:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    tokens = metadata["tokenizer.ggml.tokens"]
    return sentencepiece_bpe(
        Pieces(
            texts=tokens,
            scores=_by_token(metadata, "scores"),
            types=_by_token(metadata, "token_type", [NORMAL] * len(tokens)),
            unknown_id=token_id(metadata, "unknown"),
            space_prefix=metadata.get("tokenizer.ggml.add_space_prefix", True),
        )
    )
