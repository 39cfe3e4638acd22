"""Check token for token that drafting methods write what plain decoding writes, and print a Markdown table.

    python -m experiments.exactness --prompts_file=question.jsonl --num_prompts=24 --methods=prompt_lookup,chain

Plain decoding writes each answer once per law, then every method writes it again; answers are compared, and where one
differs the margin of the target's best score at that place tells a near-tie of the arithmetic from a mistake. Exit code
1 where an answer differs by more than a near-tie (--near_tie). --output gets a row for each law and method as it is
finished.
"""

import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import flags

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.drafters import Drafter, make_vanilla
from eagle_jax.evaluation import metrics, runner
from eagle_jax.evaluation.summary import markdown_table, tree_size
from eagle_jax.evaluation.tasks import read_questions
from eagle_jax.generator import Generation, Generator
from eagle_jax.journal import write_rows
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import git_commit, weights_digest
from eagle_jax.sampling import make_sampling
from eagle_jax.types import Params
from experiments.cli import launch, methods
from experiments.cli.grid import digests
from experiments.cli.method_settings import Settings

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
flags.DEFINE_string("output", None, "JSON lines to write, one a law and method; must not exist", flag_values=FLAGS)

Row = dict[str, Any]


def main() -> None:
    """Check as the flags say."""
    laws = check_flags()
    chosen = {name: methods.settings_for(name, FLAGS) for name in FLAGS.methods}
    questions = read_questions(FLAGS.prompts_file, FLAGS.num_prompts)
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, FLAGS.dtype, packed=True, progress=progress)
    built = {name: methods.make_method(name, model, settings) for name, settings in chosen.items()}
    drafts = {name: about(name, chosen[name], *method) for name, method in built.items()}
    asked = digests({"": dict(enumerate(questions))})[""]
    rows: list[Row] = []
    for found in check(model, [runner.prompt_ids(model, question) for question in questions], built, laws):
        rows.append({**run_with(), "questions": asked, **drafts[found["method"]], **found, "commit": git_commit()})
        if FLAGS.output:
            write_rows(FLAGS.output, [{name: finite(value) for name, value in row.items()} for row in rows])
    print(
        f"{FLAGS.target}, {FLAGS.dtype}, {jax.devices()[0].device_kind}, batches of {FLAGS.batch}, seed {FLAGS.seed}, "
        f"at most {FLAGS.max_new_tokens} new tokens\n"
    )
    print(table(rows))
    if any(row["differing"] and row["first_difference_margin"] >= FLAGS.near_tie for row in rows):
        sys.exit(1)


def check_flags() -> list[dict[str, Any]]:
    """Refuse bad values before anything is loaded; the laws."""
    if FLAGS.prompts_file is None:
        raise ValueError("--prompts_file is needed: questions, one JSON object a line")
    if FLAGS.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {FLAGS.batch}")
    if not FLAGS.methods:
        raise ValueError(f"--methods names none; there are {', '.join(methods.METHODS)}")
    output = pathlib.Path(FLAGS.output) if FLAGS.output else None
    if output and output.exists():
        raise ValueError(f"--output={output} must name a new file, there is one of {output.stat().st_size} bytes")
    if output and not output.parent.is_dir():
        raise ValueError(f"--output={output} must name a file in a folder that exists, {output.parent} is none")
    laws = [read_law(text) for text in FLAGS.laws]
    for law in laws:
        make_sampling(1, **law, seed=FLAGS.seed, max_new_tokens=FLAGS.max_new_tokens)  # refuses bad values
    return laws


def run_with() -> Row:
    """What all rows were measured with."""
    decides = ("target", "dtype", "seed", "batch", "max_new_tokens")
    return {**{flag: getattr(FLAGS, flag) for flag in decides}, "device": jax.devices()[0].device_kind}


def about(name: str, settings: Settings, drafter: Drafter, params: Params) -> Row:
    """What was told to a method, and what came of it."""
    usual = Settings(dtype=settings.dtype)._asdict()
    given = {field: value for field, value in settings._asdict().items() if value != usual[field]}
    tree = tree_size(drafter, methods.children(name, settings))
    return {"method": name, "given": given, "tree": tree, "weights": weights_digest(params)}


def check(
    model: LoadedModel,
    prompts: Sequence[list[int]],
    built: dict[str, tuple[Drafter, Params]],
    laws: Sequence[dict[str, Any]],
) -> Iterator[Row]:
    """A row for each law and method."""
    target = make_target(model.config)
    capacity = max(runner.slots(target, prompts, drafter, FLAGS.max_new_tokens) for drafter, _ in built.values())
    generators = {
        name: Generator(target, model.params, *method, capacity=capacity)
        for name, method in {"vanilla": (make_vanilla(), ()), **built}.items()
    }
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
            yield {
                "method": name,
                **law,
                "prompts": len(prompts),
                "answers": len(answers),
                "tokens": sum(map(len, answers)),
                "tau": tau,
                "differing": len(margins),
                "first_difference_margin": max(margins, default=None),
            }


def finite(value: object) -> object:
    """JSON knows no infinity: null, as is what does not exist."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(rows: Sequence[Row]) -> str:
    """One line a law and method."""
    header = ["method", "law", "prompts", "tokens", "tau", "differing", "largest margin there"]
    lines = []
    for row in rows:
        margin = row["first_difference_margin"] if row["differing"] else "-"
        numbers = (row[name] for name in ("prompts", "tokens", "tau", "differing"))
        lines.append([row["method"], shown(row), *numbers, margin])
    return markdown_table(header, lines)


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
