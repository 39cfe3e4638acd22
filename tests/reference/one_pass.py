"""Children of every predecessor at every depth, from base logits and edges: one at a time, in numpy."""

from typing import NamedTuple

import numpy as np


class Tables(NamedTuple):
    """As `best_first.ChildTables`, of one row of a batch."""

    tokens: np.ndarray  # [D, R, k]
    scores: np.ndarray  # f64[D, R, k]
    rows: np.ndarray  # [D, R, k]


def best(scores: dict[int, float], count: int) -> list[int]:
    """The first `count` tokens by score."""
    return sorted(scores, key=lambda token: (-scores[token], token))[:count]


def child_tables(
    base: np.ndarray,
    edges: np.ndarray,
    noise: np.ndarray,
    root: int,
    *,
    top_k: int,
    shortlist: int,
    predecessors: int,
    noise_level: int,
) -> Tables:
    """From base logits and noise [D, V], and edges [V, V] of a token (column) after another (row)."""
    depth, vocab_size = base.shape
    listed, leading = [], []
    for d in range(depth):
        heard = {token: base[d, token] + noise[d, token] for token in range(vocab_size)}
        listed.append(best(heard, shortlist))
        by = heard if noise_level == 2 else dict(enumerate(base[d]))
        leading.append(best({token: by[token] for token in listed[d]}, predecessors))
    tables = Tables(*(np.zeros((depth, predecessors, top_k), kind) for kind in (int, float, int)))
    for d in range(depth):
        for row in range(predecessors):
            previous = root if d == 0 else leading[d - 1][row]
            score = {token: base[d, token] + edges[previous, token] for token in listed[d]}
            chosen = best({token: score[token] + noise[d, token] for token in listed[d]}, top_k)
            loud = float(noise_level >= 1)
            cells = [score[token] + loud * noise[d, token] for token in listed[d]]
            cells += [base[d, token] + loud * noise[d, token] for token in range(vocab_size) if token not in listed[d]]
            for place, token in enumerate(chosen):
                tables.tokens[d, row, place] = token
                tables.scores[d, row, place] = score[token] + loud * noise[d, token] - np.logaddexp.reduce(cells)
                tables.rows[d, row, place] = leading[d].index(token) if token in leading[d] else -1
    return tables
