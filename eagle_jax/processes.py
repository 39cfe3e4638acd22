"""Agreement between the processes of a multi-host run; with a single process nothing is communicated.

All processes run the same steps. Process 0 alone writes what would be the same from all: answers, the description of a
run, metrics, exported weights. Checkpoints are written by orbax, to which every process passes the shards on its
devices.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

LONGEST = 512
"""Bytes of a broadcast text; longer ones are cut."""


def is_primary() -> bool:
    """Whether this is process 0."""
    return jax.process_index() == 0


def broadcast_text(text: str) -> str:
    """The first non-empty text among the processes, returned in all of them; empty where all are.

    A collective: all processes must call it at the same point of the program. Needed because a time limit may pass, or
    a signal arrive, in one process alone.
    """
    if jax.process_count() == 1:
        return text
    mine = np.zeros(LONGEST, np.uint8)
    encoded = text.encode()[:LONGEST]
    mine[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    texts = (row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(mine))
    return next(filter(None, texts), "")
