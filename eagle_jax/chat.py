"""Text to token ids and back, and conversations to prompts by the model's own chat template.

A thin wrapper: the tokenizer and the template come with the checkpoint. `tokenizers` runs the former exactly as it was
read; `transformers`, which would change it according to the name of its class, renders the latter and no more. Knows
nothing of weights, files or decoding.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from jinja2 import TemplateError
from tokenizers import Tokenizer as Backend
from tokenizers import models

# transformers warns where PyTorch is missing, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from transformers import PreTrainedTokenizerFast

Message = Mapping[str, str]
"""One turn: `role` (system, user or assistant) and `content`."""

TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|eom_id|>")
"""Texts of tokens that end a turn in every model that has them, whether its files list them or not; as in llama.cpp."""

_UNFINISHED = "\ufffd"
"""What a decoder gives for bytes that are not, or not yet, a character."""

_ANSWER = "The answer."
"""Stands for an answer where a template is tried."""


class Tokenizer:
    """Tokenizer, chat template and stop ids of one model.

    Args:
      backend: as it was read from the files of the model; encodes and decodes.
      stop_ids: tokens that end an answer, as far as the files list them. Those that the tokenizer does not have are
        left out, and those that end a turn by the template or by their text (`TURN_ENDS`) are added.
      chat_template: in Jinja.
      marks: texts by the names that templates have for them: `bos_token`, `eos_token` and their like.
      origin: names the checkpoint in messages.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        stop_ids: Iterable[int],
        chat_template: str | None = None,
        marks: Mapping[str, str] | None = None,
        origin: str,
    ) -> None:
        backend.no_truncation()  # a training script may have left its own in the file
        backend.no_padding()
        self._backend = backend
        self._chat_template = chat_template or None
        self._marks = dict(marks or {})
        self._origin = origin
        listed = [token for token in stop_ids if 0 <= token < self.vocab_size]
        by_text = [backend.token_to_id(text) for text in TURN_ENDS]
        ends = [token for token in (self._end_of_turn, *by_text) if token is not None]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*listed, *ends]))

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included; a model's embedding may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def end_id(self) -> int | None:
        """The token that ends an answer in the chat template; without a template the first stop id, if there is one."""
        return self._end_of_turn if self._end_of_turn is not None else next(iter(self.stop_ids), None)

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` works."""
        return self._chat_template is not None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of plain text, with a BOS where this model starts texts with one.

        Raises:
          ValueError: no text, or half of a surrogate pair in it, which no UTF-8 has.
        """
        try:
            return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise ValueError(f"not a text that can be encoded: {text[:80]!r}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens and stop ids are left out. For growing text use `TextStream`."""
        # Some files do not mark what ends a turn as special.
        shown = [token for token in map(int, ids) if token not in self.stop_ids]
        return self._backend.decode(shown, skip_special_tokens=True)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Prompt ids of a conversation, up to where the assistant's answer begins.

        Raises:
          ValueError: no messages, no chat template, or one that refuses such messages or does not work.
        """
        if not messages:
            raise ValueError("a conversation needs at least one message, got none")
        if not self.has_chat_template:
            raise ValueError(f"{self._origin} has no chat template: pass plain text through encode() instead of chat()")
        # The template has written BOS itself where the model wants one.
        return self.encode(self._render(messages, add_generation_prompt=True), add_special_tokens=False)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write tokenizer, chat template and stop ids as files of a Hugging Face directory."""
        folder = pathlib.Path(directory)
        self._backend.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self._marks}
        if self._chat_template is not None:
            settings["chat_template"] = self._chat_template
        files = {"tokenizer_config.json": settings, "generation_config.json": {"eos_token_id": list(self.stop_ids)}}
        for name, content in files.items():
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")

    @functools.cached_property
    def _end_of_turn(self) -> int | None:
        """The token that the template writes after an answer; None where it writes none, or does not work."""
        if not self.has_chat_template:
            return None
        turns = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": _ANSWER}]
        added = {token.content: index for index, token in self._backend.get_added_tokens_decoder().items()}
        for messages in (turns, [*turns, turns[0]]):  # some templates end a turn only where another one follows
            try:
                _, answered, rest = self._render(messages, add_generation_prompt=False).rpartition(_ANSWER)
            except ValueError:
                continue
            ends = [text for text in added if text.strip() and answered and rest.lstrip().startswith(text)]
            if ends:
                return added[max(ends, key=len)]
        return None

    @functools.cached_property
    def _renderer(self) -> PreTrainedTokenizerFast:
        """Renders the template; its vocabulary is empty."""
        return PreTrainedTokenizerFast(
            tokenizer_object=Backend(models.BPE()), chat_template=self._chat_template, **self._marks
        )

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """The text of a conversation."""
        turns = [dict(message) for message in messages]
        try:
            return str(
                self._renderer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
            )
        except TemplateError as error:
            raise ValueError(f"the chat template of {self._origin} refuses the conversation: {error}") from error
        except Exception as error:  # a template is a program: it can fail in every way
            raise ValueError(
                f"the chat template of {self._origin} does not work: {type(error).__name__}: {error}"
            ) from error


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
    marks = {
        name: text
        for name, token in (("bos_token", bos_id), ("eos_token", eos_id))
        if token is not None and (text := backend.id_to_token(token)) is not None
    }
    return Tokenizer(backend, stop_ids=stop_ids, chat_template=chat_template, marks=marks, origin=origin)
