"""Builds a tokenizer from GGUF metadata: byte-level BPE (`gpt2`) and SentencePiece BPE (`llama`).

How a text is split before BPE is not in the file, only the name of a rule (`tokenizer.ggml.pre`). The rules below are
those of the models' own `tokenizer.json`; an unknown name is an error, since a wrong split gives wrong ids silently.
"""

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
"""Token types: pieces that BPE makes, markers such as end of text, and words that BPE may not split."""

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
    kind = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise ValueError(f"tokenizer.ggml.model is {kind!r}; supported are {', '.join(builders)}")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ValueError("tokenizer.ggml.tokens is missing or empty")
    tokenizer = builders[kind](metadata, {token: index for index, token in enumerate(tokens)})
    types = metadata.get("tokenizer.ggml.token_type", [])
    listed = [(token, sort) for token, sort in zip(tokens, types, strict=False) if sort in (_CONTROL, _USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(token, special=sort == _CONTROL, normalized=False) for token, sort in listed])
    # As llama.cpp: these families start a text with BOS unless the file says otherwise.
    default = kind == "llama" or metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS_FIRST
    if metadata.get("tokenizer.ggml.add_bos_token", default):
        bos = metadata.get("tokenizer.ggml.bos_token_id")
        if bos is None:
            raise ValueError("texts start with BOS, but tokenizer.ggml.bos_token_id is missing")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", pair=None, special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], vocab: dict[str, int]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _SPLITS:
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}; supported are {', '.join(_SPLITS)}")
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", [])]
    if not merges:
        raise ValueError("tokenizer.ggml.merges is missing or empty")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre in _WHOLE_WORDS_FIRST))
    if _SPLITS[pre] is _SPLITS["qwen2"]:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_SPLITS[pre])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], vocab: dict[str, int]) -> Tokenizer:
    """SentencePiece stores scores instead of merges: any pair of pieces that makes a piece is a merge, best first.

    A space is put before each stretch of text between special tokens, as in llama.cpp and in Llama 2's own files.
    """
    scores = metadata.get("tokenizer.ggml.scores")
    if not scores:
        raise ValueError("tokenizer.ggml.scores is missing or empty")
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(vocab)
    merges = [
        (-scores[index], -cut, index, (token[:cut], token[cut:]))
        for token, index in vocab.items()
        if types[index] == _NORMAL
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[merge[-1] for merge in sorted(merges)],
            unk_token=None if unknown is None else metadata["tokenizer.ggml.tokens"][unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    space: list[Any] = [normalizers.Replace(" ", "▁")]
    strip = []
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        space.insert(0, normalizers.Prepend("▁"))
        strip.append(decoders.Strip(" ", left=1, right=0))
    tokenizer.normalizer = normalizers.Sequence(space)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer
