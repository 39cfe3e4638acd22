"""From flags to a drafting method and its weights, for every script that decodes."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

from eagle_jax.checkpoint.head_names import Kind
from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.drafters import (
    Drafter,
    make_chain,
    make_eagle1,
    make_eagle2,
    make_eagle3,
    make_lookahead,
    make_ouroboros,
    make_prompt_lookup,
    make_vanilla,
)
from eagle_jax.drafters.default_tree import LADDER
from eagle_jax.drafters.eagle2 import check_sizes
from eagle_jax.evaluation.round_costs import choose_tree
from eagle_jax.types import Params
from experiments.cli import draft_weights
from experiments.cli.launch import note, status
from experiments.cli.method_settings import (
    LOOKAHEAD,
    OUROBOROS,
    SIZES,
    TRIPLE,
    Settings,
    chain_length,
    given_sizes,
    tree_sizes,
)

_DYNAMIC: dict[str, Kind] = {"eagle2": "eagle", "eagle3": "eagle3"}
"""Methods with a dynamic tree, and the kind of head that they draft with."""

_MAY_BE_ZERO = ("depth", "draft_phrases", "pool_from_prompt")


class Method(NamedTuple):
    """One row of the table below."""

    build: Callable[[LoadedModel, Settings], tuple[Drafter, Params]]
    takes_draft: bool = False
    takes_head: bool = False
    top_k: int = 1  # candidate children of a node where no flag says it
    sizes: tuple[str, ...] = TRIPLE  # the sizes that it may be given


def define_flags(values: flags.FlagValues, *, method: bool = True) -> None:
    """Add the flags behind `Settings` and, where the script runs one method, `--method`."""
    if method:
        flags.DEFINE_string("method", "prompt_lookup", f"drafting method: {', '.join(METHODS)}", flag_values=values)
    text = (
        "tree slots, the root included. Where no size is given, (--nodes, --depth, --top_k) of eagle2 and eagle3 are "
    )
    text += (
        "those with the most expected tokens per second on this machine, which is measured; where one is given, the "
    )
    text += f"others are those of {tuple(LADDER[0])}"
    flags.DEFINE_integer("nodes", None, text, flag_values=values)
    flags.DEFINE_integer("depth", None, "levels below the first: --depth=4 drafts 5 tokens deep", flag_values=values)
    flags.DEFINE_integer("top_k", None, "children of a tree node", flag_values=values)
    for factory, name, text in (
        (make_lookahead, "level", "tokens of an n-gram"),
        (make_lookahead, "window", "columns of the window"),
        (make_lookahead, "guesses", "n-grams tried in a round"),
        (make_ouroboros, "num_drafted", "tokens that the draft model drafts"),
        (make_ouroboros, "phrases", "phrases behind the last of them"),
        (make_ouroboros, "phrase_length", "tokens of a phrase"),
        (make_ouroboros, "draft_phrases", "phrases that a pass of the draft model tries"),
    ):
        usual = inspect.signature(factory).parameters[name].default
        of = factory.__name__.removeprefix("make_")
        flags.DEFINE_integer(name, None, f"{of}: {text}; default {usual}", flag_values=values)
    text = "lookahead: n-grams of the prompt join the pool; default: no"
    flags.DEFINE_bool("pool_from_prompt", None, text, flag_values=values)
    text = "draft model of chain and ouroboros: self:K for the first K layers of the target, or as --target; else the "
    text += "one that ships, distilled"
    flags.DEFINE_string("draft", "", text, flag_values=values)
    text = "trained draft head of eagle, eagle2, eagle3: a directory or a Hugging Face id; else the one that ships"
    flags.DEFINE_string("head", "", text, flag_values=values)
    text = "tokens that a head may draft, the most frequent ones, 0 for all; else as many as the head recommends"
    flags.DEFINE_integer("draft_vocab", None, text, flag_values=values)
    text = "tokens that a head looks back, for texts longer than it was trained on; default: all"
    flags.DEFINE_integer("head_window", None, text, flag_values=values)
    flags.DEFINE_string("dtype", "float32", "of weights and caches: float32, bfloat16, float16", flag_values=values)


def settings_from_flags(values: flags.FlagValues) -> tuple[str, Settings]:
    """The name and settings of `--method`, checked as far as that goes without loading anything.

    Raises:
      ValueError: an unknown method, or a flag that the method does not take or cannot do without.
    """
    settings = _given(values)
    check_settings(values.method, settings)
    return values.method, settings


def _given(values: flags.FlagValues) -> Settings:
    """What the flags say; a script that knows no mesh has no flag for it."""
    return Settings(**{field: getattr(values, field) for field in Settings._fields if field in values})


def settings_for(name: str, values: flags.FlagValues) -> Settings:
    """As `settings_from_flags`, for one of several methods: flags that not all take go to those that take them."""
    settings = _given(values)
    if name in METHODS:
        settings = settings._replace(
            draft=settings.draft if METHODS[name].takes_draft else "",
            head=settings.head if METHODS[name].takes_head else "",
            draft_vocab=settings.draft_vocab if METHODS[name].takes_head else None,
            head_window=settings.head_window if METHODS[name].takes_head else None,
            split_head=settings.split_head and METHODS[name].takes_head,
        )
        others: dict[str, Any] = {size: None for size in SIZES if size not in METHODS[name].sizes}
        settings = settings._replace(**others)
    check_settings(name, settings)
    return settings


def read_draft(text: str, values: flags.FlagValues) -> tuple[str, str, Settings]:
    """`eagle3:60/7/10` -> itself, the method and its settings; those that it does not name are those of the flags.

    Raises:
      ValueError: no such method, sizes that are not three numbers, or what `check_settings` refuses.
    """
    name, _, sizes = text.partition(":")
    settings = settings_for(name, values)
    if sizes:
        parts = sizes.split("/")
        if len(parts) != 3 or not all(part.isdecimal() for part in parts):
            raise ValueError(f"a draft is METHOD or METHOD:NODES/DEPTH/TOP_K, such as eagle3:60/7/10, got {text!r}")
        nodes, depth, top_k = map(int, parts)
        settings = settings._replace(nodes=nodes, depth=depth, top_k=top_k)
        check_settings(name, settings)
    return text, name, settings


def check_settings(name: str, settings: Settings) -> None:
    """Refuse an unknown method, and flags that it does not take or cannot do without.

    Raises:
      ValueError: as said.
    """
    if name not in METHODS:
        raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
    method = METHODS[name]
    for flag, given, taken in (
        ("draft", settings.draft, method.takes_draft),
        ("head", settings.head, method.takes_head),
        ("draft_vocab", settings.draft_vocab, method.takes_head),
        ("head_window", settings.head_window, method.takes_head),
        ("split_head", settings.split_head or None, method.takes_head),
        *((size, getattr(settings, size), size in method.sizes) for size in SIZES),
    ):
        if given not in ("", None) and not taken:
            raise ValueError(f"--method={name} takes no --{flag}, got {given!r}")
    for size in (*SIZES, "head_window"):
        least, given = 0 if size in _MAY_BE_ZERO else 1, getattr(settings, size)
        if given is not None and given < least:
            raise ValueError(f"--{size} must be at least {least}, got {given}")
    if settings.draft_vocab is not None and settings.draft_vocab < 0:
        raise ValueError(f"--draft_vocab must be at least 0, got {settings.draft_vocab}")


def with_tree(
    name: str, settings: Settings, model: LoadedModel, *, batch: int = 1, temperatures: Sequence[float] = (0.0,)
) -> tuple[str, Settings]:
    """A method and its settings where a dynamic tree without sizes has got the best for this machine.

    That may be none: then the method is plain decoding. One line on stderr says which and why.
    """
    if name not in _DYNAMIC or (settings.nodes, settings.depth, settings.top_k) != (None, None, None):
        return name, settings
    head, params = draft_weights.load_head(_DYNAMIC[name], model, settings)
    with status("Choosing a tree"):
        way: dict[str, Any] = {"batch": batch, "temperatures": temperatures}
        choice = choose_tree(model, settings.head or _DYNAMIC[name], head, params, **way)
    note(f"{name}: {choice.reason}")
    if choice.size is None:
        return "vanilla", Settings(dtype=settings.dtype)
    nodes, depth, top_k = choice.size
    return name, settings._replace(nodes=nodes, depth=depth, top_k=top_k)


def children(name: str, settings: Settings) -> int:
    """The most candidate children that a node of the method's tree has: `top_k` of the official triple."""
    if name in _DYNAMIC:
        return tree_sizes(settings, batch=1)[2]
    return settings.top_k or settings.guesses or settings.phrases or METHODS[name].top_k


