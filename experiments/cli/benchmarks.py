"""The flag that keeps the text of benchmarks out of what is trained on."""

from absl import flags

from eagle_jax.evaluation.tasks import read_questions
from eagle_jax.training.benchmark_text import RUN, BenchmarkText


def define_flag(values: flags.FlagValues) -> None:
    """Define --benchmarks."""
    text = f"question files: what shares {RUN} words in a row with one of their questions is left out, and counted"
    flags.DEFINE_list("benchmarks", [], text, flag_values=values)


def from_flag(values: flags.FlagValues) -> BenchmarkText | None:
    """The questions of --benchmarks; None without it.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that holds no questions.
    """
    if not values.benchmarks:
        return None
    return BenchmarkText(turn for path in values.benchmarks for one in read_questions(path) for turn in one.turns)
