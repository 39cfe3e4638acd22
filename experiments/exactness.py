"""Check token for token that drafting methods write what plain decoding writes, and print a Markdown table.

    python -m experiments.exactness --prompts_file=question.jsonl --num_prompts=24 --methods=prompt_lookup,chain

Plain decoding writes each answer once per law, then every method writes it again; answers are compared, and where one
differs the margin of the target's best score at that place tells a near-tie of the arithmetic from a mistake. Exit code
1 where an answer differs by more than a near-tie (--near_tie).
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.drafters import make_vanilla
from eagle_jax.evaluation import metrics, runner
from eagle_jax.evaluation.report import markdown_table
from eagle_jax.evaluation.tasks import read_questions
from eagle_jax.generate import Generation, Generator
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import make_sampling
from experiments import launch, methods

FLAGS = flags.FlagValues()
flags.DEFINE_string("target", "smollm2-135m", "as for experiments.generate", flag_values=FLAGS)
methods.define_flags(FLAGS, method=False)
flags.DEFINE_list("methods", ["prompt_lookup"], "methods to check", flag_values=FLAGS)
flags.DEFINE_list("laws", ["0", "0.3", "0.7:0.9", "1"], "temperatures, each with :top_p if wanted", flag_values=FLAGS)
flags.DEFINE_string("prompts_file", None, "questions, as for experiments.generate", flag_values=FLAGS)
flags.DEFINE_integer("num_prompts", 24, "questions from the start of the file", flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 128, "longest answer", flag_values=FLAGS)
flags.DEFINE_integer("batch", 8, "answers written together", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of sampling", flag_values=FLAGS)
flags.DEFINE_float(
    "near_tie", 1e-3, "margin in logits below which a difference is put down to rounding", flag_values=FLAGS
)


def main() -> None:
    """Check as the flags say."""
    if FLAGS.prompts_file is None:
        raise ValueError("--prompts_file is needed: questions, one JSON object a line")
    if FLAGS.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {FLAGS.batch}")
    if not FLAGS.methods:
        raise ValueError(f"--methods names none; there are {', '.join(methods.METHODS)}")
    laws = [read_law(text) for text in FLAGS.laws]
    for law in laws:
        make_sampling(1, **law, seed=FLAGS.seed, max_new_tokens=FLAGS.max_new_tokens)  # refuses bad values
    chosen = {name: methods.settings_for(name, FLAGS) for name in FLAGS.methods}
    questions = read_questions(FLAGS.prompts_file, FLAGS.num_prompts)
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, FLAGS.dtype, progress=progress)
    prompts = [runner.prompt_ids(model, question) for question in questions]
    target = make_target(model.config, FLAGS.dtype)
    built = {name: methods.make_method(name, model, settings) for name, settings in chosen.items()}
    capacity = max(runner.slots(target, prompts, drafter, FLAGS.max_new_tokens) for drafter, _ in built.values())
    generators = {
        name: Generator(target, model.params, *method, capacity=capacity)
        for name, method in {"vanilla": (make_vanilla(), ()), **built}.items()
    }
    rows: list[list[object]] = []
    worst = 0.0
    for law in laws:
        options = {**law, "seed": FLAGS.seed, "stop_ids": model.stop_ids, "max_new_tokens": FLAGS.max_new_tokens}
        with launch.status(f"Plain decoding, {shown(law)}"):
            plain, _ = write(generators["vanilla"], prompts, options)
        for name in built:
            with launch.status(f"{name}, {shown(law)}"):
                answers, tau = write(generators[name], prompts, options)
            margins = [
                metrics.margin(
                    target,
                    model.params,
                    prompt + one[: metrics.first_difference(one, other)],
                    sequence=index,
                    seed=FLAGS.seed,
                    **law,
                )
                for index, (prompt, one, other) in enumerate(zip(prompts, plain, answers, strict=True))
                if one != other
            ]
            worst = max([worst, *margins])
            tokens = sum(map(len, answers))
            rows.append([name, shown(law), len(prompts), tokens, tau, len(margins), max(margins) if margins else "-"])
    print(
        f"{FLAGS.target}, {FLAGS.dtype}, {jax.devices()[0].device_kind}, batches of {FLAGS.batch}, seed {FLAGS.seed}, "
        f"at most {FLAGS.max_new_tokens} new tokens\n"
    )
    print(markdown_table(["method", "law", "prompts", "tokens", "tau", "differing", "largest margin there"], rows))
    if worst >= FLAGS.near_tie:
        sys.exit(1)


def read_law(text: str) -> dict[str, Any]:
    """`0.7:0.9` -> temperature and top-p.

    Raises:
      ValueError: not one or two numbers.
    """
    try:
        temperature, *rest = map(float, text.split(":"))
        (top_p,) = rest or [1.0]
    except ValueError:
        raise ValueError(f"--laws takes T or T:top_p, such as 0.7:0.9, got {text!r}") from None
    return {"temperature": temperature, "top_p": top_p}


def shown(law: dict[str, Any]) -> str:
    """A law as a table cell."""
    return f"T = {law['temperature']:g}" + (f", top-p {law['top_p']:g}" if law["top_p"] < 1 else "")


def write(generator: Generator, prompts: Sequence[list[int]], options: dict[str, Any]) -> tuple[list[list[int]], float]:
    """All answers, batch by batch, and tau; the sequence id of a question is its index."""
    written: list[Generation] = []
    for start in range(0, len(prompts), FLAGS.batch):
        rows = range(start, min(start + FLAGS.batch, len(prompts)))
        written.append(generator.generate([prompts[row] for row in rows], sequence=list(rows), **options))
    return [tokens for generation in written for tokens in generation.tokens], metrics.tau(written)


if __name__ == "__main__":
    launch.run(main, FLAGS)
