"""Where an answer begins to loop, by looking at everything anew at every place."""

from collections.abc import Sequence


def loop_start(tokens: Sequence[int], size: int = 4) -> int:
    """Tokens before the loop; all of them where there is none."""
    grams = [tuple(tokens[place : place + size]) for place in range(len(tokens) - size + 1)]
    repeated = [gram in grams[:place] for place, gram in enumerate(grams)]
    if 3 * sum(repeated) <= len(grams):
        return len(tokens)
    for place, gram in enumerate(grams):
        if not repeated[place]:
            continue
        period = next(back for back in range(1, place + 1) if grams[place - back] == gram)
        cycle, rest = repeated[place : place + period], repeated[place:]
        if 3 * sum(cycle) >= 2 * len(cycle) and 3 * sum(rest) >= 2 * len(rest):
            return place
    return len(tokens)
