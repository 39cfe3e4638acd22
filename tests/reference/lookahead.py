"""The window of lookahead decoding as lists of rows, the first one token shorter, and a dictionary of n-grams."""

from collections.abc import Sequence

from tests.reference.ngram_pool import Ngram, Pool


class Lookahead:
    """One request.

    Args:
      rows: the first window: W - 1 tokens, then L - 2 rows of W, none of them chosen by the target.
      pool: what is known of the prompt.
    """

    def __init__(self, rows: Sequence[Sequence[int]], pool: Pool) -> None:
        self.rows = [list(row) for row in rows]
        self.pool = pool
        self.rounds = 0

    def seen_by(self, root: int) -> list[list[Ngram]]:
        """For each row, what its nodes see between the root and themselves, themselves included.

        Row 0 sees itself up to the node; column c of a later row sees row 0 up to the token that it starts from and
        then its own column.
        """
        del root  # every node sees it
        first, *others = self.rows
        seen = [[tuple(first[: node + 1]) for node in range(len(first))]]
        for depth in range(1, len(others) + 1):
            columns = range(len(first) + 1)
            seen.append([(*first[:c], *(others[r][c] for r in range(depth))) for c in columns])
        return seen

    def round(self, root: int, new: Sequence[int]) -> None:
        """Take in the target's tokens after the last row."""
        first, *others = self.rows
        if self.rounds >= len(others):
            starts = [root, *first]
            self.pool.insert((starts[c], *(row[c] for row in others), new[c]) for c in range(len(starts)))
        self.rows = [others[0][1:], *others[1:], list(new)]
        self.rounds += 1
