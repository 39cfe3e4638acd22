"""Let the target answer prompts itself: training text of a draft head.

    python -m experiments.regenerate --prompts=prompts.jsonl --output=answers.jsonl --temperatures=0,1

A line of --prompts is `{"id": ..., "messages": [...]}`; an answer at its end is left out and written anew. Every prompt
is answered --answers times at each temperature (once at 0), each answer with its own noise, so that the answers do not
depend on the batch, the drafting method or interruptions. A row whose answer has ended takes the next prompt
(`eagle_jax.continuous`), and decoding continues while answers are written to the file. The same command resumes an
interrupted run; the answers in progress, and those after the oldest of them, are written again. With --mesh one process
uses several devices.
"""

import time
from collections.abc import Iterator, Sequence

from absl import flags
from tqdm import tqdm

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.continuous import write_each
from eagle_jax.generator import Generator, cache_slots
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import weights_digest
from eagle_jax.sampling import make_sampling
from eagle_jax.sharding import DATA
from eagle_jax.training.answer_file import AnswerFile, Request, in_order, record_of, requests_for
from eagle_jax.training.prompt_files import Prompt, read_prompts
from experiments.cli import benchmarks, launch, methods

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "target", "smollm2-135m", "smollm2-135m, a Hugging Face directory or id, or a GGUF file", flag_values=FLAGS
)
methods.define_flags(FLAGS)
FLAGS.set_default("method", "vanilla")
flags.DEFINE_list("prompts", None, "conversations, JSON lines: one or more files", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON lines to append answers to", flag_values=FLAGS)
flags.DEFINE_list("temperatures", ["0"], "temperatures of the answers: one or more, 0 is greedy", flag_values=FLAGS)
flags.DEFINE_integer("answers", 1, "answers for each prompt and temperature; one at temperature 0", flag_values=FLAGS)
flags.DEFINE_integer("num_prompts", None, "take this many prompts from the start", flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 256, "longest answer", flag_values=FLAGS)
flags.DEFINE_integer("max_prompt_tokens", 512, "longer prompts are left out, and counted", flag_values=FLAGS)
flags.DEFINE_integer("batch", 16, "answers written at a time", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "seed of sampling", flag_values=FLAGS)
flags.DEFINE_float("time_limit", None, "seconds after which to stop", flag_values=FLAGS)
flags.DEFINE_bool("skip_broken", False, "leave broken lines of --prompts out instead of stopping", flag_values=FLAGS)
benchmarks.define_flag(FLAGS)
flags.DEFINE_string(
    "mesh", None, "DATAxMODEL: 4x2 shards answers over 4 groups of 2 devices that share a target", flag_values=FLAGS
)
flags.DEFINE_bool("quiet", False, "no progress bar", flag_values=FLAGS)

WINDOW = 8
"""Batches that are sorted by prompt length together."""


def main() -> None:
    """Write the answers that are missing."""
    started = time.monotonic()
    temperatures = check_flags()
    name, settings = methods.settings_from_flags(FLAGS)
    mesh = launch.parse_mesh(FLAGS.mesh, batch=FLAGS.batch)
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, settings.dtype, mesh=mesh, packed=True, progress=progress)
    rows = FLAGS.batch // (mesh.shape[DATA] if mesh else 1)
    name, settings = methods.with_tree(name, settings, model, batch=rows, temperatures=temperatures)
    requests = requests_for(prompts_of(model), temperatures, FLAGS.answers)
    drafter, drafter_params = methods.make_method(name, model, settings)
    target = make_target(model.config)
    longest = longest_prompt(model) + FLAGS.max_new_tokens
    slots = cache_slots(longest, drafter.max_depth, target.max_positions)
    writer = Generator(target, model.params, drafter, drafter_params, capacity=slots, mesh=mesh)
    decides = {flag: getattr(FLAGS, flag) for flag in ("target", "dtype", "seed", "max_new_tokens")}
    with AnswerFile(FLAGS.output, {**decides, "weights": weights_digest(model.params)}) as file:
        missing = file.missing(in_order(requests, FLAGS.batch * WINDOW))
        print(f"{len(requests)} answers requested, {len(requests) - len(missing)} there already", flush=True)
        left = len(missing) - (write_answers(writer, model, missing, file, started) if missing else 0)
    print(f"stopped, {left} answers left; the same command goes on" if left else "finished", flush=True)


