"""From flags to a drafting method and its weights, for every script that decodes."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import flags

from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.drafters import (
    Drafter,
    lookahead,
    make_chain,
    make_eagle1,
    make_eagle2,
    make_eagle3,
    make_lookahead,
    make_one_pass,
    make_ouroboros,
    make_prompt_lookup,
    make_vanilla,
    one_pass,
    ouroboros,
)
from eagle_jax.drafters.base import Size
from eagle_jax.drafters.default_tree import TreeSize
from eagle_jax.drafters.eagle2 import PARTS, check_sizes
from eagle_jax.evaluation.round_costs import choose_tree
from eagle_jax.models.block_head import BlockHead
from eagle_jax.models.draft_head import Head, head_kind
from eagle_jax.types import Params
from experiments.cli import draft_weights
from experiments.cli.launch import note, status
from experiments.cli.method_settings import TRIPLE, MethodSettings, chain_length, fill_in, tree_sizes


class HeadMethod(NamedTuple):
    """A method that drafts with a trained head."""

    kind: str  # of the head, a name of `models.draft_head.HEAD_KINDS`
    make: Callable[..., Drafter]  # (head, nodes, depth, top_k) where the tree is dynamic, else (head)
    dynamic: bool  # the tree's sizes are chosen
    default: TreeSize | None = None  # its tree where no size is given; None: the best for the machine, measured
    parts: tuple[str, ...] = ()  # keywords of `make` that leave out a part of EAGLE-2, or have children drawn


HEAD_METHODS: dict[str, HeadMethod] = {
    "eagle": HeadMethod("eagle", make_eagle1, dynamic=False),
    "eagle2": HeadMethod("eagle", make_eagle2, dynamic=True, parts=PARTS),
    "eagle3": HeadMethod("eagle3", make_eagle3, dynamic=True, parts=PARTS),
    "one_pass": HeadMethod("one_pass", make_one_pass, dynamic=True, default=TreeSize(16, 7, 8)),
}
DYNAMIC = tuple(name for name, method in HEAD_METHODS.items() if method.dynamic)
OF_BLOCKS = tuple(name for name, method in HEAD_METHODS.items() if head_kind(method.kind).drafts_blocks)
"""Methods whose head drafts a block, in slots."""
MEASURED = tuple(name for name in DYNAMIC if HEAD_METHODS[name].default is None)
"""Methods whose tree, where no size is given, follows from costs measured on this machine."""


class Method(NamedTuple):
    """One row of `METHODS`."""

    build: Callable[[LoadedModel, MethodSettings], tuple[Drafter, Params]]
    takes_draft: bool = False
    sizes: tuple[Size, ...] = TRIPLE  # the sizes that it may be given
    factory: Callable[..., Drafter] | None = None  # of sizes of its own: its keywords have the defaults

    @property
    def own_sizes(self) -> tuple[Size, ...]:
        """Those that it declares beside its factory."""
        return tuple(size for size in self.sizes if size not in TRIPLE)

    def default(self, size: Size) -> int:
        """Of a size of its own."""
        assert self.factory is not None
        return inspect.signature(self.factory).parameters[size.name].default


def define_flags(values: flags.FlagValues, *, method: bool = True) -> None:
    """Add the flags that `MethodSettings` is made of and, where the script runs one method, `--method`."""
    if method:
        flags.DEFINE_string("method", "prompt_lookup", f"drafting method: {', '.join(METHODS)}", flag_values=values)
    for size in TRIPLE:
        flags.DEFINE_integer(size.name, None, size.help, flag_values=values)
    for name, own in METHODS.items():
        for size in own.own_sizes:
            default = own.default(size)
            define = flags.DEFINE_bool if isinstance(default, bool) else flags.DEFINE_integer
            shown = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
            define(size.name, None, f"{name}: {size.help}; default {shown}", flag_values=values)
    text = "draft model of chain and ouroboros: self:K for the first K layers of the target, or as --target; else the "
    text += "one that ships, distilled"
    flags.DEFINE_string("draft", "", text, flag_values=values)
    text = f"trained draft head of {', '.join(HEAD_METHODS)}: a directory or a Hugging Face id; else the one that ships"
    flags.DEFINE_string("head", "", text, flag_values=values)
    text = "tokens that a head or draft model drafts, the most frequent ones, 0 for all; else as many as it recommends"
    flags.DEFINE_integer("draft_vocab", None, text, flag_values=values)
    text = "tokens that a head looks back, for texts longer than it was trained on; default: all"
    flags.DEFINE_integer("head_window", None, text, flag_values=values)
    flags.DEFINE_string("dtype", "float32", "of weights and caches: float32, bfloat16, float16", flag_values=values)


def settings_from_flags(values: flags.FlagValues) -> tuple[str, MethodSettings]:
    """The name and settings of `--method`, checked as far as that goes without loading anything.

    Raises:
      ValueError: an unknown method, or a flag that the method does not take or cannot do without.
    """
    settings = _given(values)
    check_settings(values.method, settings)
    return values.method, settings


def _given(values: flags.FlagValues) -> MethodSettings:
    """What the flags say; a script that knows no mesh has no flag for it."""
    fields = {field: getattr(values, field) for field in MethodSettings._fields if field in values}
    sizes = ((name, getattr(values, name)) for name in OWN_SIZES)
    return MethodSettings(**fields, sizes=tuple((name, size) for name, size in sizes if size is not None))


def settings_for(name: str, values: flags.FlagValues) -> MethodSettings:
    """As `settings_from_flags`, for one of several methods: flags that not all take go to those that take them."""
    settings = _given(values)
    if name in METHODS:
        method = METHODS[name]
        taken = {size.name for size in method.sizes}
        others: dict[str, Any] = {size.name: None for size in TRIPLE if size.name not in taken}
        if not method.takes_draft:
            others["draft"] = ""
        if name not in HEAD_METHODS:
            others |= {"head": "", "head_window": None, "split_head": None}
        if name not in HEAD_METHODS and not method.takes_draft:
            others["draft_vocab"] = None
        settings = settings._replace(
            sizes=tuple((size, value) for size, value in settings.sizes if size in taken),
            **others,
        )
    check_settings(name, settings)
    return settings


def read_draft(text: str, values: flags.FlagValues) -> tuple[str, str, MethodSettings]:
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


def check_settings(name: str, settings: MethodSettings) -> None:
    """Refuse an unknown method, and flags that it does not take or cannot do without.

    Raises:
      ValueError: the first setting that the method does not take, or that is out of range.
    """
    if name not in METHODS:
        raise ValueError(f"method {name!r} is not one of {', '.join(METHODS)}")
    method, takes_head = METHODS[name], name in HEAD_METHODS
    taken = {size.name for size in method.sizes}
    all_sizes = {size.name: size for one in METHODS.values() for size in one.sizes}
    for flag, given, is_taken in (
        ("draft", settings.draft, method.takes_draft),
        ("head", settings.head, takes_head),
        ("draft_vocab", settings.draft_vocab, takes_head or method.takes_draft),
        ("head_window", settings.head_window, takes_head),
        ("split_head", settings.split_head, takes_head),
        *((size, settings.size(size), size in taken) for size in all_sizes),
    ):
        if given not in ("", None) and not is_taken:
            raise ValueError(f"--method={name} takes no --{flag}, got {given!r}")
    least = {**{size.name: size.least for size in all_sizes.values()}, "head_window": 1, "draft_vocab": 0}
    for flag, lowest in least.items():
        given = settings.size(flag)
        if given is not None and given < lowest:
            raise ValueError(f"--{flag} must be at least {lowest}, got {given}")


def with_tree(
    name: str, settings: MethodSettings, model: LoadedModel, *, batch: int = 1, temperatures: Sequence[float] = (0.0,)
) -> tuple[str, MethodSettings]:
    """A method and its settings where a dynamic tree without sizes has got the best for this machine.

    That may be none: then the method is plain decoding. One line on stderr says which and why.
    """
    if name not in MEASURED or settings.triple != (None, None, None):
        return name, settings
    kind = HEAD_METHODS[name].kind
    head, params = draft_weights.load_head(kind, model, settings)
    with status("Choosing a tree"):
        choice = choose_tree(
            model,
            settings.head or kind,
            head,
            params,
            batch=batch,
            temperatures=temperatures,
            split=settings.split_head,
        )
    note(f"{name}: {choice.reason}")
    if choice.size is None:
        return "vanilla", MethodSettings(dtype=settings.dtype)
    nodes, depth, top_k = choice.size
    return name, settings._replace(nodes=nodes, depth=depth, top_k=top_k)


def tree_drafter(head: Head | BlockHead, nodes: int, depth: int, top_k: int) -> Drafter:
    """The drafter with a dynamic tree for a head of this kind.

    Raises:
      ValueError: sizes that name no tree.
    """
    make = next(one.make for one in HEAD_METHODS.values() if one.dynamic and one.kind == head.config.kind)
    return make(head, nodes, depth, top_k)


def make_method(name: str, target: LoadedModel, settings: MethodSettings) -> tuple[Drafter, Params]:
    """The drafter and its weights.

    Raises:
      ValueError: sizes that the method cannot have, or a draft model or head that does not fit the target.
    """
    return METHODS[name].build(target, settings)


def _vanilla(target: LoadedModel, settings: MethodSettings) -> tuple[Drafter, Params]:
    del target
    if settings.nodes not in (None, 1) or settings.depth is not None or settings.top_k is not None:
        raise ValueError(f"vanilla drafts nothing: it takes no --depth and --top_k, and 1 node, got {settings.nodes}")
    return make_vanilla(), ()


def _prompt_lookup(target: LoadedModel, settings: MethodSettings) -> tuple[Drafter, Params]:
    del target
    return make_prompt_lookup(chain_length(settings, default=10)), ()


def _chain(target: LoadedModel, settings: MethodSettings) -> tuple[Drafter, Params]:
    num_drafted = chain_length(settings, default=5)
    draft, params = draft_weights.load_draft(target, settings)
    return make_chain(draft, num_drafted), params


def _lookahead(target: LoadedModel, settings: MethodSettings) -> tuple[Drafter, Params]:
    del target
    return make_lookahead(**dict(settings.sizes)), ()


def _ouroboros(target: LoadedModel, settings: MethodSettings) -> tuple[Drafter, Params]:
    draft, params = draft_weights.load_draft(target, settings)
    return make_ouroboros(draft, **dict(settings.sizes)), params


def _with_head(name: str, target: LoadedModel, settings: MethodSettings) -> tuple[Drafter, Params]:
    method = HEAD_METHODS[name]
    if not method.dynamic and settings.triple != (None, None, None):
        raise ValueError(f"the static tree of {name} is the published one, it takes no sizes; got {settings.triple}")
    sizes = tree_sizes(settings, batch=1)
    if method.dynamic:
        check_sizes(*sizes)
    head, params = draft_weights.load_head(method.kind, target, settings)
    drafter = method.make(head, *sizes) if method.dynamic else method.make(head)
    return drafter, draft_weights.placed(head, params, drafter, target, settings)


def _one_pass(target: LoadedModel, settings: MethodSettings) -> tuple[Drafter, Params]:
    head, params = draft_weights.load_block_head("one_pass", target, settings)
    usual = HEAD_METHODS["one_pass"].default
    assert usual is not None
    # A head may draft fewer positions than the default tree is deep.
    usual = usual._replace(depth=min(usual.depth, head.config.num_drafted - 1))
    drafter = make_one_pass(head, *fill_in(settings, usual), **dict(settings.sizes))
    return drafter, draft_weights.placed(head, params, drafter, target, settings)


METHODS: dict[str, Method] = {
    "vanilla": Method(_vanilla),
    "prompt_lookup": Method(_prompt_lookup),
    "lookahead": Method(_lookahead, sizes=lookahead.SIZES, factory=make_lookahead),
    "chain": Method(_chain, takes_draft=True),
    "ouroboros": Method(_ouroboros, takes_draft=True, sizes=ouroboros.SIZES, factory=make_ouroboros),
    **{name: Method(functools.partial(_with_head, name)) for name in ("eagle", "eagle2", "eagle3")},
    "one_pass": Method(_one_pass, sizes=(*TRIPLE, *one_pass.SIZES), factory=make_one_pass),
}

OWN_SIZES = tuple(size.name for method in METHODS.values() for size in method.own_sizes)
"""Sizes that single methods declare."""