def make_method(name: str, target: LoadedModel, settings: Settings) -> tuple[Drafter, Params]:
    """The drafter and its weights.

    Raises:
      ValueError: sizes that the method cannot have, or a draft model or head that does not fit the target.
    """
    return METHODS[name].build(target, settings)


def _vanilla(target: LoadedModel, settings: Settings) -> tuple[Drafter, Params]:
    del target
    if settings.nodes not in (None, 1) or settings.depth is not None or settings.top_k is not None:
        raise ValueError(f"vanilla drafts nothing: it takes no --depth and --top_k, and 1 node, got {settings.nodes}")
    return make_vanilla(), ()


def _prompt_lookup(target: LoadedModel, settings: Settings) -> tuple[Drafter, Params]:
    del target
    return make_prompt_lookup(chain_length(settings, default=10)), ()


def _chain(target: LoadedModel, settings: Settings) -> tuple[Drafter, Params]:
    num_drafted = chain_length(settings, default=5)
    draft, params = draft_weights.load_draft(target, settings)
    return make_chain(draft, num_drafted), params


def _lookahead(target: LoadedModel, settings: Settings) -> tuple[Drafter, Params]:
    del target
    return make_lookahead(**given_sizes(settings, LOOKAHEAD)), ()


def _ouroboros(target: LoadedModel, settings: Settings) -> tuple[Drafter, Params]:
    draft, params = draft_weights.load_draft(target, settings)
    return make_ouroboros(draft, **given_sizes(settings, OUROBOROS)), params


