"""Draft heads: what kinds there are, and those of EAGLE, one decoder layer that predicts from the target's features.

EAGLE-1/2 (arXiv 2401.15077, section 3.1; 2406.16858): the state is a guess of the target's next feature.

    state' = layer(fc([embedding(x_{p+1}); state_p]))          logits = LM head of the target on state'

EAGLE-3 (arXiv 2503.01840, section 3.1): three tapped layers are fused once; afterwards the head feeds on itself.

    state_p = fc([low; mid; high])                             logits = own LM head on norm(state')
    state'  = layer([norm(embedding(x_{p+1})); norm(state_p)]), residual around state_p

Later heads move or add norms (`NORMS`): EAGLE-3.1 before `fc`, tap by tap, and on the state that is fed back; the
library speculators before `fc`, over all taps at once, and on the residual stream, which then starts at norm(state_p).

Slot p joins the target's features at position p with the token at p + 1; its output predicts position p + 2. Knows
neither trees nor caches: who attends to whom is the caller's `attend_fn`. Heads that predict a block of tokens in one
pass are in `block_head`.

A kind of head is a row in each of four tables: what it computes (`HEAD_KINDS`), what its files hold (`HEAD_FORMATS` in
`checkpoint.head_formats`), how it is trained (`RECIPES_OF_KIND` in `training.recipes`), and which methods draft with it
(`HEAD_METHODS` in `experiments.cli.methods`). Other code reads these tables and compares no kinds.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from eagle_jax.models.block_module import BlockModule
from eagle_jax.models.config import ModelConfig, check_target_ids, check_weights, plain_shapes
from eagle_jax.models.layers import (
    MLP,
    AttendFn,
    Attention,
    LayerOutput,
    Projection,
    RMSNorm,
    in_full_precision,
    lookup_rows,
    score_rows,
)
from eagle_jax.models.rope import angles
from eagle_jax.types import Params, Target, any_weights

NORMS = ("fc_norm", "norm_output", "norm_before_residual", "norm_before_fc")
"""Fields of `HeadConfig` that add a norm or move one; configs of all formats have them under these names."""

BLOCK_FIELDS = ("num_layers", "block", "edge_rank", "shifted", "bidirectional", "mask_token", "joins_context")
"""Fields of `HeadConfig` that say how a head drafts a block; the others draft token by token with one layer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Shape of a draft head."""

    kind: str  # one of `HEAD_KINDS`
    layer: ModelConfig  # of each of its layers; `vocab_size` is the target's
    feature_width: int  # of what `fc` reads of the target, as `HeadKind.feature_width` gives it
    fc_bias: bool = False  # EAGLE-1 heads mostly have one
    fc_norm: bool = False  # EAGLE-3.1: RMSNorm on each tap before fc
    norm_output: bool = False  # EAGLE-3.1: the state fed back is the one after the final norm
    norm_before_residual: bool = False  # speculators: the residual stream starts at the normed state
    norm_before_fc: bool = False  # speculators: one RMSNorm on all taps side by side before fc
    num_taps: int = 3
    parts: tuple[int, ...] = ()  # what it fuses of (tap 0, tap 1, ..., last hidden state); () is all taps
    num_layers: int = 1
    block: int = 0  # slots of a block: the anchor and masks; 0 for heads that draft token by token
    edge_rank: int = 0  # of the scores of a token given the one before it; 0: a block has no edges
    shifted: bool = True  # slot i of a block predicts the token after its own position; else (DFlash) the one at it
    bidirectional: bool = False  # slots of a block see later slots too (DFlash, DSpark)
    joins_context: bool = (
        False  # slots of a block start with the context of the last token too, not their embedding alone
    )
    mask_token: int | None = None  # whose embedding stands in the slots after the anchor; None: a vector of the head's

    def __post_init__(self) -> None:
        """Refuses an unknown kind, parts that heads of the kind do not have, and two norms in one place."""
        what = head_kind(self.kind)
        for name in NORMS:
            if getattr(self, name) and name not in what.norms:
                raise ValueError(f"{name} is set, but {what.title} heads have no such norm")
        if self.fc_norm and self.norm_before_fc:
            raise ValueError("fc_norm and norm_before_fc are both set: taps are normed one by one or all at once")
        if not what.drafts_blocks:
            for field in dataclasses.fields(self):
                if field.name in BLOCK_FIELDS and getattr(self, field.name) != field.default:
                    raise ValueError(f"{field.name} is {getattr(self, field.name)}, but {what.title} heads have none")
        elif self.num_layers < 1 or self.num_drafted < 1 or self.edge_rank < 0:
            raise ValueError(
                f"a block head has at least 1 layer and 1 drafted token and no negative rank, got num_layers"
                f" {self.num_layers}, block {self.block} ({self.num_drafted} drafted) and edge_rank {self.edge_rank}"
            )

    @property
    def num_drafted(self) -> int:
        """Positions that a block predicts."""
        return self.block if self.shifted else self.block - 1

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Its decoder layers among the weights."""
        return tuple(head_kind(self.kind).layer.format(index) for index in range(self.num_layers))

    @property
    def target_width(self) -> int:
        """E of the target."""
        return self.feature_width // (self.num_taps if head_kind(self.kind).reads_taps else 1)


