"""Text to token ids and back, and conversations to prompts by the model's own chat template.

A thin wrapper: the tokenizer and the template come with the checkpoint, through `tokenizers` and `transformers` (which
need no torch for this). Knows nothing of weights or of decoding.
"""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer as Backend

# transformers warns where PyTorch is missing, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from transformers import AutoTokenizer, PreTrainedTokenizerFast

Message = Mapping[str, str]
"""One turn: `role` (system, user or assistant) and `content`."""

_UNFINISHED = "\ufffd"
"""What a decoder gives for bytes that are not, or not yet, a character."""


class Tokenizer:
    """Tokenizer, chat template and stop ids of one model."""

    def __init__(self, fast: PreTrainedTokenizerFast, stop_ids: Iterable[int], origin: str) -> None:
        """Wraps a loaded tokenizer; `origin` names the checkpoint in messages."""
        fast.backend_tokenizer.no_truncation()  # a training script may have left its own in the file
        fast.backend_tokenizer.no_padding()
        self._fast = fast
        self._origin = origin
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(stop_ids))

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included; a model's embedding may have more rows."""
        return len(self._fast)

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works."""
        return bool(self._fast.chat_template)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of plain text, with a BOS where this model starts texts with one.

        Raises:
          ValueError: no text, or half of a surrogate pair in it, which no UTF-8 has.
        """
        try:
            return self._fast.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise ValueError(f"not a text that can be encoded: {text[:80]!r}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out. For text that is still growing use `TextStream`."""
        return self._fast.backend_tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Prompt ids of a conversation, up to where the assistant's answer begins.

        Raises:
          ValueError: no messages, no chat template, or one that refuses such messages.
        """
        if not messages:
            raise ValueError("a conversation needs at least one message, got none")
        if not self.has_chat_template:
            raise ValueError(f"{self._origin} has no chat template: pass plain text through encode() instead of chat()")
        turns = [dict(message) for message in messages]
        try:
            text = self._fast.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"the chat template of {self._origin} refuses the conversation: {error}") from error
        # The template has written BOS itself where the model wants one.
        return self.encode(str(text), add_special_tokens=False)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write tokenizer, chat template and stop ids as files of a Hugging Face directory."""
        self._fast.save_pretrained(str(directory))
        stops = json.dumps({"eos_token_id": list(self.stop_ids)}, indent=2) + "\n"
        (pathlib.Path(directory) / "generation_config.json").write_text(stops, encoding="utf-8")


class TextStream:
    """Turns ids that arrive bit by bit into text that never has to be taken back.

    A character may be spread over several tokens, and a tokenizer may join tokens with spaces; so each push decodes a
    short context with and without the new tokens and returns the difference, once it ends in a complete character. The
    pieces joined are `decode` of all ids (but SentencePiece decoders show a broken run of bytes differently in parts).
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Starts with no text; `decode` is a tokenizer's method of that name."""
        self._decode = decode
        self._ids: list[int] = []
        self._context = 0  # first id of the context
        self._given = 0  # ids before this one have been returned

    def push(self, ids: Iterable[int]) -> str:
        """The text that became complete with `ids`; may be empty."""
        return self._advance(ids, final=False)

    def finish(self) -> str:
        """The rest, with replacement characters for bytes that never became a character."""
        return self._advance((), final=True)

    def _advance(self, ids: Iterable[int], final: bool) -> str:
        self._ids.extend(int(token) for token in ids)
        before = self._decode(self._ids[self._context : self._given])
        text = self._decode(self._ids[self._context :])
        if len(text) <= len(before) or (text.endswith(_UNFINISHED) and not final):
            return ""
        self._context, self._given = self._given, len(self._ids)
        return text[len(before) :]


def tokenizer_from_directory(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a Hugging Face directory; stop ids are those of config, generation config and tokenizer.

    Raises:
      ValueError: no tokenizer files, or none that the `tokenizers` library can run.
    """
    directory = pathlib.Path(directory)
    try:
        fast = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{directory}: cannot read a tokenizer: {reason}") from error
    if not isinstance(fast, PreTrainedTokenizerFast):
        raise ValueError(f"{directory}: {type(fast).__name__} has no fast version; a tokenizer.json is needed")
    stop_ids = [*_declared_eos(directory / "config.json"), *_declared_eos(directory / "generation_config.json")]
    if fast.eos_token_id is not None:
        stop_ids.append(fast.eos_token_id)
    return Tokenizer(fast, stop_ids, str(directory))


def _declared_eos(path: pathlib.Path) -> list[int]:
    """`eos_token_id` of a JSON file: a number, a list or absent."""
    if not path.is_file():
        return []
    try:
        declared = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a readable JSON object: {error}") from error
    if declared is None:
        return []
    return list(declared) if isinstance(declared, list) else [declared]


def tokenizer_from_backend(
    backend: Backend,
    *,
    stop_ids: Iterable[int],
    chat_template: str | None,
    bos_id: int | None,
    eos_id: int | None,
    origin: str,
) -> Tokenizer:
    """Wraps a tokenizer that was built in memory; BOS and EOS are known to the chat template by their text."""
    marks: dict[str, Any] = {
        name: backend.id_to_token(token)
        for name, token in (("bos_token", bos_id), ("eos_token", eos_id))
        if token is not None
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat_template, **marks)
    return Tokenizer(fast, stop_ids, origin)