def _eagle(target: LoadedModel, settings: Settings) -> tuple[Drafter, Params]:
    sizes = settings.nodes, settings.depth, settings.top_k
    if sizes != (None, None, None):
        raise ValueError(f"the static tree of eagle is the published one, it takes no sizes; got {sizes}")
    head, params = draft_weights.load_head("eagle", target, settings)
    return make_eagle1(head), params


def _dynamic(
    kind: Kind, make: Callable[..., Drafter], target: LoadedModel, settings: Settings
) -> tuple[Drafter, Params]:
    nodes, depth, top_k = tree_sizes(settings, batch=1)
    check_sizes(nodes, depth, top_k)
    head, params = draft_weights.load_head(kind, target, settings)
    return make(head, nodes, depth, top_k), params


METHODS: dict[str, Method] = {
    "vanilla": Method(_vanilla),
    "prompt_lookup": Method(_prompt_lookup),
    "lookahead": Method(_lookahead, top_k=7, sizes=LOOKAHEAD),
    "chain": Method(_chain, takes_draft=True),
    "ouroboros": Method(_ouroboros, takes_draft=True, top_k=3, sizes=OUROBOROS),
    "eagle": Method(_eagle, takes_head=True, top_k=4),
    "eagle2": Method(functools.partial(_dynamic, "eagle", make_eagle2), takes_head=True),
    "eagle3": Method(functools.partial(_dynamic, "eagle3", make_eagle3), takes_head=True),
}
