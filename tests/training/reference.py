"""Slow twins in plain numpy of what training computes with shapes and masks."""

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def cross_entropy(
    reads: np.ndarray, lm_head: np.ndarray, teacher: np.ndarray, teacher_lm_head: np.ndarray
) -> np.ndarray:
    """- sum p log q for every step and row, [I, N], from dense logits."""
    p = np.exp(log_softmax(teacher @ teacher_lm_head.T))
    return -(p[None] * log_softmax(reads @ lm_head.T)).sum(-1)


def chain_rows(slots: list[int], num_steps: int) -> np.ndarray:
    """Which rows of one batch row count at which step: the chain that began `step` slots earlier is whole."""
    return np.array(
        [[all(slot - back in slots for back in range(step + 1)) for slot in slots] for step in range(num_steps)]
    )
