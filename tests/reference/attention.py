"""Attention of one query at a time over the list of keys that it sees, in float64."""

import numpy as np


def attend(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    mask: np.ndarray,
    prefix_keys: np.ndarray,
    prefix_values: np.ndarray,
    lengths: np.ndarray,
    positions: np.ndarray,
    key_positions: np.ndarray,
    window: int | None,
) -> np.ndarray:
    """As `models.attention.attend`: [B, T, H, D]."""
    mixed = np.zeros(queries.shape)
    group = queries.shape[2] // keys.shape[2]
    for b, t, h in np.ndindex(queries.shape[:3]):
        at, k = positions[b, t], h // group
        seen = [(s, prefix_keys[b, s, k], prefix_values[b, s, k]) for s in range(lengths[b])]
        seen += [(key_positions[b, m], keys[b, m, k], values[b, m, k]) for m in range(keys.shape[1]) if mask[b, t, m]]
        seen = [entry for entry in seen if window is None or at - entry[0] < window]
        scores = np.array([np.dot(queries[b, t, h].astype(np.float64), key) for _, key, _ in seen])
        weights = np.exp((scores - scores.max()) / np.sqrt(queries.shape[3]))
        mixed[b, t, h] = sum(w * value.astype(np.float64) for w, (_, _, value) in zip(weights, seen, strict=True))
        mixed[b, t, h] /= weights.sum()
    return mixed
