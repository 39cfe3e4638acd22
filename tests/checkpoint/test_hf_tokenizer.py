"""Tokenizers of Hugging Face directories: what the files say, whatever class they name."""

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from eagle_jax.chat import tokenizer_from_backend
from eagle_jax.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from eagle_jax.checkpoint.hf_tokenizer import tokenizer_from_directory
from eagle_jax.checkpoint.sentencepiece import read_sentencepiece
from tests.checkpoint.test_gguf_tokenizer import LLAMA
from tests.test_chat import END, TEMPLATE, byte_backend, wrap


def save(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    """A directory with a tokenizer as transformers saves it."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_backend(), chat_template=TEMPLATE, bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    ("config", "generation", "wanted"),
    [
        ({}, None, (END,)),
        ({"eos_token_id": 7}, None, (7, END)),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": [8, 9]}, (7, 8, 9, END)),
        ({"eos_token_id": None}, {"eos_token_id": 9}, (9, END)),
        ({"eos_token_id": [-1, 7, None]}, {"eos_token_id": -1}, (7, END)),  # no token
        ({"eos_token_id": 7.0}, {"eos_token_id": 9999}, (7, END)),  # and none of this tokenizer
    ],
)
def test_directory(tmp_path: Path, config: dict[str, Any], generation: Any, wanted: tuple[int, ...]) -> None:
    tokenizer = tokenizer_from_directory(save(tmp_path, config, generation))
    assert tokenizer.stop_ids == wanted
    messages = [{"role": "user", "content": "Grüße"}]
    assert tokenizer.chat(messages) == wrap().chat(messages)


def test_directory_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="cannot read a tokenizer") as caught:
        tokenizer_from_directory(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no tokenizer\.model; transformers makes one: AutoTokenizer"):
        tokenizer_from_directory(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("generation_config.json", b"{", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        ("generation_config.json", b"[]", "expected a JSON object, got list"),
        ("generation_config.json", b'{"eos_token_id": "</s>"}', "eos_token_id is '</s>', expected token ids"),
        ("tokenizer_config.json", '{"a": 1}'.encode("utf-16"), "it is UTF-16, save it as UTF-8"),
        ("chat_template.jinja", b"\xe9", "not UTF-8: unexpected end of data at byte 0"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer, not the file"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "SuperBPE"}}', "installed tokenizers library can"),
        ("tokenizer.json", b"", "installed tokenizers library can read"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """One line that names the file, and it alone."""
    (save(tmp_path, {}) / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        tokenizer_from_directory(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert str(caught.value).count(name) == 1
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    save(tmp_path, {})
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja"):
        content = (tmp_path / name).read_bytes().replace(b"\n", b"\r\n")
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
    messages = [{"role": "user", "content": "x"}]
    assert tokenizer_from_directory(tmp_path).chat(messages) == wrap().chat(messages)


def test_truncation_and_padding_of_the_file_are_left_out(tmp_path: Path) -> None:
    """A training script may have saved its own with the tokenizer."""
    backend = byte_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=6)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", chat_template=TEMPLATE)
    fast.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    assert (saved["truncation"] is None, saved["padding"] is None) == (False, False)
    tokenizer = tokenizer_from_directory(tmp_path)
    assert tokenizer.encode("ab") == list(byte_backend().encode("ab").ids)
    assert len(tokenizer.chat([{"role": "user", "content": "a" * 40}])) > 40


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "LlamaTokenizer", "Qwen2Tokenizer", "NewTokenizer"])
def test_tokenizer_json_counts_and_not_the_class_that_loads_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in DeepSeek-R1-Distill-Llama: bytes as in GPT-2, and the class of a tokenizer that has no spaces."""
    folder = save(tmp_path, {"model_type": "llama"})
    declared = json.loads((folder / "tokenizer_config.json").read_text())
    declared |= {"tokenizer_class": name, "legacy": True, "add_bos_token": True, "add_eos_token": True}
    declared |= {"auto_map": {"AutoTokenizer": ["tokenization_new.NewTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    (folder / "tokenization_new.py").write_text("raise SystemExit('this must not run')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question about code of the repository"))
    tokenizer = tokenizer_from_directory(folder)
    text = "two  spaces, é\n"
    assert tokenizer.encode(text) == byte_backend().encode(text).ids
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.chat([{"role": "user", "content": text}]) == wrap().chat([{"role": "user", "content": text}])


def varint(value: int) -> bytes:
    """A number of a protocol buffer."""
    value, out = value % 2**64, b""
    while value > 127:
        value, out = value >> 7, out + bytes([value & 127 | 128])
    return out + bytes([value])


def field(number: int, value: int | bytes | float) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece_file(
    metadata: dict[str, Any], trainer: bytes = field(3, 2), normalizer: bytes = field(1, b"identity") + field(4, 0)
) -> bytes:
    """The `tokenizer.model` of what a GGUF file says."""
    rows = zip(*(metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")), strict=True)
    pieces = (field(1, text.encode()) + field(2, score) + field(3, kind) for text, score, kind in rows)
    return b"".join(field(1, piece) for piece in pieces) + field(2, trainer) + field(3, normalizer)


LLAMA_2 = {"tokenizer_class": "LlamaTokenizer", "legacy": False, "bos_token": "<s>", "eos_token": {"content": "</s>"}}
INST = "{% for m in messages %}{{ bos_token }}{{ m.content }} the </s>{% endfor %}"


def llama_2(folder: Path, name: str, content: str | bytes, **settings: Any) -> Path:
    """A directory with the tokenizer of Llama 2."""
    folder.mkdir()
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "tokenizer_config.json").write_text(json.dumps({**LLAMA_2, "chat_template": INST, **settings}))
    return folder


def test_llama_2_is_the_same_in_every_format(tmp_path: Path) -> None:
    """Also after special tokens, where `legacy: false` makes transformers leave out the space of the files."""
    backend = tokenizer_from_gguf(LLAMA)
    tokenizers = [
        tokenizer_from_backend(backend, stop_ids=[2], chat_template=INST, bos_id=1, eos_id=2, origin="gguf"),
        tokenizer_from_directory(llama_2(tmp_path / "json", "tokenizer.json", backend.to_str())),
        tokenizer_from_directory(llama_2(tmp_path / "model", "tokenizer.model", sentencepiece_file(LLAMA))),
    ]
    messages = [{"role": "user", "content": "the theatre"}, {"role": "user", "content": " 12"}]
    prompts = [tokenizer.chat(messages) for tokenizer in tokenizers]
    assert prompts[0] == prompts[1] == prompts[2]
    tokens = LLAMA["tokenizer.ggml.tokens"]
    assert [tokens[token] for token in prompts[0][:2]] == ["<s>", "▁the"]
    assert len({tuple(tokenizer.encode("the\n日 \U0001f600")) for tokenizer in tokenizers}) == 1
    assert [tokenizer.decode(prompts[0]) for tokenizer in tokenizers] == [tokenizers[0].decode(prompts[0])] * 3
    assert [tokenizer.stop_ids for tokenizer in tokenizers] == [(2,)] * 3


def test_sentencepiece_with_more_tokens_and_without_bos(tmp_path: Path) -> None:
    """What other files add has the ids that they say."""
    size = len(LLAMA["tokenizer.ggml.tokens"])
    more = {"added_tokens_decoder": {"1": {"content": "<s>"}, str(size): {"content": "<pad>"}}, "add_bos_token": False}
    folder = llama_2(tmp_path / "more", "tokenizer.model", sentencepiece_file(LLAMA), **more)
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 1}))
    tokenizer = tokenizer_from_directory(folder)
    assert tokenizer.encode("<pad><|im_end|>") == [size, size + 1]
    assert tokenizer.stop_ids == (2, size + 1)
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size + 7}))
    with pytest.raises(ValueError, match=rf"'<\|im_end\|>' has id {size + 7}, but {size + 1} is the next"):
        tokenizer_from_directory(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no SentencePiece model: it has no pieces"),
        (b"IQ== 0\nIg== 1\n", "SentencePiece model"),  # tiktoken's format, which Llama 3's own file has
        (sentencepiece_file(LLAMA)[:1000], "is not a complete SentencePiece model"),
        (sentencepiece_file(LLAMA, trainer=b""), "a SentencePiece model of type 1; BPE, which is 2, is supported"),
        (sentencepiece_file(LLAMA, normalizer=b""), "normalises texts or drops spaces"),
    ],
)
def test_other_sentencepiece_files(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tokenizer_from_directory(llama_2(tmp_path / "m", "tokenizer.model", content))
    assert str(tmp_path / "m/tokenizer.model") in str(caught.value)


@given(data=st.data())
@settings(deadline=None)
def test_a_damaged_sentencepiece_file_is_never_anything_but_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(sentencepiece_file(LLAMA))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "tokenizer.model"
    path.write_bytes(content)
    with contextlib.suppress(ValueError):
        read_sentencepiece(path)


@given(data=st.data())
@settings(deadline=None)
def test_a_damaged_tokenizer_json_is_never_anything_but_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(byte_backend().to_str().encode())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.sampled_from(b'0129"{}[],:nul.ae-\xff'))
    path = tmp_path_factory.mktemp("damaged")
    (path / "tokenizer.json").write_bytes(content[: data.draw(st.integers(0, 2 * len(content)))])
    with contextlib.suppress(ValueError):
        tokenizer_from_directory(path)


def test_one_of_several_templates(tmp_path: Path) -> None:
    """The default; a file of its own goes first."""
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    folder = llama_2(tmp_path / "m", "tokenizer.model", sentencepiece_file(LLAMA), chat_template=named)
    messages = [{"role": "user", "content": "x"}]
    tokenizer = tokenizer_from_directory(folder)
    assert tokenizer.chat(messages) == tokenizer.encode("plain", add_special_tokens=False)
    (folder / "tokenizer_config.json").write_text('{"chat_template": 3}')
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: chat_template is 3, expected a text"):
        tokenizer_from_directory(folder)
    (folder / "chat_template.jinja").write_text("file")
    assert tokenizer_from_directory(folder).chat(messages) == tokenizer.encode("file", add_special_tokens=False)