def check_flags() -> list[float]:
    """Check values before anything is loaded; returns the temperatures."""
    launch.need(FLAGS, "prompts", "output", "temperatures")
    launch.check_file("output", FLAGS.output)
    for flag in ("answers", "num_prompts", "max_prompt_tokens", "batch"):
        given = getattr(FLAGS, flag)
        if given is not None and given < 1:
            raise ValueError(f"--{flag} must be at least 1, got {given}")
    try:
        temperatures = [float(text) for text in FLAGS.temperatures]
    except ValueError:
        given = ",".join(FLAGS.temperatures)
        raise ValueError(f"--temperatures takes numbers separated by commas, got {given!r}") from None
    make_sampling(len(temperatures), temperature=temperatures, seed=FLAGS.seed, max_new_tokens=FLAGS.max_new_tokens)
    return temperatures


def longest_prompt(model: LoadedModel) -> int:
    """The most tokens of a prompt with which the longest answer still fits into the model's context."""
    room = model.config.max_positions - FLAGS.max_new_tokens
    if room < 1:
        raise ValueError(
            f"--max_new_tokens={FLAGS.max_new_tokens} leaves no room for a prompt in the model's context of "
            f"{model.config.max_positions}"
        )
    return min(FLAGS.max_prompt_tokens, room)


def prompts_of(model: LoadedModel) -> list[Prompt]:
    """The prompts to be answered."""
    if not model.tokenizer.has_chat_template:
        raise ValueError(f"{FLAGS.target} has no chat template, so it does not answer conversations")
    read = read_prompts(
        FLAGS.prompts,
        model.tokenizer,
        max_tokens=longest_prompt(model),
        skip_broken=FLAGS.skip_broken,
        benchmarks=benchmarks.from_flag(FLAGS),
    )
    if read.num_left_out:
        print(f"left out {read.num_left_out} prompts that repeat a question of a benchmark", flush=True)
    if read.broken:
        print(f"left out {len(read.broken)} broken lines, the first: {read.broken[0]}", flush=True)
    if read.num_too_long:
        print(f"left out {read.num_too_long} prompts of more than {longest_prompt(model)} tokens", flush=True)
    return read.prompts[: FLAGS.num_prompts]


def write_answers(
    writer: Generator, model: LoadedModel, missing: Sequence[Request], file: AnswerFile, started: float
) -> int:
    """Write answers until all are there or time is up; returns how many were written."""
    written = tokens = 0
    with tqdm(total=len(missing), unit="answer", disable=FLAGS.quiet, dynamic_ncols=True) as bar:
        clock = time.monotonic()
        for answers in in_turn(writer, model, missing, started):
            requests = missing[written : written + len(answers)]
            file.write(
                record_of(request, answer, model.tokenizer.decode(answer), model.stop_ids)
                for request, answer in zip(requests, answers, strict=True)
            )
            written += len(answers)
            tokens += sum(map(len, answers))
            bar.update(len(answers))
            bar.set_postfix(tokens_per_second=f"{tokens / (time.monotonic() - clock):.0f}")
    return written


def in_turn(
    writer: Generator, model: LoadedModel, missing: Sequence[Request], started: float
) -> Iterator[list[list[int]]]:
    """Answers in the order of their requests, as soon as those before them are there; none is begun once time is up."""
    answered = write_each(
        writer,
        [request.prompt.tokens for request in missing],
        batch=FLAGS.batch,
        should_stop=lambda: FLAGS.time_limit is not None and time.monotonic() - started > FLAGS.time_limit,
        temperature=[request.temperature for request in missing],
        sequence=[request.sequence for request in missing],
        max_new_tokens=FLAGS.max_new_tokens,
        seed=FLAGS.seed,
        stop_ids=model.stop_ids,
    )
    ended: dict[int, list[int]] = {}
    first = 0  # index of the first answer not yet written
    for finished in answered:
        ended |= {prompt: answer.tokens for prompt, answer in finished.answers.items()}
        ready = []
        while first in ended:
            ready.append(ended.pop(first))
            first += 1
        if ready:
            yield ready


if __name__ == "__main__":
    launch.run(main, FLAGS)
