"""Text of benchmarks is found in conversations by thirteen words in a row, and left out wherever text is read."""

import json
from pathlib import Path

import pytest

from eagle_jax.testing import ByteTokenizer
from eagle_jax.training.benchmark_text import RUN, BenchmarkText, word_runs
from eagle_jax.training.conversations import read_corpus
from eagle_jax.training.prompt_files import read_prompts

WORDS = [f"word{number}" for number in range(20)]
QUESTION = " ".join(WORDS)
TOKENIZER = ByteTokenizer()


def talk(text: str, answer: str = "yes") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (QUESTION, True),
        (" ".join(["before", *WORDS[3 : 3 + RUN], "after"]), True),
        (" ".join(["before", *WORDS[3 : 2 + RUN], "after"]), False),  # a word less
        (f"  {', '.join(WORDS[:RUN]).upper()}!", True),  # case, punctuation and space do not count
        ("Say: Hello, you!", False),
        ("HELLO you", True),  # all words of a question of two
        ("!", False),
        ("", False),
    ],
)
def test_thirteen_words_in_a_row(text: str, found: bool) -> None:
    benchmark = BenchmarkText([QUESTION, "Hello, you.", "?"])
    assert benchmark.asks(talk(text)) is found
    assert benchmark.asks(talk("no", text)) is found


def test_runs_by_hand() -> None:
    assert word_runs("It's 2.") == {("it", "s", "2")}
    assert len(word_runs(QUESTION)) == len(WORDS) - RUN + 1
    assert word_runs("...") == set()


def test_left_out_where_text_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"id": str(index), "messages": talk(text)} for index, text in enumerate(["new", QUESTION, "newer"])]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    benchmark = BenchmarkText([QUESTION])
    corpus = read_corpus([str(path)], TOKENIZER, encode_plain=TOKENIZER.encode, benchmarks=benchmark)
    assert (len(corpus.examples), corpus.num_left_out) == (2, 1)
    prompts = read_prompts([str(path)], TOKENIZER, max_tokens=300, benchmarks=benchmark)
    assert ([one.identifier for one in prompts.prompts], prompts.num_left_out) == (["0", "2"], 1)


def test_nothing_left_says_why(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": talk(QUESTION)}) + "\n")
    benchmark = BenchmarkText([QUESTION])
    with pytest.raises(ValueError, match=r"^no conversation in .*a\.jsonl but 1 that repeat a benchmark$"):
        read_corpus([str(path)], TOKENIZER, encode_plain=TOKENIZER.encode, benchmarks=benchmark)
    with pytest.raises(ValueError, match=r"^no prompt of at most 300 tokens that repeats no benchmark \(1 do\) in"):
        read_prompts([str(path)], TOKENIZER, max_tokens=300, benchmarks=benchmark)
