"""Top-k, top-p, min-p and the choice of a token, by sorting, in float64."""

from collections.abc import Sequence

import numpy as np


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    """The distribution exp(logits / temperature), normalised; at temperature 0 all mass on the first of the largest."""
    logits = np.asarray(logits, np.float64)
    if temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """bool[V]: the k largest and all that tie with the k-th; k = 0 keeps all."""
    ranked = sorted(logits, reverse=True)
    return np.ones(len(logits), bool) if k == 0 else logits >= ranked[min(k, len(ranked)) - 1]


def top_p(logits: np.ndarray, p: float, temperature: float) -> np.ndarray:
    """bool[V]: the most probable tokens until their mass reaches p, and all that tie with the last one."""
    if p >= 1:
        return np.ones(len(logits), bool)
    distribution = softmax(logits, temperature)
    mass = 0.0
    for token in np.argsort(-logits, kind="stable"):
        mass += distribution[token]
        if mass >= p:
            return logits >= logits[token]
    raise AssertionError(f"total mass {mass} stays below p = {p}")


def min_p(logits: np.ndarray, share: float, temperature: float) -> np.ndarray:
    """bool[V]: the tokens whose probability is at least `share` of the largest."""
    distribution = softmax(logits, temperature)
    return distribution >= share * distribution.max()


def warp(
    logits: np.ndarray, temperature: float, k: int, p: float, top_k_first: bool = True, share: float = 0.0
) -> np.ndarray:
    """Logits with -inf at what top-k, top-p and min-p (`share`) exclude; nothing is excluded at temperature 0."""
    masked = np.asarray(logits, np.float64)
    if temperature == 0:
        return masked
    for step in ("k", "p") if top_k_first else ("p", "k"):
        passing = top_k(masked, k) if step == "k" else top_p(masked, p, temperature)
        masked = np.where(passing, masked, -np.inf)
    return np.where(min_p(masked, share, temperature), masked, -np.inf) if share else masked


def penalise(
    logits: np.ndarray, prompt: Sequence[int], answer: Sequence[int], repetition: float, presence: float
) -> np.ndarray:
    """Logits with both penalties, token by token."""
    penalised = np.asarray(logits, np.float32).copy()
    for token in {*prompt, *answer}:
        score = penalised[token]
        penalised[token] = score / np.float32(repetition) if score > 0 else score * np.float32(repetition)
    for token in {*answer}:
        penalised[token] -= np.float32(presence)
    return penalised


def distribution(logits: np.ndarray, temperature: float, k: int = 0, p: float = 1.0, share: float = 0.0) -> np.ndarray:
    """What the target's next token follows."""
    return softmax(warp(logits, temperature, k, p, share=share), temperature)


def choose(logits: np.ndarray, noise: np.ndarray, temperature: float, k: int, p: float, share: float = 0.0) -> int:
    """First largest of masked logits plus temperature times noise."""
    masked = warp(logits, temperature, k, p, share=share)
    return int(np.argmax(masked + temperature * np.asarray(noise, np.float64)))
