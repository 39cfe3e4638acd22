"""Reads the tokenizer of a Hugging Face directory: `tokenizer.json` exactly as it is, or Llama's `tokenizer.model`.

`transformers` would rebuild it as the class that `tokenizer_config.json` names, differently from version to version,
and may want to run code of the repository (`auto_map`); neither happens here. What the other files add are the chat
template, the texts of BOS and EOS, and the tokens that end an answer.
"""

import os
import pathlib
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from eagle_jax.chat import Tokenizer
from eagle_jax.checkpoint.hf_config import token_ids
from eagle_jax.checkpoint.sentencepiece import add_special_tokens, read_sentencepiece, sentencepiece_bpe, start_with
from eagle_jax.files import read_json, read_text

TOKENIZER, SENTENCEPIECE, SETTINGS = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"

_MARKS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
"""Special tokens that chat templates know by name."""


def tokenizer_from_directory(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a directory; stop ids are those of config, generation config and tokenizer.

    Raises:
      ValueError: no tokenizer files, or none that the `tokenizers` library can run; one line with the file.
    """
    directory = pathlib.Path(directory)
    settings = _optional(directory / SETTINGS)
    settings = {**_optional(directory / "special_tokens_map.json"), **settings}
    if (directory / TOKENIZER).is_file():
        backend = _read_tokenizer(directory / TOKENIZER)
    elif (directory / SENTENCEPIECE).is_file():
        backend = _from_sentencepiece(directory, settings)
    else:
        remedy = "; transformers makes one: AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY)"
        reason = f"there is no {TOKENIZER} and no {SENTENCEPIECE}"
        reason += remedy if (directory / "vocab.json").is_file() else ""
        raise ValueError(f"{directory}: cannot read a tokenizer: {reason}")
    marks = {name: text for name in _MARKS if (text := _text_of(settings.get(name)))}
    stop_ids: list[int] = []
    for path in (directory / "config.json", directory / "generation_config.json"):
        mapping = _optional(path)
        try:
            stop_ids += token_ids(mapping, "eos_token_id")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    end = backend.token_to_id(marks.get("eos_token", ""))
    return Tokenizer(
        backend,
        stop_ids=[*stop_ids, *([] if end is None else [end])],
        chat_template=_chat_template(directory, settings),
        marks=marks,
        origin=str(directory),
    )


def _read_tokenizer(path: pathlib.Path) -> Backend:
    text = read_text(path)
    try:
        return Backend.from_str(text)
    except Exception as error:  # the library has no type of its own for what it refuses
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is no tokenizer that the installed tokenizers library can read: {reason}") from error


def _from_sentencepiece(directory: pathlib.Path, settings: dict[str, Any]) -> Backend:
    """Of `tokenizer.model`, with the tokens that other files add to it."""
    pieces = read_sentencepiece(directory / SENTENCEPIECE)
    backend = sentencepiece_bpe(pieces)
    add_special_tokens(backend, pieces.texts, pieces.types)
    for index, text in sorted(_added_tokens(directory, settings).items()):
        backend.add_tokens([AddedToken(text, special=True, normalized=False)])
        if backend.token_to_id(text) != index:
            raise ValueError(f"{directory}: token {text!r} has id {index}, but {backend.token_to_id(text)} is the next")
    if settings.get("add_bos_token", True) and pieces.bos_id is not None:
        start_with(backend, pieces.texts[pieces.bos_id], pieces.bos_id)
    return backend


def _added_tokens(directory: pathlib.Path, settings: dict[str, Any]) -> dict[int, str]:
    """Texts by token id of what `added_tokens.json` and the settings add to a vocabulary."""
    decoder = settings.get("added_tokens_decoder")
    numbered = decoder if isinstance(decoder, dict) else {}
    added = {int(index): _text_of(token) for index, token in numbered.items() if index.isdecimal()}
    listed = _optional(directory / "added_tokens.json")
    added |= {index: text for text, index in listed.items() if type(index) is int}
    return {index: text for index, text in added.items() if text}


def _chat_template(directory: pathlib.Path, settings: dict[str, Any]) -> str | None:
    """The template, of a file of its own or among the settings; of several the default."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    for place, mapping in (
        ("chat_template.json", _optional(directory / "chat_template.json")),
        (SETTINGS, settings),
    ):
        template = mapping.get("chat_template")
        if isinstance(template, list):
            named = [one for one in template if isinstance(one, dict)]
            template = next((one.get("template") for one in named if one.get("name") == "default"), None)
        if template is not None and not isinstance(template, str):
            raise ValueError(f"{directory / place}: chat_template is {str(template)[:60]}, expected a text")
        if template:
            return template
    return None


def _text_of(token: Any) -> str:
    """Of a special token, which is written as its text or as an object with that; empty where there is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _optional(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    return read_json(path) if path.is_file() else {}
