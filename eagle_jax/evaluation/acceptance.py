"""n-alpha: how likely the next drafted token is accepted when n drafted tokens before it were.

arXiv 2401.15077, section 4 (there: "n-alpha", measured on chains). On a tree the same count says how likely a round
gets from depth n to depth n + 1 by any of the nodes there; a path without a child at depth n + 1 counts as an end.
"""

from collections.abc import Sequence

import numpy as np

LEAST_ROUNDS = 20
"""A chance that was seen in fewer rounds is not shown."""


def n_alpha(accepted: Sequence[int] | np.ndarray) -> list[float]:
    """Chance that a node at depth n + 1 is accepted given that one at depth n was, for n = 0, 1, ...

    Args:
      accepted: [P], rounds in which exactly 0, 1, ... drafted tokens were accepted: `Generation.accepted`
        with its rows summed.

    Returns:
      One number for each depth that a round has reached, but the deepest possible one, behind which nothing is drafted.
    """
    reached = np.cumsum(np.asarray(accepted, np.int64)[::-1])[::-1]  # rounds with at least so many
    known = reached[:-1] > 0
    return (reached[1:][known] / reached[:-1][known]).tolist()


def well_seen(accepted: Sequence[int] | np.ndarray) -> list[float]:
    """The first of `n_alpha`, down to the depth that `LEAST_ROUNDS` rounds have reached."""
    reached = np.cumsum(np.asarray(accepted, np.int64)[::-1])[::-1]
    return n_alpha(accepted)[: int((reached >= LEAST_ROUNDS).sum())]
