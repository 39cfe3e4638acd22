"""Drafting by phrases one token at a time, and the phrases of a check path by path."""

from collections.abc import Callable, Sequence

from tests.reference.ngram_pool import Ngram, Pool

Model = Callable[[Ngram], int]
"""The token that a model puts after the root and these drafted tokens."""


def draft(model: Model, pool: Pool, num_drafted: int, phrases: int) -> tuple[list[int], int]:
    """The model's next tokens, and the passes it takes to find them."""
    tokens, passes = [model(())], 1
    while len(tokens) < num_drafted:
        agreed = 0
        for phrase in pool.newest(tokens[-1], phrases):
            ahead = list(tokens)
            for token in phrase:
                if model(tuple(ahead)) != token:
                    break
                ahead.append(token)
            agreed = max(agreed, len(ahead) - len(tokens))
        for _ in range(min(agreed + 1, num_drafted - len(tokens))):
            tokens.append(model(tuple(tokens)))
        passes += 1
    return tokens, passes


def recycled(target: Model, chain: Ngram, phrases: Sequence[Ngram], accepted: int, length: int) -> list[Ngram]:
    """N-grams of the target's choices from the first one on that is not the draft's; `phrases` newest first."""

    def choices(path: Ngram, start: int) -> Ngram:
        return tuple(target(path[:end]) for end in range(start, start + length + 1))

    ngrams = []
    for start in range(accepted, len(chain) + 1):
        if start + length <= len(chain):
            ngrams.append(choices(chain, start))
        else:
            ngrams += [choices((*chain, *phrase), start) for phrase in reversed(phrases)]
    return ngrams
