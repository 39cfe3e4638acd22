"""A mixture of experts, one token and one expert after the other."""

import numpy as np


def mix(
    x: np.ndarray, logits: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray, k: int, renormalize: bool
) -> np.ndarray:
    """Tokens x [M, E] with router logits [M, X] through SwiGLU experts, gate and up [X, E, F], down [X, F, E]."""
    mixed = np.zeros_like(x)
    for token, row in enumerate(x):
        probabilities = np.exp(logits[token] - logits[token].max())
        probabilities /= probabilities.sum()
        chosen = sorted(range(len(gate)), key=lambda expert: -probabilities[expert])[:k]
        total = sum(probabilities[expert] for expert in chosen) if renormalize else 1.0
        for expert in chosen:
            inner = row @ gate[expert]
            inner = inner / (1 + np.exp(-inner)) * (row @ up[expert])
            mixed[token] += probabilities[expert] / total * (inner @ down[expert])
    return mixed
