"""What a method drafts with: the draft model that `--draft` names, the draft head that `--head` does."""

import dataclasses
import logging
import pathlib

from eagle_jax.checkpoint import distilled
from eagle_jax.checkpoint.draft_vocabulary import RANKS_FILE, Ranking, with_draft_vocabulary
from eagle_jax.checkpoint.pick_layers import truncate_layers
from eagle_jax.checkpoint.pretrained import LoadedModel, load_pretrained_head, load_target, shipped
from eagle_jax.drafters import Drafter
from eagle_jax.drafters.draft_model import on_draft_vocabulary, with_vocabulary
from eagle_jax.drafters.placement import place_head
from eagle_jax.models.block_head import BlockHead, make_block_head
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HEAD_KINDS, Head, HeadConfig, HeadParams, make_head
from eagle_jax.models.transformer import make_target
from eagle_jax.sharding import MODEL, head_shardings, place, place_draft_vocabulary
from eagle_jax.types import Params, Target
from experiments.cli.launch import note, status
from experiments.cli.method_settings import MethodSettings

_LOG = logging.getLogger(__name__)
_SELF = "self:"

DECISIVE = ("*.safetensors", "*.safetensors.index.json", "config.json", RANKS_FILE)
"""Files of a directory that decide what its head or draft model drafts."""


def load_draft(target: LoadedModel, settings: MethodSettings) -> tuple[Target, Params]:
    """The model that --draft names or, left out, the one that ships for the target; on a mesh it is split as that is.

    Its draft vocabulary is that of --draft_vocab or, left out, the one that it recommends.

    Raises:
      ValueError: a number of layers that the target has not, a vocabulary that is not the target's, no model that ships
        for it, or --draft_vocab for one without a ranking of tokens.
    """
    name = settings.draft or distilled.NAME
    if name.startswith(_SELF):
        count = name.removeprefix(_SELF)
        if not count.isdecimal():
            raise ValueError(f"--draft={_SELF}K takes a number of layers, got {count!r}")
        config, params = truncate_layers(target.config, target.params, int(count))
    elif name == distilled.NAME:
        with status(f"Loading draft {name}"):
            config, params = distilled.load_pretrained_draft(target, settings.dtype)
    elif name == target.name:
        config, params = target.config, target.params
    else:
        with status(f"Loading draft {name}") as progress:
            model = load_target(name, settings.dtype, mesh=target.mesh, packed=True, progress=progress)
        check_vocabulary(target, model)
        config, params = model.config, model.params
    if config.max_positions < target.config.max_positions:
        _LOG.warning("draft %s knows %d positions only: what it drafts beyond is guesswork", name, config.max_positions)
    draft = with_vocabulary(make_target(config), target.config.vocab_size)
    ranking = _ranking(name, target, config, settings.draft_vocab)
    if ranking is None:
        return draft, params
    chosen = with_draft_vocabulary(HeadParams(params), config, params, *ranking)
    if target.mesh is not None:
        chosen = place_draft_vocabulary(target.mesh, chosen)
    return on_draft_vocabulary(draft), chosen


def _ranking(name: str, target: LoadedModel, config: ModelConfig, size: int | None) -> Ranking | None:
    """The tokens that a draft model drafts; None for all."""
    where = shipped("distilled draft model", name, target.name) if name == distilled.NAME else pathlib.Path(name)
    if (where / "config.json").is_file():
        return distilled.ranking_of(where, config.vocab_size, size)
    if size:
        raise ValueError(f"draft {name} has no ranking of tokens, which a draft vocabulary of {size} tokens needs")
    return None


def check_vocabulary(target: LoadedModel, draft: LoadedModel) -> None:
    """Refuse a draft whose token ids mean something else.

    Raises:
      ValueError: the tokenizers' sizes differ, or the text of some id (about 500 ids are compared).
    """
    sizes = draft.tokenizer.vocab_size, target.tokenizer.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(f"draft {draft.name} has a vocabulary of {sizes[0]}, target {target.name} one of {sizes[1]}")
    for token in range(0, target.tokenizer.vocab_size, max(1, target.tokenizer.vocab_size // 500)):
        theirs, ours = draft.tokenizer.decode([token]), target.tokenizer.decode([token])
        if theirs != ours:
            raise ValueError(
                f"draft {draft.name} has another vocabulary: token {token} is {theirs!r}, "
                f"in target {target.name} {ours!r}"
            )


def load_head(kind: str, target: LoadedModel, settings: MethodSettings) -> tuple[Head, HeadParams]:
    """The EAGLE head that --head names or, left out, the one of this kind that ships for the target."""
    config, params = _head(kind, target, settings)
    return make_head(config, make_target(target.config)), params


def load_block_head(kind: str, target: LoadedModel, settings: MethodSettings) -> tuple[BlockHead, HeadParams]:
    """As `load_head`, for heads that draft a block."""
    config, params = _head(kind, target, settings)
    return make_block_head(config, make_target(target.config)), params


def placed(
    head: Head | BlockHead, params: HeadParams, drafter: Drafter, target: LoadedModel, settings: MethodSettings
) -> HeadParams:
    """Weights of a head where they take the least time, by a bound on drafting; one line on stderr says where and why.

    On one device, and where --split_head or --nosplit_head was given, as they are.
    """
    if settings.split_head is not None or target.mesh is None or target.mesh.shape[MODEL] == 1:
        return params
    placement = place_head(head, params, drafter, target.mesh, batch=settings.batch)
    note(placement.reason)
    return place(params, head_shardings(target.mesh, head, params, split=True)) if placement.split else params


def _head(kind: str, target: LoadedModel, settings: MethodSettings) -> tuple[HeadConfig, HeadParams]:
    with status(f"Loading head {settings.head or kind}"):
        config, params = load_pretrained_head(
            settings.head or kind,
            target,
            settings.dtype,
            draft_vocab=settings.draft_vocab,
            split=bool(settings.split_head),
        )
    if settings.head_window is not None:
        layer = dataclasses.replace(config.layer, windows=(settings.head_window,))
        config = dataclasses.replace(config, layer=layer)
    return config, params


def draft_files(name: str, target: str) -> list[pathlib.Path]:
    """The files of --draft that decide what is drafted: none of the target's own layers and of the hub's models.

    Raises:
      ValueError: no model ships for the target.
    """
    return _decisive(shipped("distilled draft model", distilled.NAME, target) if name in ("", distilled.NAME) else name)


def head_files(name: str, kind: str, target: str) -> list[pathlib.Path]:
    """The files of --head that decide what is drafted, as `draft_files`; `kind` where --head is left out.

    Raises:
      ValueError: no head ships for the target.
    """
    name = name or kind
    return _decisive(shipped(f"trained {name} head", name, target) if name in HEAD_KINDS else name)


def _decisive(place: str | pathlib.Path) -> list[pathlib.Path]:
    path = pathlib.Path(place).expanduser()
    if path.is_file():  # .gguf
        return [path]
    return sorted(file for pattern in DECISIVE for file in path.glob(pattern))
