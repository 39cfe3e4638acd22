"""Two rounds that follow each other, written down by hand."""

from collections.abc import Sequence

import numpy as np

from eagle_jax.evaluation.rounds import Round
from eagle_jax.types import NO_NODE, NO_PARENT, DraftTree, Verdict

WORDS = ["Once", " upon", "\n", " a", " time", " there", " was", "$x$"]

FIRST = Round(
    text=[7, 0],
    tree=DraftTree(
        #                0  upon nl   a  there x  (unused)
        tokens=np.array([0, 1, 2, 3, 5, 7, 0]),
        parents=np.array([NO_PARENT, 0, 0, 1, 2, 3, NO_PARENT]),
        candidate=np.array([True, True, True, True, True, True, False]),
        log_values=np.log(np.array([1.0, 0.55, 0.25, 0.45, 0.15, 0.11, 1.0])),
        max_depth=3,
    ),
    verdict=Verdict(path=np.array([0, 1, 3, NO_NODE]), num_accepted=np.int32(2), next_token=np.int32(4)),
    choice=np.array([1, 3, 5, 4, 0, 0, 0]),
    written=[1, 3, 4],
)
SECOND = Round(
    text=[7, 0, 1, 3, 4],
    tree=DraftTree(
        tokens=np.array([4, 5, 6, 7]),
        parents=np.array([NO_PARENT, 0, 0, 0]),
        candidate=np.array([True, True, True, False]),
        log_values=np.log(np.array([1.0, 0.55, 0.25, 0.2])),
        max_depth=3,
    ),
    verdict=Verdict(path=np.array([0, NO_NODE, NO_NODE, NO_NODE]), num_accepted=np.int32(0), next_token=np.int32(7)),
    choice=np.array([7, 0, 0, 0]),
    written=[7],
)
ROUNDS = [FIRST, SECOND]


def decode(ids: Sequence[int]) -> str:
    return "".join(WORDS[token] for token in ids)
