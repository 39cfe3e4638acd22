"""Tokenizers from GGUF metadata, against the tokenizer classes that transformers has for the same families."""

import contextlib
import json
import unicodedata
from typing import Any

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.tokenization_utils_base import generate_merges

from eagle_jax.chat import TextStream
from eagle_jax.checkpoint.gguf_tokenizer import tokenizer_from_gguf

CORPUS = [
    "It's 2024: the theatre opens at 10, they'll be there.",
    "naïve café, 12345 tokens\n\n  indented\tcode",
    "日本",
]
TEXTS = st.text(st.sampled_from("thea ies'lI0123459.,:\n\t éï日本e\u0301\U0001f600"), max_size=40)
CONTROL, NORMAL, BYTE = 3, 1, 6


def byte_level_metadata(pre: str, **changes: Any) -> dict[str, Any]:
    """What a file says about a small byte-level BPE with two control tokens at its end."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    state = json.loads(trained.to_str())["model"]
    tokens = [*sorted(state["vocab"], key=state["vocab"].get), "<|start|>", "<|end|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * (len(tokens) - 2) + [CONTROL] * 2,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in state["merges"]],
        "tokenizer.ggml.bos_token_id": len(tokens) - 2,
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        **changes,
    }


QWEN2 = byte_level_metadata("qwen2")
QWEN2_OURS = tokenizer_from_gguf(QWEN2)
QWEN2_THEIRS = transformers.Qwen2Tokenizer(
    vocab={token: index for index, token in enumerate(QWEN2["tokenizer.ggml.tokens"])},
    merges=[tuple(merge.split(" ")) for merge in QWEN2["tokenizer.ggml.merges"]],
    unk_token="<|end|>",
    eos_token="<|end|>",
    pad_token="<|end|>",
)


@given(text=TEXTS)
def test_qwen2_is_that_of_transformers(text: str) -> None:
    assert QWEN2_OURS.encode(text).ids == QWEN2_THEIRS.encode(text)


@given(text=st.text(max_size=30))
def test_byte_level_round_trip(text: str) -> None:
    ids = QWEN2_OURS.encode(text).ids
    assert QWEN2_OURS.decode(ids) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["a", " 12345", " ", " b", "'s", "\n", "\n", "c", ".", "\n"]),
        ("smollm", ["a", " ", "1", "2", "3", "4", "5", " ", " b", "'s", "\n", "\n", "c", ".", "\n"]),
        ("llama-bpe", ["a", " ", "123", "45", " ", " b", "'s", "\n\n", "c", ".\n"]),
        ("qwen2", ["a", " ", "1", "2", "3", "4", "5", " ", " b", "'s", "\n\n", "c", ".\n"]),
        ("tekken", ["a", " ", "1", "2", "3", "4", "5", " ", " b", "'s", "\n\n", "c", ".\n"]),
    ],
)
def test_split_rules(pre: str, pieces: list[str]) -> None:
    split = tokenizer_from_gguf(byte_level_metadata(pre)).pre_tokenizer
    found = split.pre_tokenize_str("a 12345  b's\n\nc.\n")
    assert [piece.replace("Ġ", " ").replace("Ċ", "\n") for piece, _ in found] == pieces


def test_control_tokens_are_special() -> None:
    start, end = QWEN2["tokenizer.ggml.bos_token_id"], QWEN2["tokenizer.ggml.eos_token_id"]
    ids = QWEN2_OURS.encode("<|start|>the<|end|>").ids
    assert ids[0] == start
    assert ids[-1] == end
    assert QWEN2_OURS.decode(ids) == "the"
    assert QWEN2_OURS.get_vocab_size() == len(QWEN2["tokenizer.ggml.tokens"])


@pytest.mark.parametrize(("pre", "flag", "wanted"), [("qwen2", None, 0), ("llama-bpe", None, 1), ("qwen2", True, 1)])
def test_bos(pre: str, flag: bool | None, wanted: int) -> None:
    changes = {} if flag is None else {"tokenizer.ggml.add_bos_token": flag}
    metadata = byte_level_metadata(pre, **changes)
    bos = metadata["tokenizer.ggml.bos_token_id"]
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.encode("the").ids[:wanted] == [bos] * wanted
    assert bos not in tokenizer.encode("the").ids[wanted:]
    assert bos not in tokenizer.encode("the", add_special_tokens=False).ids


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """What a file says about a small SentencePiece BPE: scores fall with the rank, single letters have none."""
    letters = sorted({letter for text in CORPUS for letter in text.replace(" ", "▁")} | {"▁"})
    words = ["▁t", "he", "▁the", "th", "▁th", "at", "er", "re", "▁a", "ie", "ies", "▁▁", "aa", "aaa", "12"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    types = [2, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(words) + len(letters))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(words))] + [-1e3] * len(letters),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **changes,
    }


LLAMA = sentencepiece_metadata()
LLAMA_OURS = tokenizer_from_gguf(LLAMA)
LLAMA_THEIRS = transformers.LlamaTokenizer(
    vocab={token: index for index, token in enumerate(LLAMA["tokenizer.ggml.tokens"])},
    merges=generate_merges(
        {token: index for index, token in enumerate(LLAMA["tokenizer.ggml.tokens"])},
        dict(zip(LLAMA["tokenizer.ggml.tokens"], LLAMA["tokenizer.ggml.scores"], strict=True)),
    ),
)


@given(text=TEXTS.filter(lambda text: text and not text.startswith(" ")))
def test_sentencepiece_is_that_of_transformers(text: str) -> None:
    ids = LLAMA_OURS.encode(text, add_special_tokens=False).ids
    assert ids == LLAMA_THEIRS.encode(text, add_special_tokens=False)
    assert LLAMA_OURS.decode(ids) == text


@given(text=TEXTS)
def test_sentencepiece_can_be_streamed(text: str) -> None:
    stream = TextStream(LLAMA_OURS.decode)
    assert "".join(stream.push([token]) for token in LLAMA_OURS.encode(text).ids) + stream.finish() == text


def test_sentencepiece_starts_with_bos_and_falls_back_to_bytes() -> None:
    ids = LLAMA_OURS.encode("the \U0001f600").ids
    tokens = [LLAMA["tokenizer.ggml.tokens"][index] for index in ids]
    assert tokens == ["<s>", "▁the", "▁", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]


def test_sentencepiece_without_a_leading_space() -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece_metadata(**{"tokenizer.ggml.add_space_prefix": False}))
    assert tokenizer.decode(tokenizer.encode(" the").ids) == " the"
    assert tokenizer.encode("the", add_special_tokens=False).tokens == ["t", "he"]


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": 7},
        {"tokens": "abc"},
        {"tokens": [1, 2, 3]},
        {"merges": 7},
        {"merges": ["a"]},
        {"merges": ["no such"]},
        {"token_type": [1, 2]},
        {"token_type": 3},
        {"add_bos_token": True, "bos_token_id": 100_000},
        {"add_bos_token": True, "bos_token_id": "<s>"},
        {"pre": ["qwen2"]},
        {"model": 3},
    ],
)
def test_damaged_metadata_is_never_anything_but_a_value_error(changes: dict[str, Any]) -> None:
    named = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    for metadata in (QWEN2, LLAMA):
        with contextlib.suppress(ValueError):
            tokenizer_from_gguf({**metadata, **named})
    with pytest.raises(ValueError, match=r"tokenizer") as caught:
        tokenizer_from_gguf({**QWEN2, **named})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"scores": [0.0]}, {"scores": 1.0}, {"unknown_token_id": 100_000}])
def test_damaged_sentencepiece(changes: dict[str, Any]) -> None:
    named = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    with pytest.raises(ValueError, match=r"scores has 1 entries|is damaged|is 100000, but there are"):
        tokenizer_from_gguf({**LLAMA, **named})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model is 't5'; supported are gpt2, llama"),
        ({"tokenizer.ggml.pre": "poro"}, "tokenizer.ggml.pre is 'poro'; supported are gpt-2, smollm"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.merges": []}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores is missing"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}, "bos_token_id is missing"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tokenizer_from_gguf({**QWEN2, **changes})
