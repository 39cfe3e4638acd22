"""What the files of each kind of draft head hold: tensors by their names in the flat format, and what engines expect.

    EAGLE-3                                        EAGLE-1/2
    fc.weight [E, 3 E_target]                      fc.weight [E, 2E], mostly with fc.bias
    midlayer.self_attn.q_proj.weight [H*D, 2E]     layers.0.self_attn.q_proj.weight [H*D, E]
    midlayer.{hidden_norm,input_layernorm}.weight  layers.0.post_attention_layernorm.weight
    norm.weight                                    (no input norm, no final norm)

    one-pass (DFlash, DSpark)
    fc.weight [E, taps * E_target], hidden_norm.weight       layers.0.*, layers.1.*, ... as in a model, norm.weight
    markov_head.markov_w1.weight, .markov_w2.weight [V, r]   mask.weight [E]

Files spell these names in several ways; `flat_name` brings them to the ones above. `HEAD_FORMATS` is the one table of
what differs between kinds on disk; readers, writers and the validator ask it. Nothing here touches a file.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from eagle_jax.checkpoint.block_config import ARCHITECTURE, CONFIDENCE, EDGES_AFTER, EDGES_BEFORE, MASK
from eagle_jax.checkpoint.names import TensorSpec, layer_tensors, linear, table, vector
from eagle_jax.models.draft_head import NORMS, HeadConfig

Engine = Literal["sglang", "vllm", "speculators"]
ENGINES: dict[Engine, str] = {"sglang": "SGLang", "vllm": "vLLM", "speculators": "speculators"}
"""What heads are written for: two serving engines that load the flat format, and the library with a format of its own,
whose directories vLLM serves as well."""
FLAT: tuple[Engine, ...] = ("sglang", "vllm")
"""Those that load the flat format."""

LM_HEAD = "lm_head.weight"
"""[U, E]: rows of the draft vocabulary; EAGLE-1/2 heads use the target's LM head and store none."""
EMBEDDING = "embed_tokens.weight"
"""[V, E]: in most files a copy of the target's."""
D2T = "d2t"
"""i64[U]: draft token i is the target's token i + d2t[i]."""
T2D = "t2d"
"""bool[V]: whether a target token can be drafted; it says nothing that `d2t` does not say."""

_TAP_NORMS = {f"aux_norm_{tap}.weight": f"fc_norm.{index}.weight" for index, tap in enumerate(("low", "mid", "high"))}


class HeadFormat(NamedTuple):
    """How heads of one kind are stored."""

    mark: str  # matches the name of a tensor that tells this kind from the kinds above it in the table
    layer: str  # what the names of its first layer's tensors begin with
    tensors: Callable[[HeadConfig], dict[str, TensorSpec]]  # of `HeadParams.weights`, by name in the flat format
    architectures: Mapping[Engine, tuple[str, ...]]
    """What `architectures` may say for an engine to know the head; the first is written. Left out are engines without
    heads of this kind."""
    own_lm_head: bool  # may store an LM head with a draft vocabulary, `draft_vocab_size` in its config
    fc_bias: tuple[Engine, ...] = ()  # engines whose head has a bias of fc, which they leave random where it is missing
    norms: Mapping[Engine, tuple[str, ...]] = {}  # those of `NORMS` that an engine computes, where it computes any
    architecture: str = ""  # what is written for this package alone, where no engine has heads of this kind
    named: tuple[str, ...] = ()  # parts of names in `architectures` that mean this kind, where that is not its own name
    passed_over: tuple[str, ...] = ()  # what the names of tensors begin with that files may hold and nothing here reads
    speculators_type: str | None = None  # its `speculators_model_type`, where that library has heads of this kind


def _eagle_tensors(config: HeadConfig) -> dict[str, TensorSpec]:
    layer, width = config.layer, config.layer.width
    specs = linear("fc", ("fc",), (width + config.feature_width,), (width,), config.fc_bias)
    return specs | layer_tensors(layer, "layers.0", ("layers_0",), input_norm=False)


def _eagle3_tensors(config: HeadConfig) -> dict[str, TensorSpec]:
    layer, width = config.layer, config.layer.width
    specs = linear("fc", ("fc",), (config.feature_width,), (width,), config.fc_bias)
    specs |= layer_tensors(layer, "midlayer", ("midlayer",), input_width=2 * width)
    specs["midlayer.hidden_norm.weight"] = vector(("midlayer", "hidden_norm", "weight"), width)
    specs["norm.weight"] = vector(("norm", "weight"), width)
    specs |= _tap_norms(config)
    if config.norm_before_fc:
        specs["input_norm.weight"] = vector(("input_norm", "weight"), config.feature_width)
    return specs