@struct.dataclass
class HeadParams:
    """Weights of a draft head; the parts left out are the target's."""

    weights: Params  # fc, the layer and the norms, under their names in published checkpoints
    lm_head: jax.Array | None = None  # [U, E], rows of the draft vocabulary; None: the target's LM head, U = V
    target_ids: jax.Array | None = None  # i32[U], target token of each draft token; None: the same ids, U = V
    embedding: jax.Array | None = None  # [V, E]; None: the target's


def features_of(config: HeadConfig, hidden: jax.Array, taps: jax.Array) -> jax.Array:
    """What a head reads of its target.

    Args:
      config: the head.
      hidden: [..., E], the target's last hidden state, after its final norm: all that an EAGLE-1/2 head reads.
      taps: [..., number of taps * E].

    Returns:
      [..., feature width].
    """
    if not head_kind(config.kind).reads_taps:
        return hidden
    if not config.parts:
        return taps
    given = jnp.split(jnp.concatenate([taps, hidden], axis=-1), taps.shape[-1] // hidden.shape[-1] + 1, axis=-1)
    return jnp.concatenate([given[part] for part in config.parts], axis=-1)


class EagleLayer(nn.Module):
    """A decoder layer whose attention reads `input_width` features and whose residual stream is `x`."""

    config: ModelConfig
    fused_input: bool
    norm_before_residual: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, embedded: jax.Array, rope: tuple[jax.Array, jax.Array], attend_fn: AttendFn
    ) -> LayerOutput:
        """State and embedding [B, T, E] -> [B, T, E], new keys, new values."""
        config = self.config
        read = x  # EAGLE-1 has no norm here
        if self.fused_input:
            embedded = RMSNorm(config.width, config.norm_eps, name="input_layernorm")(embedded)
            state = RMSNorm(config.width, config.norm_eps, name="hidden_norm")(x)
            read = jnp.concatenate([embedded, state], axis=-1)
            x = state if self.norm_before_residual else x
        mixed, keys, values = Attention(config, read.shape[-1], name="self_attn")(read, rope, attend_fn)
        x = x + mixed
        normed = RMSNorm(config.width, config.norm_eps, name="post_attention_layernorm")(x)
        return x + MLP(config, name="mlp")(normed), keys, values


class EagleModule(nn.Module):
    """EAGLE-1/2: `fc` joins embedding and state at every step; no norm before the layer and none after it."""

    config: HeadConfig

    def setup(self) -> None:
        """Declares the weights under their published names."""
        layer = self.config.layer
        inputs = {"embed": layer.width + self.config.feature_width}
        self.fc = Projection(inputs, {"embed": layer.width}, self.config.fc_bias)
        self.layers_0 = EagleLayer(layer, fused_input=False)

    def fuse(self, features: jax.Array) -> jax.Array:
        """The target's feature is the state: [B, T, E] -> [B, T, E]."""
        return features

    def readout(self, x: jax.Array) -> jax.Array:
        """What the LM head reads: the state itself."""
        return x

    def __call__(
        self, states: jax.Array, embedded: jax.Array, rope: tuple[jax.Array, jax.Array], attend_fn: AttendFn
    ) -> LayerOutput:
        """One pass, as `Head.step`."""
        return self.layers_0(self.fc(jnp.concatenate([embedded, states], axis=-1)), embedded, rope, attend_fn)


