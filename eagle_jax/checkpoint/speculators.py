"""The `config.json` of the library speculators (RedHatAI's heads): what a flat one says, nested.

    transformer_layer_config    the layer: Llama's, or Qwen3's with its query/key norms
    speculators_config          for which target (`verifier`) and how many tokens a round
    beside these                draft vocabulary, tapped layers, norms

vLLM serves such a directory by itself. Ids of layers are inputs, as for vLLM. The tensors are those of the flat format,
with `layers.0` as the name of the layer; an embedding is a copy of the target's unless it was trained.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from eagle_jax.checkpoint.head_config import LAST_STATE, LAYER_IDS, OWN_EMBEDDING, QK_NORM, tidied
from eagle_jax.checkpoint.head_formats import HEAD_FORMATS, HeadFormat
from eagle_jax.files import read_json
from eagle_jax.models.draft_head import NORMS

TYPE = "speculators_model_type"
"""Key that tells such a config from a flat one."""

LAYER = "layers.0."
"""What the names of the layer's tensors begin with."""

LAYER_TYPES = ("llama", "qwen3")
"""`model_type` values of the layer that vLLM loads."""

VERSION = "0.9.0"
"""Of the library whose format is written."""

TOKENS_A_ROUND = 3
"""Written as `speculative_tokens`, the library's own default; whoever serves the head may ask for others."""

_TYPES = tuple(form.speculators_type for form in HEAD_FORMATS.values() if form.speculators_type)
_QWEN3_HEAD_DIM = 128  # where the key is absent, as in transformers
_BESIDE = ("draft_vocab_size", *NORMS, "target_hidden_size", LAYER_IDS, OWN_EMBEDDING, LAST_STATE)


def read_head_config(directory: pathlib.Path) -> dict[str, Any]:
    """The `config.json` of a head as a flat one, whichever of the two formats it is in.

    Raises:
      ValueError: no readable JSON, or what `flatten` refuses.
    """
    mapping = read_json(directory / "config.json")
    return tidied(flatten(mapping) if TYPE in mapping else mapping)


def flatten(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """What a flat `config.json` would say.

    Raises:
      ValueError: another kind of drafter or layer, or a key without which it is not clear what the head computes.
    """
    if mapping[TYPE] not in _TYPES:
        raise ValueError(f"{TYPE} is {mapping[TYPE]!r}: such drafters are not supported, {', '.join(_TYPES)} are")
    layer = mapping.get("transformer_layer_config")
    if not isinstance(layer, dict):
        raise ValueError(f"transformer_layer_config is {layer!r}, expected an object")
    if layer.get("model_type") not in LAYER_TYPES:
        known = ", ".join(LAYER_TYPES)
        raise ValueError(f"transformer_layer_config.model_type is {layer.get('model_type')!r}; {known} are supported")
    if mapping.get("norm_before_residual") is None:
        raise ValueError("config.json has no norm_before_residual, which is true to vLLM then and false to speculators")
    beside = {key: mapping[key] for key in (*_BESIDE, "architectures") if key in mapping}
    stored = mapping.get("torch_dtype", mapping.get("dtype"))  # the name of transformers 5
    flat = {**layer, **beside, "torch_dtype": stored or layer.get("torch_dtype", layer.get("dtype"))}
    flat[QK_NORM] = layer["model_type"] == "qwen3"
    if flat[QK_NORM] and layer.get("head_dim") is None:
        flat["head_dim"] = _QWEN3_HEAD_DIM
    return flat


def nest(mapping: Mapping[str, Any], form: HeadFormat, verifier: str, architectures: Sequence[str]) -> dict[str, Any]:
    """The config of speculators for a flat one, as `head_config.config_to_flat` writes it.

    Args:
      mapping: the flat config.
      form: of the head's kind.
      verifier: name or path of the target, as vLLM shall load it.
      architectures: of the target.
    """
    proposal = {
        "proposal_type": "greedy",
        "speculative_tokens": TOKENS_A_ROUND,
        "verifier_accept_k": 1,
        "accept_tolerance": 0.0,
    }
    not_of_the_layer = {*_BESIDE, "architectures", "eagle_config", "torch_dtype", "bias"}
    return {
        "architectures": mapping["architectures"],
        TYPE: form.speculators_type,
        "speculators_version": VERSION,
        **{key: mapping.get(key, False) for key in (*NORMS, OWN_EMBEDDING)},
        **{key: mapping.get(key) for key in ("draft_vocab_size", "target_hidden_size", LAYER_IDS)},
        **({LAST_STATE: mapping[LAST_STATE]} if LAST_STATE in mapping else {}),
        "torch_dtype": mapping["torch_dtype"],
        "tie_word_embeddings": False,
        "transformer_layer_config": {key: value for key, value in mapping.items() if key not in not_of_the_layer},
        "speculators_config": {
            "algorithm": form.speculators_type,
            "default_proposal_method": "greedy",
            "proposal_methods": [proposal],
            "verifier": {"name_or_path": verifier, "architectures": list(architectures)},
        },
    }


def missing_keys(mapping: Mapping[str, Any]) -> list[str]:
    """What vLLM asks of a config beside what `flatten` does, one line for each thing that is not there."""
    serving = mapping.get("speculators_config")
    if not isinstance(serving, dict):
        return [f"speculators_config is {serving!r}, expected an object"]
    problems = []
    methods = serving.get("proposal_methods")
    first = methods[0] if isinstance(methods, list) and methods and isinstance(methods[0], dict) else {}
    tokens = first.get("speculative_tokens")
    if not isinstance(tokens, int) or tokens < 1:
        problems.append(f"speculators_config: speculative_tokens of the first of proposal_methods is {tokens!r}")
    verifier = serving.get("verifier")
    if not isinstance(verifier, dict) or not verifier.get("name_or_path"):
        problems.append("speculators_config names no target: verifier.name_or_path is not there")
    return problems
