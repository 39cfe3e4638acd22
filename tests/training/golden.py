"""The head, its target's stand-in and the results of the official training pass, read from the fixtures."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from eagle_jax.checkpoint.hf import load_params
from eagle_jax.checkpoint.hf_config import config_from_hf
from eagle_jax.checkpoint.names import TensorSpec, insert, layer_tensors, linear, lookup, vector
from eagle_jax.models.draft_head import Head, HeadConfig, HeadParams, make_head
from eagle_jax.models.transformer import make_target
from eagle_jax.training.batch import Batch, Features, Vocabulary
from eagle_jax.types import Params

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class Golden:
    """One seed's fixture as the recipes take it.

    The target's logits are given, not its hidden states, so the vocabulary's rows select from logits.
    """

    head: Head
    params: HeadParams
    target_params: Params
    vocabulary: Vocabulary
    batch: Batch
    features: Features
    results: dict[str, np.ndarray]
    grads: dict[str, np.ndarray]


def load(seed: int) -> Golden:
    """Read everything of one seed."""
    folder = GOLDEN / f"seed{seed}"
    declared = json.loads((folder / "generate" / "eagle3_head" / "config.json").read_text())
    layer = config_from_hf({**declared, "rope_theta": 1e4})
    target_config = config_from_hf(json.loads((folder / "target_llama" / "config.json").read_text()))
    tensors = load_file(folder / "generate" / "eagle3_head" / "model.safetensors")
    head = make_head(
        HeadConfig(kind="eagle3", layer=layer, feature_width=3 * layer.width), make_target(target_config)
    )
    target_ids = jnp.asarray(np.arange(len(tensors["d2t"])) + tensors["d2t"], jnp.int32)
    weights: dict[str, Any] = {}
    for name, spec in specs(layer).items():
        insert(weights, spec.path, jnp.asarray(spec.to_tree(tensors[name])))
    with np.load(folder / "train" / "eagle3_unroll.npz") as stored:
        results = dict(stored)
    with np.load(folder / "train" / "eagle3_grads.npz") as stored:
        grads = dict(stored)
    logits = jnp.asarray(results["target_logits"])
    size, length = results["input_ids"].shape
    batch = Batch(
        tokens=jnp.asarray(results["input_ids"], jnp.int32),
        segments=jnp.asarray(results["attention_mask"], jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(length), (size, length)),
        supervised=jnp.asarray(results["loss_mask"], bool),
        slots=jnp.broadcast_to(jnp.arange(length), (size, length)),  # the official alignment makes its own
    )
    return Golden(
        head=head,
        params=HeadParams(weights, jnp.asarray(tensors["lm_head.weight"]), target_ids),
        target_params=load_params(folder / "target_llama", target_config),
        vocabulary=Vocabulary(jnp.eye(logits.shape[-1])[target_ids], target_ids),
        batch=batch,
        features=Features(jnp.asarray(results["features"]), logits, logits.argmax(-1).astype(jnp.int32)),
        results=results,
        grads=grads,
    )


def specs(layer: Any) -> dict[str, TensorSpec]:
    """Tensors of the head's weights by their names in the file."""
    width = layer.width
    return {
        **linear("fc", ("fc",), (3 * width,), (width,)),
        **layer_tensors(layer, "midlayer", ("midlayer",), input_width=2 * width),
        "midlayer.hidden_norm.weight": vector(("midlayer", "hidden_norm", "weight"), width),
        "norm.weight": vector(("norm", "weight"), width),
    }


def stored_grads(golden: Golden, weights: Params) -> dict[str, np.ndarray]:
    """Gradients of the head's weights under the names and in the layout of the file."""
    return {
        name: spec.to_stored(np.asarray(lookup(weights, spec.path)))
        for name, spec in specs(golden.head.config.layer).items()
    }
