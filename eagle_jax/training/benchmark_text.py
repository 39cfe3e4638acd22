"""Text that a benchmark asks must not be trained on: which conversations repeat a run of its words.

Two texts are taken to be related where they share thirteen words in a row, as GPT-3's authors looked for test text in
their training data (arXiv 2005.14165, appendix C), whatever the case and the punctuation. A text of fewer words counts
as a whole. Paraphrases are not found.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

RUN = 13
"""Words in a row that two texts do not share by chance."""


class BenchmarkText:
    """The runs of words of some questions.

    Args:
      texts: what the benchmarks ask, every turn of every question.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._runs = {run for text in texts for run in word_runs(text)}

    def asks(self, messages: Sequence[Mapping[str, str]]) -> bool:
        """Whether a message of a conversation shares a run of words with a question."""
        return any(not self._runs.isdisjoint(word_runs(message["content"])) for message in messages)


def word_runs(text: str) -> set[tuple[str, ...]]:
    """All `RUN` words in a row of a text, in lower case; all its words where it has fewer, and nothing of none."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return set()
    return {tuple(words[start : start + RUN]) for start in range(max(1, len(words) - RUN + 1))}
