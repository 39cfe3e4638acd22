"""Where an answer begins to repeat itself: greedy answers of a small model often do, until their length ends them.

    The stitches are:  * slip stitch  * slip stitch  * slip stitch  * sl
                                     ^ loop_start: the first cycle is before it, the rest teaches nothing new

Repetition is counted in 4-grams, the share of those that occurred before, as in seq-rep-4 of arXiv 1908.04319, so that
loops with a counter in each cycle ("1. Rome 2. Rome") are found as well.
"""

from collections.abc import Sequence

import numpy as np

SIZE = 4
"""Tokens of a repeated piece."""

REPEATED = 1 / 3
"""Answers with a larger share of repeated 4-grams are cut."""

LOOPING = 2 / 3
"""Least share of repeated 4-grams, in the next cycle and in all that follows, where a loop begins."""


def loop_start(tokens: Sequence[int]) -> int:
    """How many tokens of an answer come before it loops, the first full cycle included; all where it does not.

    An answer loops if more than `REPEATED` of its 4-grams have occurred earlier in it. Its loop begins at the first
    4-gram, last seen p tokens earlier, that has at least a share of `LOOPING` of such 4-grams both among the next p and
    among all from there on: so a phrase used twice begins none. Repetition without such a place is left as it is.
    """
    last: dict[tuple[int, ...], int] = {}
    count = max(len(tokens) - SIZE + 1, 0)
    distance = np.zeros(count, np.int64)  # to where the 4-gram was last; 0: it is new
    for index in range(count):
        gram = tuple(tokens[index : index + SIZE])
        distance[index] = index - last.get(gram, index)
        last[gram] = index
    before = np.concatenate([[0], np.cumsum(distance > 0)])  # repeated 4-grams among the first so many
    if before[-1] <= REPEATED * count:
        return len(tokens)
    place = np.arange(count)
    cycle = np.minimum(place + distance, count)
    in_cycle = before[cycle] - before[place] >= LOOPING * (cycle - place)
    to_the_end = before[-1] - before[place] >= LOOPING * (count - place)
    (begins,) = np.nonzero((distance > 0) & in_cycle & to_the_end)
    return int(begins[0]) if len(begins) else len(tokens)
