"""Draft heads with random weights for the tests, and their files spoilt one way at a time."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from safetensors.numpy import load_file, save_file

from eagle_jax.checkpoint.heads import save_head
from eagle_jax.models.attention import Prefix, attend
from eagle_jax.models.block_head import make_block_head
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.testing import tiny_transformer

CONFIG, TARGET, PARAMS = tiny_transformer(num_layers=7)
DRAFT_VOCAB = 24


def random_head(kind: str, target: ModelConfig, *, width: int | None = None, **flags: Any) -> tuple[Any, HeadParams]:
    """A head with all weights random, its draft vocabulary a third of the target's where it is an EAGLE-3 head.

    Args:
      kind: eagle or eagle3.
      target: its shape.
      width: of the head, the target's where left out.
      **flags: of `HeadConfig`.
    """
    layer = dataclasses.replace(
        target, width=width or target.width, num_layers=1, windows=(), tap_layers=(), tie_embeddings=False
    )
    num_taps = len(flags.get("parts") or target.taps)
    features = target.width * (num_taps if kind == "eagle3" else 1)
    config = HeadConfig(kind=kind, layer=layer, feature_width=features, num_taps=num_taps, **flags)
    rng = np.random.default_rng(0)

    def fill(leaf: jax.Array) -> jax.Array:
        return jnp.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    head = make_head(config, TARGET)  # `init` asks nothing of the target
    weights = jax.tree.map(fill, nn.unbox(head.init(jax.random.key(0))))
    params = HeadParams(weights=weights)
    if width and width != target.width:
        params = params.replace(embedding=fill(jnp.zeros((target.vocab_size, width))))
    if kind == "eagle3":
        ids = np.sort(rng.permutation(target.vocab_size)[:DRAFT_VOCAB]).astype(np.int32)
        params = params.replace(lm_head=fill(jnp.zeros((DRAFT_VOCAB, layer.width))), target_ids=jnp.asarray(ids))
    return config, params


def random_block_head(target: ModelConfig, *, qk_norm: bool = False, **flags: Any) -> tuple[HeadConfig, HeadParams]:
    """A one-pass head with all weights random, two layers, a block of 4, edges, and a third of the vocabulary.

    Args:
      target: its shape.
      qk_norm: of the head's layers.
      **flags: of `HeadConfig`.
    """
    num_taps = len(flags.get("parts") or target.taps)
    shape = {"num_layers": 2, "block": 4, "edge_rank": 3, **flags}
    config = HeadConfig(
        kind="one_pass",
        layer=dataclasses.replace(target.llama_layer(), qk_norm=qk_norm),
        feature_width=target.width * num_taps,
        num_taps=num_taps,
        **shape,
    )
    rng = np.random.default_rng(0)

    def fill(leaf: jax.Array) -> jax.Array:
        return jnp.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    weights = jax.tree.map(fill, nn.unbox(make_block_head(config, TARGET).init(jax.random.key(0))))
    ids = np.sort(rng.permutation(target.vocab_size)[:DRAFT_VOCAB]).astype(np.int32)
    return config, HeadParams(weights, fill(jnp.zeros((DRAFT_VOCAB, target.width))), jnp.asarray(ids))


def assert_tree_equal(actual: Any, wanted: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, actual, wanted)


def logits(config: HeadConfig, params: HeadParams) -> jax.Array:
    """What the head says of a few random features in a row."""
    head, size = make_head(config, TARGET), 5
    features = jax.random.normal(jax.random.key(3), (1, size, config.feature_width))
    tokens = positions = jnp.arange(size)[None]
    mask = jnp.tril(jnp.ones((1, size, size), bool))
    slot = jnp.zeros((1, 1, config.layer.num_kv_heads, config.layer.head_dim))
    nothing = Prefix(slot, slot, jnp.zeros(1, jnp.int32))

    def attend_fn(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        return attend(queries, keys, values, mask, nothing, positions)

    embedded = head.embed(params, PARAMS, tokens)
    states, _, _ = head.step(params, head.fuse(params, features), embedded, positions, attend_fn)
    return head.logits(params, PARAMS, states)


def saved(folder: Path, kind: str = "eagle3", **options: Any) -> Path:
    """A directory with a random head in float32."""
    config, params = random_head(kind, CONFIG)
    save_head(folder / "head", config, params, CONFIG, **{"dtype": "float32", **options})
    return folder / "head"


def edit_config(folder: Path, *dropped: str, **changed: Any) -> None:
    """Change keys of `config.json`."""
    path = folder / "config.json"
    mapping = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in mapping.items() if key not in dropped}))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any], file: str = "model.safetensors") -> None:
    """Change the tensors in place."""
    path = folder / file
    tensors = load_file(path)
    change(tensors)
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)


def rename(names: Callable[[str], str]) -> Callable[[dict[str, np.ndarray]], None]:
    """A change that renames tensors."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        renamed = {names(name): value for name, value in tensors.items()}
        tensors.clear()
        tensors.update(renamed)

    return change