class Eagle3Module(nn.Module):
    """EAGLE-3: `fc` fuses the taps once; embedding and state meet in the attention."""

    config: HeadConfig

    def setup(self) -> None:
        """Declares the weights under their published names."""
        config = self.config
        width, eps = config.layer.width, config.layer.norm_eps
        self.fc = Projection({"embed": config.feature_width}, {"embed": width}, config.fc_bias)
        self.midlayer = EagleLayer(config.layer, fused_input=True, norm_before_residual=config.norm_before_residual)
        self.norm = RMSNorm(width, eps)
        if config.fc_norm:
            self.fc_norm = [RMSNorm(config.feature_width // config.num_taps, eps) for _ in range(config.num_taps)]
        if config.norm_before_fc:
            self.input_norm = RMSNorm(config.feature_width, eps)

    def fuse(self, features: jax.Array) -> jax.Array:
        """What `features_of` gives, taps side by side -> the first state [B, T, E]."""
        if self.config.fc_norm:
            taps = jnp.split(features, self.config.num_taps, axis=-1)
            features = jnp.concatenate([norm(tap) for norm, tap in zip(self.fc_norm, taps, strict=True)], axis=-1)
        if self.config.norm_before_fc:
            features = self.input_norm(features)
        return self.fc(features)

    def readout(self, x: jax.Array) -> jax.Array:
        """What the LM head reads: the normed state."""
        return x if self.config.norm_output else self.norm(x)

    def __call__(
        self, states: jax.Array, embedded: jax.Array, rope: tuple[jax.Array, jax.Array], attend_fn: AttendFn
    ) -> LayerOutput:
        """One pass, as `Head.step`."""
        x, keys, values = self.midlayer(states, embedded, rope, attend_fn)
        return (self.norm(x) if self.config.norm_output else x), keys, values


def _block_module(config: HeadConfig) -> BlockModule:
    return BlockModule(
        layer=config.layer,
        num_layers=config.num_layers,
        feature_width=config.feature_width,
        num_taps=config.num_taps,
        fc_bias=config.fc_bias,
        fc_norm=config.fc_norm,
        edge_rank=config.edge_rank,
        own_mask=config.mask_token is None,
        joins_context=config.joins_context,
    )


class HeadKind(NamedTuple):
    """What differs between kinds of heads in what they compute; files and training have tables of their own."""

    title: str  # in messages
    module: Callable[[HeadConfig], nn.Module]  # with `fuse`, `__call__` and `readout` as above
    layer: str  # name of a decoder layer among the weights, {} for its index where there may be several
    reads_taps: bool  # hidden states of several layers, which can be chosen; else the last hidden state alone
    fuses_once: bool  # fc reads the features once, in `fuse`; else it reads embedding and state at every step
    fc_bias: bool  # of heads that are trained here, as published ones have it
    norms: tuple[str, ...] = ()  # those of `NORMS` that its module computes
    drafts_blocks: bool = False  # one pass predicts several tokens (`block_head`); else a pass a token (`Head.step`)
    sizes: Mapping[str, Any] = {}  # fields of `HeadConfig` of heads that are trained here

    def feature_width(self, target_width: int, num_taps: int) -> int:
        """Width of what `features_of` gives."""
        return target_width * (num_taps if self.reads_taps else 1)


HEAD_KINDS: dict[str, HeadKind] = {
    "eagle": HeadKind("EAGLE-1", EagleModule, "layers_{}", reads_taps=False, fuses_once=False, fc_bias=True),
    "eagle3": HeadKind(
        "EAGLE-3", Eagle3Module, "midlayer", reads_taps=True, fuses_once=True, fc_bias=False, norms=NORMS
    ),
    "one_pass": HeadKind(
        "one-pass",
        _block_module,
        "layers_{}",
        reads_taps=True,
        fuses_once=True,
        fc_bias=False,
        norms=("fc_norm",),
        drafts_blocks=True,
        sizes={"num_layers": 3, "block": 8, "edge_rank": 64},
    ),
}


def head_kind(name: str) -> HeadKind:
    """A row of `HEAD_KINDS`.

    Raises:
      ValueError: no such kind.
    """
    if name not in HEAD_KINDS:
        raise ValueError(f"a head is of kind {' or '.join(HEAD_KINDS)}, got {name!r}")
    return HEAD_KINDS[name]


class HeadParts(NamedTuple):
    """What heads of all kinds have, as pure functions of their weights."""

    config: HeadConfig
    init: Callable[[jax.Array], Params]
    """key -> random float32 `HeadParams.weights`, boxed with logical axis names."""
    fuse: Callable[[HeadParams, jax.Array], jax.Array]
    """(params, the target's features [B, T, feature_width]) -> states [B, T, E]"""
    embed: Callable[[HeadParams, Params, jax.Array], jax.Array]
    """(params, target_params, tokens i32[...]) -> [..., E]"""
    readout: Callable[[HeadParams, jax.Array], jax.Array]
    """(params, states [..., E]) -> what the LM head reads [..., E]"""
    logits: Callable[[HeadParams, Params, jax.Array], jax.Array]
    """(params, target_params, states [..., E]) -> f32[..., U]"""
    check: Callable[[HeadParams], None]
    """(params) -> nothing; ValueError for weights of another head"""


class Head(NamedTuple):
    """A draft head as pure functions of its weights: those of `HeadParts`, and the pass."""

    config: HeadConfig
    init: Callable[[jax.Array], Params]
    fuse: Callable[[HeadParams, jax.Array], jax.Array]
    embed: Callable[[HeadParams, Params, jax.Array], jax.Array]
    step: Callable[[HeadParams, jax.Array, jax.Array, jax.Array, AttendFn], LayerOutput]
    """(params, states [B,T,E], embedded [B,T,E], positions i32[B,T], attend_fn) -> next states, keys, values. Positions
    are the head's own: slot p stands at p."""
    readout: Callable[[HeadParams, jax.Array], jax.Array]
    logits: Callable[[HeadParams, Params, jax.Array], jax.Array]
    check: Callable[[HeadParams], None] = any_weights


def make_parts(config: HeadConfig, target: Target, trace: Callable[[nn.Module], object]) -> HeadParts:
    """What a head of any kind has.

    Args:
      config: the head.
      target: whose embedding and LM head it uses where it has none.
      trace: runs everything of the head's module once, so that it declares its weights.
    """
    module = head_kind(config.kind).module(config)
    width = config.layer.width

    def init(key: jax.Array) -> Params:
        return nn.init(trace, module)(key)["params"]

    def fuse(params: HeadParams, features: jax.Array) -> jax.Array:
        return module.apply({"params": params.weights}, features, method="fuse")

    def embed(params: HeadParams, target_params: Params, tokens: jax.Array) -> jax.Array:
        if params.embedding is None:
            return target.embed(target_params, tokens)
        return lookup_rows(params.embedding, tokens)

    def readout(params: HeadParams, states: jax.Array) -> jax.Array:
        return module.apply({"params": params.weights}, states, method="readout")

    def logits(params: HeadParams, target_params: Params, states: jax.Array) -> jax.Array:
        read = readout(params, states)
        if params.lm_head is None:
            return target.unembed(target_params, read)
        return score_rows(params.lm_head, read)

    @functools.cache
    def shapes() -> Params:
        return jax.eval_shape(init, jax.random.key(0))

    def check(params: HeadParams) -> None:
        if not isinstance(params, HeadParams):
            raise TypeError(f"weights of a draft head are HeadParams, got {type(params).__name__}")
        params = plain_shapes(params)
        check_weights(params.weights, shapes())
        if params.lm_head is not None and params.lm_head.shape[1] != width:
            raise ValueError(f"the head's LM head reads {params.lm_head.shape[1]} features, its states have {width}")
        check_target_ids(params.lm_head, params.target_ids)

    return HeadParts(config, init, in_full_precision(fuse), embed, readout, in_full_precision(logits), check)


@functools.cache
def make_head(config: HeadConfig, target: Target) -> Head:
    """An EAGLE head as pure functions; equal arguments give the same object, so nothing is compiled twice.

    Raises:
      ValueError: a head that drafts blocks, which is made by `block_head.make_block_head`.
    """
    what = head_kind(config.kind)
    if what.drafts_blocks:
        raise ValueError(f"{what.title} heads draft blocks, not token by token: they are made by make_block_head")
    module = what.module(config)

    def trace(module: nn.Module) -> jax.Array:
        features = jnp.zeros((1, 1, config.feature_width))
        none, rope = jnp.zeros((1, 1, config.layer.width)), angles(config.layer, jnp.zeros((1, 1), jnp.int32))
        return module.readout(module(module.fuse(features), none, rope, lambda q, k, v: q)[0])

    def step(
        params: HeadParams, states: jax.Array, embedded: jax.Array, positions: jax.Array, attend_fn: AttendFn
    ) -> LayerOutput:
        return module.apply({"params": params.weights}, states, embedded, angles(config.layer, positions), attend_fn)

    return Head(step=in_full_precision(step), **make_parts(config, target, trace)._asdict())
