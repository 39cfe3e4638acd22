"""What several processes that work on one mesh have to agree on; a single one agrees with itself, and nothing is sent.

All of them do the same steps. Process 0 alone writes what all would write: answers, the description of a run, metrics,
exported weights. Checkpoints are orbax's, to which every process gives what lies on its devices.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

LONGEST = 512
"""Bytes of a text that goes around; what is longer is cut."""


def is_primary() -> bool:
    """Whether this is process 0."""
    return jax.process_index() == 0


def broadcast_text(text: str) -> str:
    """The text of the first process that has one, in all of them; empty where none has.

    All processes must ask at the same place: a time limit may pass, or a signal come, in one of them alone.
    """
    if jax.process_count() == 1:
        return text
    mine = np.zeros(LONGEST, np.uint8)
    said = text.encode()[:LONGEST]
    mine[: len(said)] = np.frombuffer(said, np.uint8)
    texts = (row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in multihost_utils.process_allgather(mine))
    return next(filter(None, texts), "")
