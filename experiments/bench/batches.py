"""Throughput by batch size: plain decoding against drafting methods with trees of several sizes.

    python -m experiments.bench.batches --prompts_file=question.jsonl --drafts=eagle3,eagle3:16/5/4 --batches=1,4,16

Batches are refilled while prompts wait: a row whose answer has ended takes the next one (`eagle_jax.continuous`). With
no more prompts than rows none waits, and a warning is logged. Plain decoding and all drafts write the same answers in
one process, in alternation: prompts are split into parts (eight prompts or four batches each), every method answers a
part before the next part begins, and the method that goes first changes from part to part, turn to turn and batch size
to batch size. Once a batch saturates the device, a further token of a pass is no longer nearly free, so the best tree
shrinks as the batch grows. A draft without sizes takes those of the batch (`eagle_jax.drafters.default_tree`). Every
batch size answers the same prompts.

Speeds are given twice: rounds alone, and with prefill, as a user sees them: while some rows prefill, the others wait.
"""

import dataclasses
import functools
import itertools
import json
import logging
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.continuous import write_all
from eagle_jax.evaluation import metrics, runner
from eagle_jax.evaluation.summary import markdown_table, tree_size
from eagle_jax.evaluation.tasks import read_questions
from eagle_jax.evaluation.turns import PLAIN
from eagle_jax.files import local
from eagle_jax.generator import Generation, Generator
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import device_kind, git_commit
from eagle_jax.sampling import make_sampling
from experiments.cli import launch, methods
from experiments.cli.method_settings import MethodSettings

FLAGS = flags.FlagValues()
flags.DEFINE_string("target", "smollm2-135m", "as for experiments.generate", flag_values=FLAGS)
methods.define_flags(FLAGS, method=False)
text = "METHOD or METHOD:NODES/DEPTH/TOP_K; without sizes a tree shrinks as the batch grows"
flags.DEFINE_list("drafts", ["eagle3"], text, flag_values=FLAGS)
flags.DEFINE_list("batches", ["1", "2", "4", "8", "16", "32"], "rows that decode together", flag_values=FLAGS)
flags.DEFINE_string("prompts_file", None, "questions, as for experiments.generate", flag_values=FLAGS)
text = "from the start of the file; default: twice the largest batch, at least 8, or as many as there are"
flags.DEFINE_integer("num_prompts", None, text, flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 64, "longest answer", flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.0, "0 is greedy", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "seed of sampling", flag_values=FLAGS)
flags.DEFINE_integer("repeats", 3, "turns of which the median is taken", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON lines to write, one a draft and batch; must not exist", flag_values=FLAGS)

_LOG = logging.getLogger(__name__)

Row = dict[str, Any]
Pass = list[Generation]
"""Answers to all prompts, one generation per part."""


def main() -> None:
    """Measure every batch size and print a table."""
    batches = check_flags()
    drafts = [methods.read_draft(text, FLAGS) for text in FLAGS.drafts]
    questions = read_questions(FLAGS.prompts_file, FLAGS.num_prompts)
    questions = questions[: FLAGS.num_prompts or max(8, 2 * max(batches))]
    if len(questions) < max(batches):
        raise ValueError(f"a batch of {max(batches)} rows needs as many prompts, there are {len(questions)}")
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, FLAGS.dtype, packed=True, progress=progress)
    prompts = [runner.prompt_ids(model, question) for question in questions]
    target = make_target(model.config)

    @functools.cache
    def make_generator(name: str, settings: MethodSettings) -> Generator:
        return Generator(target, model.params, *methods.make_method(name, model, settings))

    rows: list[Row] = []
    for number, batch in enumerate(batches):
        generators, trees = {PLAIN: make_generator("vanilla", MethodSettings(dtype=FLAGS.dtype))}, {}
        for label, name, settings in drafts:
            name, settings = methods.with_tree(name, settings, model, batch=batch, temperatures=(FLAGS.temperature,))
            generators[label] = make_generator(name, settings)
            trees[label] = tree_size(generators[label].drafter)
        if len(prompts) <= batch:
            _LOG.warning("batch %d: %d prompts, no row is refilled and all wait for the longest", batch, len(prompts))
        with launch.status(f"batch {batch}, {len(prompts)} prompts"):
            measured = measure(model, generators, prompts, batch, number)
        for label, row in measured.items():
            rows.append({**about(batch), "draft": label, "tree": trees[label], **row, "commit": git_commit()})
        if FLAGS.output:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            local(FLAGS.output).write_text(text, encoding="utf-8")
    print(f"{FLAGS.target}, {FLAGS.dtype}, {device_kind()}, T = {FLAGS.temperature:g}\n")
    print(table(rows))


