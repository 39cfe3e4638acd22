"""Where every tensor of a checkpoint lives in the parameter tree: the one table, readable in both directions.

Hugging Face stores a linear map as [out, in]; the tree stores [in, out] with the heads as axes of their own:

    model.layers.3.self_attn.q_proj.weight [H*D, E]   <->   layers_3/self_attn/q_proj/kernel [E, H, D]
    model.layers.3.self_attn.o_proj.weight [E, H*D]   <->   layers_3/self_attn/o_proj/kernel [H, D, E]

The experts of a layer are stored one by one and stacked in the tree, [X, in, out].

GGUF (llama.cpp) names the same tensors otherwise; `gguf_name` translates. Nothing here touches a file.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from eagle_jax.models.config import ModelConfig

Path = tuple[str, ...]

Slices = tuple[slice, ...]
"""One for each axis, of step 1."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One tensor: its place in the tree and its two shapes."""

    path: Path
    stored_shape: tuple[int, ...]  # in the checkpoint
    shape: tuple[int, ...]  # in the tree
    transposed: bool = False  # stored [out, in]
    place: int | None = None  # along a leading axis of the tree's array, where that stacks tensors; `shape` is of one

    def to_tree(self, stored: np.ndarray) -> np.ndarray:
        """From the checkpoint's layout to the tree's; of a stacked tensor, its part of the array."""
        return np.ascontiguousarray((stored.T if self.transposed else stored).reshape(self.shape))

    def part(self, index: Slices) -> tuple[Slices, "TensorSpec"]:
        """What the checkpoint stores of `index`, a part of the tree's tensor, and the spec of that part.

        Raises:
          ValueError: the part is no block of the stored tensor: it has some numbers of each head, say, of each of
            several heads.
        """
        axes = list(zip(index, self.shape, strict=True))
        stored, shape = [], []
        for size in reversed(self.stored_shape) if self.transposed else self.stored_shape:
            cut, length = axes.pop(0)
            start, stop, _ = cut.indices(length)
            shape.append(stop - start)
            inner = size // length  # axes of the tree that the stored axis holds after this one
            stored.append(slice(start * inner, stop * inner))
            while inner > 1:
                cut, length = axes.pop(0)
                if cut.indices(length) != (0, length, 1):
                    raise ValueError(f"{'/'.join(self.path)} {self.shape} is not stored in parts such as {index}")
                shape.append(length)
                inner //= length
        shape += [length for _, length in axes]  # of size 1
        stored = stored[::-1] if self.transposed else stored
        sizes = tuple(cut.stop - cut.start for cut in stored)
        return tuple(stored), dataclasses.replace(self, stored_shape=sizes, shape=tuple(shape))

    def to_stored(self, value: np.ndarray) -> np.ndarray:
        """From the tree's layout to the checkpoint's; `value` is all of a stacked array."""
        value = value if self.place is None else value[self.place]
        if self.transposed:
            return np.ascontiguousarray(value.reshape(self.stored_shape[::-1]).T)
        return np.ascontiguousarray(value.reshape(self.stored_shape))


def vector(path: Path, size: int) -> TensorSpec:
    """A norm's weight."""
    return TensorSpec(path, (size,), (size,))


def table(path: Path, rows: int, width: int) -> TensorSpec:
    """An embedding or LM head: rows stay rows."""
    return TensorSpec(path, (rows, width), (rows, width))


def linear(
    name: str, path: Path, inputs: tuple[int, ...], outputs: tuple[int, ...], bias: bool = False
) -> dict[str, TensorSpec]:
    """A linear map from the axes `inputs` to the axes `outputs`, with its bias where it has one."""
    stored = (math.prod(outputs), math.prod(inputs))
    specs = {f"{name}.weight": TensorSpec((*path, "kernel"), stored, (*inputs, *outputs), transposed=True)}
    if bias:
        specs[f"{name}.bias"] = TensorSpec((*path, "bias"), stored[:1], outputs)
    return specs


