"""Tokenizer wrapper, chat prompts and streaming."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from eagle_jax import chat
from eagle_jax.chat import TextStream, Tokenizer
from eagle_jax.checkpoint.gguf import open_gguf
from eagle_jax.checkpoint.gguf_config import eos_ids
from eagle_jax.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from eagle_jax.checkpoint.pretrained import smollm2_path
from eagle_jax.testing import ByteTokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
START, END, USER, ASSISTANT = 256, 257, 258, 259


def byte_backend() -> Backend:
    """Every byte a token, and four marks."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    marks = ("<s>", "</s>", "<|user|>", "<|assistant|>")
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return backend


def wrap(chat_template: str | None = TEMPLATE) -> Tokenizer:
    return chat.tokenizer_from_backend(
        byte_backend(), stop_ids=[END, END], chat_template=chat_template, bos_id=START, eos_id=END, origin="toy"
    )


def test_ids_and_text() -> None:
    tokenizer = wrap()
    ids = tokenizer.encode("Grüße \U0001f600")
    assert len(ids) == len("Grüße \U0001f600".encode())
    assert tokenizer.decode([START, *ids, END]) == "Grüße \U0001f600"
    assert tokenizer.vocab_size == 260
    assert tokenizer.stop_ids == (END,)


def test_chat_prompt() -> None:
    tokenizer = wrap()
    prompt = tokenizer.chat([{"role": "user", "content": "a  b"}])
    assert prompt == [START, USER, *tokenizer.encode("a  b"), END, ASSISTANT]
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    assert [token for token in tokenizer.chat(turns) if token >= START] == [
        *(START, USER, END, ASSISTANT, END, USER, END, ASSISTANT)
    ]


def test_chat_leaves_its_messages_alone() -> None:
    messages = [{"role": "user", "content": "x"}]
    wrap().chat(messages)
    assert messages == [{"role": "user", "content": "x"}]


def test_no_template() -> None:
    tokenizer = wrap(None)
    assert not tokenizer.has_chat_template
    with pytest.raises(ValueError, match=r"toy has no chat template: pass plain text through encode\(\)"):
        tokenizer.chat([{"role": "user", "content": "x"}])


def test_no_messages() -> None:
    with pytest.raises(ValueError, match="at least one message"):
        wrap().chat([])


@given(ids=st.lists(st.integers(0, 259), max_size=30), cuts=st.lists(st.integers(0, 30), max_size=5))
def test_stream_is_the_whole_text_in_pieces(ids: list[int], cuts: list[int]) -> None:
    tokenizer = wrap()
    stream = TextStream(tokenizer.decode)
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    pieces = [stream.push(ids[start:end]) for start, end in itertools.pairwise(edges)]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", [wrap(), ByteTokenizer()], ids=["wrapped", "bytes"])
def test_stream_holds_back_half_a_character(tokenizer: Any) -> None:
    stream = TextStream(tokenizer.decode)
    first, *rest = (tokenizer.encode(letter) for letter in "é\U0001f600x")
    assert stream.push(first[:1]) == ""
    assert stream.push(first[1:]) == "é"
    assert [stream.push([token]) for token in rest[0]] == ["", "", "", "\U0001f600"]
    assert stream.push(rest[1]) == "x"
    assert stream.push([]) == ""
    assert stream.push(first[:1]) == ""
    assert stream.finish() == "\ufffd"


LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>"
    "{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
BETWEEN = "{% for m in messages %}{{ m.content }}{% if not loop.last %}<|eot_id|>{% endif %}{% endfor %}"
BROKEN = "{{ messages[0].content + 3 }}"


def with_marks(template: str | None, stop_ids: Sequence[int], *marks: str) -> Tokenizer:
    """Bytes, then marks from 256 on, the first of which starts a text."""
    backend = byte_backend()
    backend.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return chat.tokenizer_from_backend(
        backend, stop_ids=stop_ids, chat_template=template, bos_id=START, eos_id=END, origin="toy"
    )


MORE = 260
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")


