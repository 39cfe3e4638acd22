"""Committing a path, row by row and slot by slot."""

import numpy as np


def commit(
    held: np.ndarray, lengths: np.ndarray, new: np.ndarray, path: np.ndarray, count: np.ndarray
) -> list[np.ndarray]:
    """What each row of one cache array [B, S, ...] holds afterwards, garbage cut off: a list of [length, ...].

    Args:
      held: [B, S, ...], the array before.
      lengths: i32[B], slots in use.
      new: [B, T, ...], rows that a pass returned.
      path: i32[B, P], indices into T.
      count: i32[B], how many entries of `path` to append.
    """
    rows = []
    for b in range(len(held)):
        slots = [held[b, slot] for slot in range(lengths[b])]
        slots += [new[b, path[b, step]] for step in range(count[b])]
        rows.append(np.array(slots[: held.shape[1]]).reshape((-1, *held.shape[2:])))
    return rows
