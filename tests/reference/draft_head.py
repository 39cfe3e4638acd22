"""An EAGLE-3 head read from a directory of speculators, token by token in float64: no batches, no masks, no cache."""

import copy
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def normed(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / rms(x) * weight over the last axis."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


class DraftHead:
    """One text; what was fed before is remembered as a list.

    Args:
      folder: `config.json` and `model.safetensors` with all weights in float32.
      embedding: [V, E], of the target.
    """

    def __init__(self, folder: Path, embedding: np.ndarray) -> None:
        self.flags = json.loads((folder / "config.json").read_text())
        self.layer = self.flags["transformer_layer_config"]
        self.weights = {name: value.astype(float) for name, value in load_file(folder / "model.safetensors").items()}
        self.embedding = embedding.astype(float)
        self.fed: list[tuple[int, np.ndarray, np.ndarray]] = []  # position, keys [K, D], values [K, D]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        """By the tensor's name without `.weight`."""
        return normed(x, self.weights[f"{name}.weight"], self.layer["rms_norm_eps"])

    def fuse(self, taps: np.ndarray) -> np.ndarray:
        """[3 * E] -> the first state [E]."""
        if self.flags["norm_before_fc"]:
            taps = self.norm("input_norm", taps)
        if self.flags["fc_norm"]:
            parts = np.split(taps, 3)
            taps = np.concatenate([self.norm(f"fc_norm.{index}", part) for index, part in enumerate(parts)])
        return self.weights["fc.weight"] @ taps

    def heads(self, name: str, x: np.ndarray) -> np.ndarray:
        """Queries, keys or values [heads, D] before RoPE."""
        y = (self.weights[f"layers.0.self_attn.{name}_proj.weight"] @ x).reshape(-1, self.layer["head_dim"])
        named = f"layers.0.self_attn.{name}_norm"
        return self.norm(named, y) if f"{named}.weight" in self.weights else y

    def turned(self, x: np.ndarray, position: int) -> np.ndarray:
        """RoPE of [heads, D]; the second half of a head goes with the first."""
        half = x.shape[-1] // 2
        angles = position * self.layer["rope_theta"] ** (-np.arange(half) / half)
        first, second = x[:, :half], x[:, half:]
        return np.concatenate(
            [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=1
        )

    def step(self, state: np.ndarray, token: int, position: int) -> np.ndarray:
        """The state [E] that is fed next, after one more token; positions never fall."""
        hidden = self.norm("layers.0.hidden_norm", state)
        x = hidden if self.flags["norm_before_residual"] else state
        read = np.concatenate([self.norm("layers.0.input_layernorm", self.embedding[token]), hidden])
        queries = self.turned(self.heads("q", read), position)
        self.fed.append((position, self.turned(self.heads("k", read), position), self.heads("v", read)))
        window = self.layer.get("sliding_window") or position + 1
        seen = [(keys, values) for at, keys, values in self.fed if position - at < window]
        mixed = []
        for index, query in enumerate(queries):
            shared = index * self.layer["num_key_value_heads"] // len(queries)
            scores = np.array([keys[shared] @ query for keys, _ in seen]) / np.sqrt(len(query))
            weights = np.exp(scores - scores.max())
            mixed.append(weights / weights.sum() @ np.stack([values[shared] for _, values in seen]))
        x = x + self.weights["layers.0.self_attn.o_proj.weight"] @ np.concatenate(mixed)
        y = self.norm("layers.0.post_attention_layernorm", x)
        gate, up = (self.weights[f"layers.0.mlp.{name}_proj.weight"] @ y for name in ("gate", "up"))
        x = x + self.weights["layers.0.mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
        return self.norm("norm", x) if self.flags["norm_output"] else x

    def log_probabilities(self, state: np.ndarray) -> np.ndarray:
        """Of the draft vocabulary, f64[U]."""
        logits = self.weights["lm_head.weight"] @ (state if self.flags["norm_output"] else self.norm("norm", state))
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

    def read(self, taps: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Feed the target's features [n, 3 * E], each with the token after it; the last state."""
        for position, (features, token) in enumerate(zip(taps, tokens, strict=True)):
            state = self.step(self.fuse(features), token, position)
        return state

    def chain(self, state: np.ndarray, tokens: np.ndarray) -> list[np.ndarray]:
        """States after each token of a chain on the head's own output; what was fed before stays as it is."""
        other, states = copy.copy(self), []
        other.fed = list(self.fed)
        for token in tokens:
            state = other.step(state, token, other.fed[-1][0] + 1)
            states.append(state)
        return states
