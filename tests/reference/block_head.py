"""A one-pass head read from its directory, slot by slot in float64: no batches, no masks, no cache."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from tests.reference.draft_head import normed


class BlockReader:
    """One text, whose features are remembered as a list.

    Args:
      folder: `config.json` and `model.safetensors`, all weights in float32.
      embedding: [V, E], of the target.
    """

    def __init__(self, folder: Path, embedding: np.ndarray) -> None:
        mapping: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.flags = {**mapping, **mapping.get("dflash_config", {})}
        self.weights = {name: value.astype(float) for name, value in load_file(folder / "model.safetensors").items()}
        self.embedding = embedding.astype(float)
        self.context: list[np.ndarray] = []  # [E] for each position from 0 on

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        """By the tensor's name without `.weight`."""
        return normed(x, self.weights[f"{name}.weight"], self.flags["rms_norm_eps"])

    def read(self, features: np.ndarray) -> None:
        """The target's features [n, taps * E] of the next n tokens."""
        for row in features:
            parts = np.split(row, len(self.flags["target_layer_ids"]))
            if self.flags.get("fc_norm"):
                parts = [self.norm(f"fc_norm.{index}", part) for index, part in enumerate(parts)]
            self.context.append(self.norm("hidden_norm", self.weights["fc.weight"] @ np.concatenate(parts)))

    def heads(self, layer: int, name: str, x: np.ndarray, position: int | None) -> np.ndarray:
        """Queries, keys or values [heads, D]; with RoPE where a position is given."""
        named = f"layers.{layer}.self_attn.{name}"
        y = (self.weights[f"{named}_proj.weight"] @ x).reshape(-1, self.flags["head_dim"])
        y = self.norm(f"{named}_norm", y) if f"{named}_norm.weight" in self.weights else y
        if position is None:
            return y
        half = y.shape[-1] // 2
        turns = position * self.flags["rope_theta"] ** (-np.arange(half) / half)
        first, second = y[:, :half], y[:, half:]
        return np.concatenate(
            [first * np.cos(turns) - second * np.sin(turns), second * np.cos(turns) + first * np.sin(turns)], axis=1
        )

    def attend(self, layer: int, query: np.ndarray, position: int, seen: list[tuple[int, np.ndarray]]) -> np.ndarray:
        """What a slot gathers of (position, what its key and value are made of)."""
        keys = [self.heads(layer, "k", x, at) for at, x in seen]
        values = [self.heads(layer, "v", x, None) for _, x in seen]
        mixed = []
        for index, one in enumerate(self.heads(layer, "q", query, position)):
            shared = index * self.flags["num_key_value_heads"] // self.flags["num_attention_heads"]
            scores = np.array([key[shared] @ one for key in keys]) / np.sqrt(len(one))
            weights = np.exp(scores - scores.max())
            mixed.append(weights / weights.sum() @ np.stack([value[shared] for value in values]))
        return self.weights[f"layers.{layer}.self_attn.o_proj.weight"] @ np.concatenate(mixed)

    def block(self, anchor: int, size: int, start: int | None = None) -> np.ndarray:
        """States [size, E] after the final norm of a block at position `start`, by default after all that was read."""
        start = len(self.context) if start is None else start
        token = self.flags.get("mask_token_id")
        mask = self.weights["mask.weight"] if token is None else self.embedding[token]
        states = [self.embedding[anchor], *[mask] * (size - 1)]
        if self.flags.get("joins_context"):
            newest, join = self.context[start - 1], self.weights["join.weight"]
            states = [join @ np.concatenate([self.norm("embed_norm", state), newest]) for state in states]
        for layer in range(self.flags["num_hidden_layers"]):
            read = [self.norm(f"layers.{layer}.input_layernorm", state) for state in states]
            own = list(enumerate(read, start))
            for slot, state in enumerate(states):
                seen = [*enumerate(self.context[:start]), *(own[: slot + 1] if self.flags["is_causal"] else own)]
                state = state + self.attend(layer, read[slot], start + slot, seen)
                y = self.norm(f"layers.{layer}.post_attention_layernorm", state)
                gate, up = (self.weights[f"layers.{layer}.mlp.{name}_proj.weight"] @ y for name in ("gate", "up"))
                down = self.weights[f"layers.{layer}.mlp.down_proj.weight"]
                states[slot] = state + down @ (gate / (1 + np.exp(-gate)) * up)
        return np.stack([self.norm("norm", state) for state in states])

    def edge(self, previous: int, token: int) -> float:
        """Score of a token of the target after another one."""
        before, after = (self.weights[f"markov_head.markov_w{side}.weight"] for side in (1, 2))
        return float(before[previous] @ after[token])
