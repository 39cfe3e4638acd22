"""Shape and constants of one decoder-only transformer, as plain hashable data, and whether weights have that shape.

Covers the published variations that the package runs: grouped queries, RoPE scalings, biases, query/key norms, sliding
windows, tied embeddings, the norms and constants of Gemma 3, mixtures of experts. Knows nothing of files or of
decoding.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from eagle_jax.kernels.packed import unpack
from eagle_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """One RoPE scaling as published configs spell it: `kind` is default, linear, llama3 or yarn."""

    kind: str = "default"
    factor: float = 1.0
    original_max_positions: int = 0  # llama3, yarn: context of the unscaled model
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn: None is 0.1 ln(factor) + 1, or the ratio of the two mscales
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn: round the correction range to whole dimensions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experts:
    """A mixture of experts in place of MLPs: each token goes through the few experts that its router scores highest."""

    count: int  # X
    per_token: int
    width: int  # inner width of one expert
    renormalize: bool  # divide the probabilities of a token's experts by their sum
    dense_layers: tuple[int, ...] = ()  # layers that have an MLP all the same

    def __post_init__(self) -> None:
        """Refuses more experts a token than there are."""
        if not 1 <= self.per_token <= self.count:
            raise ValueError(f"a token goes through 1 to {self.count} experts, got {self.per_token}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides shape and arithmetic of a transformer; hashable, so that it can be a static argument."""

    vocab_size: int
    width: int  # E
    mlp_width: int  # F
    num_layers: int  # L
    num_heads: int  # H
    num_kv_heads: int  # K
    head_dim: int  # D
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling = RopeScaling()
    qkv_bias: bool = False  # Qwen2: biases on q, k and v
    output_bias: bool = False  # Llama's attention_bias: one on o too
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3, Gemma 3: RMSNorm over each head of q and k
    windows: tuple[int | None, ...] = ()  # per layer: a query at i sees keys j with i - j < window; () is no window
    local_rope_theta: float | None = None  # Gemma 3: RoPE base of layers with a window, unscaled; None: as all others
    query_pre_attn_scalar: float | None = None  # Gemma 3: scores are divided by its root; None is the head size
    embed_scale: float = 1.0  # Gemma 3: factor of what embeddings give to the first layer
    zero_centered_norms: bool = False  # Gemma 3: an RMSNorm multiplies by 1 + weight
    sandwich_norms: bool = False  # Gemma 3: norms after attention and MLP too
    activation: str = "silu"  # of MLPs, one of `layers.ACTIVATIONS`
    experts: Experts | None = None  # Qwen3-MoE
    tie_embeddings: bool = False
    tap_layers: tuple[int, ...] = ()  # hidden states entering these layers are returned; () is the EAGLE-3 default
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def taps(self) -> tuple[int, ...]:
        """Layers whose inputs are tapped: 2, L//2 and L-3 unless given (EAGLE-3; reference: `cnets.py`)."""
        if self.tap_layers:
            return self.tap_layers
        last = self.num_layers - 1
        return (min(2, last), self.num_layers // 2, max(self.num_layers - 3, 0))

    @property
    def score_scale(self) -> float:
        """Factor of attention scores."""
        return (self.query_pre_attn_scalar or self.head_dim) ** -0.5

    def window(self, layer: int) -> int | None:
        """Sliding window of one layer, or None."""
        return self.windows[layer] if self.windows else None

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has a mixture of experts in place of an MLP."""
        return self.experts is not None and layer not in self.experts.dense_layers

    def llama_layer(self) -> "ModelConfig":
        """One layer of Llama in the sizes of this model: what engines load as the layer of a draft head."""
        return ModelConfig(num_layers=1, **{name: getattr(self, name) for name in _LLAMA_FIELDS})


_LLAMA_FIELDS = (
    *("vocab_size", "width", "mlp_width", "num_heads", "num_kv_heads", "head_dim", "max_positions"),
    *("norm_eps", "rope_theta", "rope_scaling", "bos_id", "eos_ids"),
)


def check_weights(given: Params, wanted: Params) -> None:
    """Compare names and shapes before a pass fails deep inside its layers; dtypes are the caller's choice.

    Args:
      given: weights, a tree of arrays.
      wanted: the same tree, of arrays or of their shapes, boxed with names of axes or not.

    Raises:
      ValueError: a weight that is missing, has no place in the model, or has another shape: the first by name.
    """
    has, needs = _shapes(plain_shapes(given)), _shapes(nn.unbox(wanted))
    for name in sorted(has.keys() | needs.keys()):
        if has.get(name) != needs.get(name):
            there, here = has.get(name, "missing"), needs.get(name, "nothing")
            raise ValueError(f"weights of another model: {name or 'all of it'} is {there} there, {here} in this one")


def check_target_ids(lm_head: Any, target_ids: Any) -> None:
    """Refuse a draft vocabulary i32[U] that names more or fewer tokens than its LM head [U, E] has rows.

    Raises:
      ValueError: these numbers differ.
    """
    rows, ids = (None if one is None else len(one) for one in (lm_head, target_ids))
    if ids is not None and ids != rows:
        raise ValueError(f"target_ids names {ids} tokens, the head's LM head has {rows or 'no'} rows")


def plain_shapes(params: Params) -> Params:
    """Shapes of weights; of packed ones, the shapes before packing."""
    return jax.eval_shape(unpack, params)


def _shapes(tree: Params) -> dict[str, tuple[int, ...] | str]:
    leaves: Any = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(leaf) for path, leaf in leaves}
