"""The dynamic tree where nobody asked for one: large while a pass is nearly free, smaller as the batch grows.

A pass reads the weights once, however many tokens it computes, so tokens cost little until arithmetic takes as long as
reading. How many that are is the machine's, and the rows of a batch share them: nodes x rows <= `Room.together`.

    rows           1           2 to 4      8          16          32         64         65 and more
    CPU            4/1/2       2/0/1       2/0/1      2/0/1       2/0/1      2/0/1      2/0/1
    accelerator    60/7/10     60/7/10     32/5/8     16/5/4      8/2/3      4/1/2      2/0/1

Draws no tree and knows no head: three numbers for `make_eagle2` and `make_eagle3`.
"""

from typing import NamedTuple

import jax


class TreeSize(NamedTuple):
    """The official triple."""

    nodes: int  # the root included
    depth: int  # D: D + 1 drafted levels
    top_k: int


LADDER = (
    TreeSize(60, 7, 10),  # as published
    TreeSize(32, 5, 8),
    TreeSize(16, 5, 4),
    TreeSize(8, 2, 3),
    TreeSize(4, 1, 2),
    TreeSize(2, 0, 1),
)


class Room(NamedTuple):
    """Tokens of a pass that are worth their time."""

    alone: int  # for one row
    together: int  # for all rows


CPU = Room(alone=4, together=4)
"""Two cores, SmolLM2-135M: two rows gain most from two nodes, four or more from none (docs/scaling.md)."""

ACCELERATOR = Room(alone=60, together=256)
"""By data sheets, bfloat16 arithmetic takes as long as reading the weights at 170 to 560 tokens (TPUs), 300 (H100)."""


def default_tree(batch: int = 1, platform: str | None = None) -> TreeSize:
    """The largest tree of the ladder that pays for `batch` rows, at least the smallest.

    Args:
      batch: rows that decode together; on a mesh those of one part of its axis `data`.
      platform: "cpu", or anything else for an accelerator; None asks jax for its own.

    Raises:
      ValueError: no row.
    """
    if batch < 1:
        raise ValueError(f"a batch has at least 1 row, got {batch}")
    room = CPU if (platform or jax.default_backend()) == "cpu" else ACCELERATOR
    most = min(room.alone, room.together // batch)
    return next((size for size in LADDER if size.nodes <= most), LADDER[-1])
