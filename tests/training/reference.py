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


def feature_errors(reads: np.ndarray, hidden: np.ndarray, slots: list[int]) -> list[list[float]]:
    """Smooth L1 at each unrolled step of the chains of one batch row that lie inside one answer.

    Args:
      reads: [I, R, E], what the LM head reads of each chain after each step, by the chain's first slot.
      hidden: [T, E], the target's; step i of the chain from slot t guesses position t + 1 + i.
      slots: of the R chains.
    """
    found: list[list[float]] = []
    for step in range(len(reads)):
        found.append([])
        for row, slot in enumerate(slots):
            if not all(slot + ahead in slots for ahead in range(step + 1)):
                continue
            size = np.abs(reads[step, row].astype(np.float64) - hidden[slot + 1 + step])
            found[-1].append(float(np.where(size < 1, size**2 / 2, size - 0.5).mean()))
    return found


def chain_rows(slots: list[int], num_steps: int) -> np.ndarray:
    """Which rows of one batch row count at which step: the chain that began `step` slots earlier is whole."""
    return np.array(
        [[all(slot - back in slots for back in range(step + 1)) for slot in slots] for step in range(num_steps)]
    )