def expert_tensors(config: ModelConfig, name: str, path: Path) -> dict[str, TensorSpec]:
    """The router and the experts of a layer, under the names of Qwen3-MoE."""
    experts, width = config.experts, (config.width,)
    assert experts is not None
    specs = linear(f"{name}.gate", (*path, "gate"), width, (experts.count,))
    inner = (experts.width,)
    for part, inputs, outputs in (
        ("gate_proj", width, inner),
        ("up_proj", width, inner),
        ("down_proj", inner, width),
    ):
        one = TensorSpec((*path, "experts", part), (*outputs, *inputs), (*inputs, *outputs), transposed=True)
        for place in range(experts.count):
            specs[f"{name}.experts.{place}.{part}.weight"] = dataclasses.replace(one, place=place)
    return specs


def layer_tensors(
    config: ModelConfig,
    name: str,
    path: Path,
    *,
    input_width: int | None = None,
    input_norm: bool = True,
    sparse: bool = False,
) -> dict[str, TensorSpec]:
    """One decoder layer.

    Args:
      config: shape of the layer.
      name: prefix of the stored names, such as `model.layers.3`.
      path: place of the layer in the tree, such as `("layers_3",)`.
      input_width: width that q, k and v read; the model's width where left out (an EAGLE-3 head reads twice that).
      input_norm: whether the layer has an `input_layernorm` (the layer of an EAGLE-1 head has none).
      sparse: whether it has experts in place of an MLP.
    """
    width, heads = config.width, (config.num_heads, config.head_dim)
    kv_heads = (config.num_kv_heads, config.head_dim)
    inputs = (input_width or width,)
    attention, mlp = (*path, "self_attn"), (*path, "mlp")
    specs = {}
    if input_norm:
        specs[f"{name}.input_layernorm.weight"] = vector((*path, "input_layernorm", "weight"), width)
    norms = ["post_attention_layernorm"]
    if config.sandwich_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for norm in norms:
        specs[f"{name}.{norm}.weight"] = vector((*path, norm, "weight"), width)
    for part, outputs in (("q_proj", heads), ("k_proj", kv_heads), ("v_proj", kv_heads)):
        specs |= linear(f"{name}.self_attn.{part}", (*attention, part), inputs, outputs, config.qkv_bias)
    specs |= linear(f"{name}.self_attn.o_proj", (*attention, "o_proj"), heads, (width,), config.output_bias)
    if config.qk_norm:
        for part in ("q_norm", "k_norm"):
            specs[f"{name}.self_attn.{part}.weight"] = vector((*attention, part, "weight"), config.head_dim)
    if sparse:
        return specs | expert_tensors(config, f"{name}.mlp", mlp)
    for part in ("gate_proj", "up_proj"):
        specs |= linear(f"{name}.mlp.{part}", (*mlp, part), (width,), (config.mlp_width,), config.mlp_bias)
    return specs | linear(f"{name}.mlp.down_proj", (*mlp, "down_proj"), (config.mlp_width,), (width,), config.mlp_bias)


def target_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor of a target, by its Hugging Face name."""
    specs = {
        "model.embed_tokens.weight": table(("embed_tokens",), config.vocab_size, config.width),
        "model.norm.weight": vector(("norm", "weight"), config.width),
    }
    for layer in range(config.num_layers):
        sparse = config.is_sparse(layer)
        specs |= layer_tensors(config, f"model.layers.{layer}", (f"layers_{layer}",), sparse=sparse)
    if not config.tie_embeddings:
        specs["lm_head.weight"] = table(("lm_head",), config.vocab_size, config.width)
    return specs


_GGUF_MODULES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(hf_name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    module, _, kind = hf_name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if layer:
        return f"blk.{layer[1]}.{_GGUF_MODULES[layer[2]]}.{kind}"
    return f"{_GGUF_MODULES[module]}.{kind}"


def insert(tree: dict[str, Any], path: Path, value: Any) -> None:
    """Put a leaf into a nested dict."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def lookup(tree: Mapping[str, Any], path: Path) -> Any:
    """The leaf of a nested dict at `path`."""
    node: Any = tree
    for key in path:
        node = node[key]
    return node