def check_flags() -> list[int]:
    """Check values before anything is loaded; returns the batch sizes."""
    if FLAGS.prompts_file is None:
        raise ValueError("--prompts_file is needed: questions, one JSON object a line")
    if not FLAGS.batches or not all(text.isdecimal() and int(text) > 0 for text in FLAGS.batches):
        raise ValueError(f"--batches takes numbers of at least 1, got {','.join(FLAGS.batches)!r}")
    if FLAGS.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {FLAGS.repeats}")
    launch.check_file("output", FLAGS.output, new=True)
    make_sampling(1, temperature=FLAGS.temperature, seed=FLAGS.seed, max_new_tokens=FLAGS.max_new_tokens)
    return [int(text) for text in FLAGS.batches]


def about(batch: int) -> Row:
    """The settings of a row."""
    decides = ("target", "dtype", "temperature", "seed", "max_new_tokens", "repeats")
    return {**{flag: getattr(FLAGS, flag) for flag in decides}, "device": device_kind(), "batch": batch}


def measure(
    model: LoadedModel, generators: dict[str, Generator], prompts: Sequence[list[int]], batch: int, number: int
) -> dict[str, Row]:
    """The rows of a batch size, by draft; `number` batch sizes were measured before."""
    options = {"temperature": FLAGS.temperature, "seed": FLAGS.seed, "stop_ids": model.stop_ids}
    sampling, lengths = make_sampling(len(prompts), max_new_tokens=FLAGS.max_new_tokens), [*map(len, prompts)]
    generators = {  # one capacity for every part
        label: dataclasses.replace(one, capacity=one.slots(lengths, sampling)) for label, one in generators.items()
    }
    for one in generators.values():
        write_all(one, prompts[: batch + 1], batch=batch, max_new_tokens=3, **options)  # compiles, a refill included
    labels = list(generators)
    turns: dict[str, list[Pass]] = {label: [[] for _ in range(FLAGS.repeats)] for label in labels}
    for turn, (index, part) in itertools.product(range(FLAGS.repeats), enumerate(parts(len(prompts), batch))):
        of_part = [prompts[place] for place in part]
        for label in rotated(labels, number + turn + index):
            answers = write_all(
                generators[label], of_part, batch=batch, sequence=part, max_new_tokens=FLAGS.max_new_tokens, **options
            )
            turns[label][turn].append(answers)
    plain = turns.pop(PLAIN)
    return {label: {"prompts": len(prompts), **numbers(own, plain)} for label, own in turns.items()}


def rotated(labels: list[str], by: int) -> list[str]:
    """All labels, rotated by `by` places."""
    first = by % len(labels)
    return labels[first:] + labels[:first]


def parts(count: int, batch: int) -> list[list[int]]:
    """The places of `count` prompts, in parts of four batches and eight prompts at the least."""
    return [part.tolist() for part in np.array_split(np.arange(count), max(1, count // max(8, 4 * batch)))]


def numbers(own: Sequence[Pass], plain: Sequence[Pass]) -> Row:
    """Numbers of a draft's turns; tokens and rounds are the same in all of them."""
    texts = [answer for part in own[0] for answer in part.tokens]
    plain_texts = [answer for part in plain[0] for answer in part.tokens]
    return {
        "tokens": sum(part.num_tokens for part in own[0]),
        "tau": metrics.tau(own[0]),
        **speeds(own, plain, with_prefill=False),
        **{f"{name}_with_prefill": value for name, value in speeds(own, plain, with_prefill=True).items()},
        "identical_prompts": sum(one == other for one, other in zip(texts, plain_texts, strict=True)),
    }


def speeds(own: Sequence[Pass], plain: Sequence[Pass], *, with_prefill: bool) -> Row:
    """Medians over the turns."""
    speed = statistics.median(metrics.tokens_per_second(turn, with_prefill=with_prefill) for turn in own)
    plain_speed = statistics.median(metrics.tokens_per_second(turn, with_prefill=with_prefill) for turn in plain)
    return {"tokens_per_second": speed, "plain_tokens_per_second": plain_speed, "speedup": speed / plain_speed}


def table(rows: Sequence[Row]) -> str:
    """One line a batch and draft."""
    speed = {"tokens_per_second": "tokens/s", "plain_tokens_per_second": "plain tokens/s", "speedup": "speed-up"}
    speed |= {f"{name}_with_prefill": f"{text}, with prefill" for name, text in speed.items()}
    header = ["batch", "draft", "tree", "tau", *speed.values(), "identical"]
    shown = ("tau", *speed)
    return markdown_table(
        header,
        [
            [
                row["batch"],
                row["draft"].partition(":")[0],
                "/".join(map(str, row["tree"].values())),
                *(row[name] for name in shown),
                f"{row['identical_prompts']} of {row['prompts']}",
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    launch.run(main, FLAGS)