def _block_tensors(config: HeadConfig) -> dict[str, TensorSpec]:
    layer, width = config.layer, config.layer.width
    specs = linear("fc", ("fc",), (config.feature_width,), (width,), config.fc_bias)
    specs |= {f"{name}.weight": vector((name, "weight"), width) for name in ("hidden_norm", "norm")}
    for index, name in enumerate(config.layer_names):
        specs |= layer_tensors(layer, f"layers.{index}", (name,))
    specs |= _tap_norms(config)
    if config.joins_context:
        specs |= linear("join", ("join",), (2 * width,), (width,))
        specs["embed_norm.weight"] = vector(("embed_norm", "weight"), width)
    if config.mask_token is None:
        specs[MASK] = vector(("mask",), width)
    if config.edge_rank:
        specs[EDGES_BEFORE] = table(("edges", "previous"), layer.vocab_size, config.edge_rank)
        specs[EDGES_AFTER] = table(("edges", "following"), layer.vocab_size, config.edge_rank)
    return specs


def _tap_norms(config: HeadConfig) -> dict[str, TensorSpec]:
    width = config.feature_width // config.num_taps
    taps = range(config.num_taps if config.fc_norm else 0)
    return {f"fc_norm.{tap}.weight": vector((f"fc_norm_{tap}", "weight"), width) for tap in taps}


HEAD_FORMATS: dict[str, HeadFormat] = {
    "eagle": HeadFormat(
        mark="",
        layer="layers.0.",
        tensors=_eagle_tensors,
        # vLLM puts its prefix before a plain name.
        architectures={"sglang": ("LlamaForCausalLMEagle",), "vllm": ("EagleLlamaForCausalLM", "LlamaForCausalLM")},
        own_lm_head=False,
        fc_bias=("sglang",),
    ),
    "eagle3": HeadFormat(
        mark=r"hidden_norm\.weight$",  # only the layer of an EAGLE-3 head norms its state beside the embedding
        layer="midlayer.",
        tensors=_eagle3_tensors,
        architectures={
            "sglang": ("LlamaForCausalLMEagle3",),
            "vllm": ("LlamaForCausalLMEagle3", "LlamaForCausalLM", "Eagle3LlamaForCausalLM"),
            "speculators": ("Eagle3Speculator", "Eagle3DraftModel"),
        },
        own_lm_head=True,
        norms={"sglang": ("fc_norm", "norm_output"), "vllm": NORMS, "speculators": NORMS},
        speculators_type="eagle3",
    ),
    "one_pass": HeadFormat(
        mark=r"^(model\.)?hidden_norm\.weight$",  # of the features, outside any layer
        layer="layers.0.",
        tensors=_block_tensors,
        architectures={},
        architecture=ARCHITECTURE,
        named=("onepass", "dflash", "dspark"),
        passed_over=(CONFIDENCE,),
        own_lm_head=True,
    ),
}
"""By the kinds of `models.draft_head.HEAD_KINDS`; a kind stands below those whose mark its files have too."""


def kind_of(names: Iterable[str]) -> str:
    """The kind of head that has tensors of these names."""
    names = ["", *names]  # the first kind needs no mark
    return [kind for kind, form in HEAD_FORMATS.items() if any(re.search(form.mark, name) for name in names)][-1]


def kind_named(architecture: str) -> str | None:
    """The kind that a name in `architectures` contains, the longest where one kind's name contains another's."""
    parts = {part: kind for kind, form in HEAD_FORMATS.items() for part in form.named or (kind,)}
    name = max((part for part in parts if part in architecture.lower()), key=len, default=None)
    return None if name is None else parts[name]


def flat_name(name: str, kind: str) -> str:
    """`model.layers.0.mlp.up_proj.weight` of an EAGLE-3 head -> `midlayer.mlp.up_proj.weight`."""
    name = name.removeprefix("model.")
    for other in HEAD_FORMATS.values():
        if name.startswith(other.layer):
            return HEAD_FORMATS[kind].layer + name.removeprefix(other.layer)
    return _TAP_NORMS.get(name, name)


def count_layers(names: Iterable[str]) -> int:
    """Decoder layers of a head whose tensors have these names in the flat format; the first has a name by its kind."""
    later = (re.match(r"layers\.([1-9]\d*)\.", name) for name in names)
    return 1 + len({match[1] for match in later if match})


def flat_names(names: Iterable[str], kind: str) -> dict[str, str]:
    """Names of the flat format, each with the one that the file uses.

    Raises:
      ValueError: two tensors that mean the same.
    """
    stored: dict[str, str] = {}
    for name in names:
        flat = flat_name(name, kind)
        if flat in stored:
            raise ValueError(f"tensors {stored[flat]} and {name} are both {flat}")
        stored[flat] = name
    return stored


def head_tensors(config: HeadConfig) -> dict[str, TensorSpec]:
    """Every tensor of `HeadParams.weights`, by its name in the flat format."""
    return HEAD_FORMATS[config.kind].tensors(config)