@pytest.mark.parametrize(
    ("template", "listed", "marks", "end", "stops"),
    [
        # Llama 3.1: the list of its config begins with what ends a text.
        (LLAMA3, (MORE + 2, MORE + 3, MORE + 4), HEADERS, MORE + 4, (MORE + 2, MORE + 3, MORE + 4)),
        # Files with the EOS of the base model.
        (LLAMA3, (MORE + 2,), HEADERS, MORE + 4, (MORE + 2, MORE + 4, MORE + 3)),
        (CHATML, (END,), ("<|im_start|>", "<|im_end|>"), MORE + 1, (END, MORE + 1)),
        (LLAMA2, (), (), END, (END,)),
        (PLAIN, (END,), (), END, (END,)),
        (BETWEEN, (END,), ("<|eot_id|>",), MORE, (END, MORE)),
        (PLAIN, (END,), ("<|eot_id|>",), END, (END, MORE)),  # known by its text
        (None, (), ("<|im_end|>",), MORE, (MORE,)),
        (BROKEN, (END,), (), END, (END,)),
        ("{{", (), (), None, ()),
    ],
)
def test_the_end_of_a_turn(
    template: str | None, listed: tuple[int, ...], marks: tuple[str, ...], end: int | None, stops: tuple[int, ...]
) -> None:
    """What the template writes after an answer, whatever the files list."""
    tokenizer = with_marks(template, listed, *marks)
    assert (tokenizer.end_id, tokenizer.stop_ids) == (end, stops)


def test_the_end_of_a_turn_is_no_text() -> None:
    """Where the files do not mark it as special."""
    backend = byte_backend()
    backend.add_tokens([AddedToken("<|im_end|>", special=False), AddedToken("<word>", special=False)])
    tokenizer = chat.Tokenizer(backend, stop_ids=(), chat_template=CHATML, origin="toy")
    assert tokenizer.end_id == MORE
    assert tokenizer.decode([*tokenizer.encode("a<word>"), MORE]) == "a<word>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (BROKEN, r'toy does not work: TypeError: can only concatenate str \(not "int"\) to str'),
        ("{{", "toy refuses the conversation: unexpected 'end of template'"),
        ("{{ nothing.at.all }}", "toy refuses the conversation: 'nothing' is undefined"),
        ("{{ 1 // 0 }}", "toy does not work: ZeroDivisionError"),
    ],
)
def test_templates_that_fail(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"the chat template of {message}") as caught:
        wrap(template).chat([{"role": "user", "content": "x"}])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    metadata = open_gguf(smollm2_path()).metadata
    return chat.tokenizer_from_backend(
        tokenizer_from_gguf(metadata),
        stop_ids=eos_ids(metadata),
        chat_template=metadata["tokenizer.chat_template"],
        bos_id=metadata["tokenizer.ggml.bos_token_id"],
        eos_id=metadata["tokenizer.ggml.eos_token_id"],
        origin="smollm2",
    )


@pytest.mark.smollm2
def test_smollm2_prompt(smollm2: Tokenizer) -> None:
    ids = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
    ids += [2, 198, 1, 4093, 198, 26843, 2, 198, 1, 520, 9531, 198]
    assert smollm2.chat([{"role": "user", "content": "Hi"}]) == ids
    assert smollm2.stop_ids == (2,)
    assert smollm2.vocab_size == 49152


@pytest.mark.smollm2
@pytest.mark.parametrize("text", ["The capital", "x =    1234  # 5\n\n", "naïve \U0001f600 日本", "  two  spaces 10"])
def test_smollm2_round_trip(smollm2: Tokenizer, text: str) -> None:
    assert smollm2.decode(smollm2.encode(text)) == text


@pytest.mark.smollm2
def test_smollm2_splits_digits_one_by_one(smollm2: Tokenizer) -> None:
    # Runs of spaces before a digit are where the plain GPT-2 split goes wrong.
    pieces = [smollm2.decode([token]) for token in smollm2.encode("a   12")]
    assert pieces == ["a", "   ", "1", "2"]


@pytest.mark.smollm2
def test_smollm2_answer_text(smollm2: Tokenizer) -> None:
    assert smollm2.decode([504, 3575, 282, 4649, 314, 7042, 30, 2]) == "The capital of France is Paris."


def test_what_cannot_be_encoded_is_a_value_error() -> None:
    refusing = wrap("{{ raise_exception('no system message, please') }}")
    with pytest.raises(
        ValueError, match="the chat template of toy refuses the conversation: no system message, please"
    ):
        refusing.chat([{"role": "system", "content": "x"}])
    with pytest.raises(ValueError, match="not a text that can be encoded: 'half \\\\ud83d'"):
        wrap().encode("half \ud83d")
