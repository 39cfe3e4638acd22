"""Where every tensor of a published draft head lives in `HeadParams.weights`, by its name in the flat format.

    EAGLE-3                                        EAGLE-1/2
    fc.weight [E, 3 E_target]                      fc.weight [E, 2E], mostly with fc.bias
    midlayer.self_attn.q_proj.weight [H*D, 2E]     layers.0.self_attn.q_proj.weight [H*D, E]
    midlayer.{hidden_norm,input_layernorm}.weight  layers.0.post_attention_layernorm.weight
    norm.weight                                    (no input norm, no final norm)

Files spell these names in several ways; `flat_name` brings them to the ones above. Nothing here touches a file.
"""

from collections.abc import Iterable
from typing import Literal

from eagle_jax.checkpoint.names import TensorSpec, layer_tensors, linear, vector
from eagle_jax.models.draft_head import HeadConfig

Kind = Literal["eagle", "eagle3"]

LM_HEAD = "lm_head.weight"
"""[U, E]: rows of the draft vocabulary; EAGLE-1/2 heads use the target's LM head and store none."""
EMBEDDING = "embed_tokens.weight"
"""[V, E]: in most files a copy of the target's."""
D2T = "d2t"
"""i64[U]: draft token i is the target's token i + d2t[i]."""
T2D = "t2d"
"""bool[V]: whether a target token can be drafted; it says nothing that `d2t` does not say."""

_LAYER: dict[Kind, str] = {"eagle": "layers.0.", "eagle3": "midlayer."}
_TAP_NORMS = {f"aux_norm_{tap}.weight": f"fc_norm.{index}.weight" for index, tap in enumerate(("low", "mid", "high"))}


def kind_of(names: Iterable[str]) -> Kind:
    """Only the layer of an EAGLE-3 head norms its state beside the embedding."""
    return "eagle3" if any(name.endswith("hidden_norm.weight") for name in names) else "eagle"


def flat_name(name: str, kind: Kind) -> str:
    """`model.layers.0.mlp.up_proj.weight` of an EAGLE-3 head -> `midlayer.mlp.up_proj.weight`."""
    name = name.removeprefix("model.")
    for other in _LAYER.values():
        if name.startswith(other):
            return _LAYER[kind] + name.removeprefix(other)
    return _TAP_NORMS.get(name, name)


def flat_names(names: Iterable[str], kind: Kind) -> dict[str, str]:
    """Names of the flat format, each with the one that the file uses.

    Raises:
      ValueError: two tensors that mean the same.
    """
    found: dict[str, str] = {}
    for name in names:
        flat = flat_name(name, kind)
        if flat in found:
            raise ValueError(f"tensors {found[flat]} and {name} are both {flat}")
        found[flat] = name
    return found


def head_tensors(config: HeadConfig) -> dict[str, TensorSpec]:
    """Every tensor of `HeadParams.weights`, by its name in the flat format."""
    layer, width = config.layer, config.layer.width
    if config.kind == "eagle":
        specs = linear("fc", ("fc",), (width + config.feature_width,), (width,), config.fc_bias)
        return specs | layer_tensors(layer, "layers.0", ("layers_0",), input_norm=False)
    specs = linear("fc", ("fc",), (config.feature_width,), (width,), config.fc_bias)
    specs |= layer_tensors(layer, "midlayer", ("midlayer",), input_width=2 * width)
    specs["midlayer.hidden_norm.weight"] = vector(("midlayer", "hidden_norm", "weight"), width)
    specs["norm.weight"] = vector(("norm", "weight"), width)
    for tap in range(config.num_taps if config.fc_norm else 0):
        specs[f"fc_norm.{tap}.weight"] = vector((f"fc_norm_{tap}", "weight"), config.feature_width // config.num_taps)
    return specs
