"""Have the target answer prompts itself: what a draft head learns from.

    python -m experiments.regenerate --prompts=prompts.jsonl --output=answers.jsonl --temperature=0,1

A line of --prompts is `{"id": ..., "messages": [...]}`; an answer at its end is left out and written anew. Every prompt
is answered once per temperature and number of --answers, each answer with its own noise: what is written does not
depend on the batch, the drafting method or on interruptions. The same command goes on where an earlier one stopped.
"""

import dataclasses
import json
import os
import pathlib
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.generate import Generator
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import make_sampling
from eagle_jax.training.conversations import check_messages, parse
from eagle_jax.training.run import check_same
from experiments import launch, methods

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "target", "smollm2-135m", "smollm2-135m, a Hugging Face directory or id, or a .gguf file", flag_values=FLAGS
)
methods.define_flags(FLAGS)
FLAGS.set_default("method", "vanilla")
flags.DEFINE_list("prompts", None, "conversations, JSON lines: one or more files", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON lines to append answers to", flag_values=FLAGS)
flags.DEFINE_list("temperature", ["0"], "of the answers: one or more, 0 is greedy", flag_values=FLAGS)
flags.DEFINE_integer("answers", 1, "answers for each prompt and temperature", flag_values=FLAGS)
flags.DEFINE_integer("num_prompts", None, "take this many prompts from the start", flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 256, "longest answer", flag_values=FLAGS)
flags.DEFINE_integer("max_prompt_tokens", 512, "longer prompts are left out, and counted", flag_values=FLAGS)
flags.DEFINE_integer("batch", 16, "answers written at a time", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of sampling", flag_values=FLAGS)
flags.DEFINE_float("time_limit", None, "seconds after which to stop", flag_values=FLAGS)
flags.DEFINE_bool("skip_broken", False, "leave broken lines of --prompts out instead of stopping", flag_values=FLAGS)
flags.DEFINE_bool("quiet", False, "no progress bar", flag_values=FLAGS)

WINDOW = 8
"""Batches that are sorted by prompt length together."""


@dataclasses.dataclass(frozen=True)
class Request:
    """One answer to be written."""

    identifier: str
    messages: list[dict[str, str]]
    ids: list[int]
    temperature: float
    number: int  # among the answers at this temperature

    @property
    def key(self) -> tuple[str, float, int]:
        """What tells it from all others."""
        return self.identifier, self.temperature, self.number

    @property
    def sequence(self) -> int:
        """Names its noise, whatever other prompts there are."""
        return zlib.crc32(f"{self.identifier}/{self.temperature}/{self.number}".encode())


def main() -> None:
    """Answer as the flags say."""
    started = time.monotonic()
    for name in ("prompts", "output"):
        if not getattr(FLAGS, name):
            raise ValueError(f"give --{name}")
    temperatures = [_number(text) for text in FLAGS.temperature]
    for flag in ("answers", "batch", "max_prompt_tokens"):
        if getattr(FLAGS, flag) < 1:
            raise ValueError(f"--{flag} must be at least 1, got {getattr(FLAGS, flag)}")
    make_sampling(len(temperatures), temperature=temperatures, seed=FLAGS.seed, max_new_tokens=FLAGS.max_new_tokens)
    name, settings = methods.settings_from_flags(FLAGS)
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, settings.dtype, progress=progress)
    if not model.tokenizer.has_chat_template:
        raise ValueError(f"{FLAGS.target} has no chat template, so it does not answer conversations")
    requests = read_requests(model, temperatures)
    done = open_output(pathlib.Path(FLAGS.output), settings.dtype)
    pending = [request for request in requests if request.key not in done]
    drafter, drafter_params = methods.make_method(name, model, settings)
    needed = FLAGS.max_prompt_tokens + FLAGS.max_new_tokens + drafter.max_depth + 1
    writer = Generator(
        make_target(model.config, settings.dtype),
        model.params,
        drafter,
        drafter_params,
        capacity=max(512, 1 << (needed - 1).bit_length()),
    )
    print(f"{len(requests)} answers asked for, {len(requests) - len(pending)} there already", flush=True)
    written = write_all(writer, model, pending, started)
    left = len(pending) - written
    print(f"stopped, {left} answers left; the same command goes on" if left else "finished", flush=True)


def read_requests(model: LoadedModel, temperatures: Sequence[float]) -> list[Request]:
    """Every answer asked for, in the order of the files."""
    prompts: dict[str, tuple[list[dict[str, str]], list[int]]] = {}
    broken: list[str] = []
    too_long = 0
    for path in FLAGS.prompts:
        for number, line in enumerate(pathlib.Path(path).read_bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                record = parse(line)
                identifier = str(record.get("id", f"{pathlib.Path(path).stem}-{number}"))
                if identifier in prompts:
                    raise ValueError(f"id {identifier!r} is there twice")
                roles = check_messages(record.get("messages"))
                messages = record["messages"][:-1] if roles[-1] == "assistant" else record["messages"]
                ids = model.tokenizer.chat(messages)
            except ValueError as error:
                broken.append(f"{path}:{number}: {error}")
                continue
            too_long += len(ids) > FLAGS.max_prompt_tokens
            if len(ids) <= FLAGS.max_prompt_tokens:
                prompts[identifier] = messages, ids
    if broken and not FLAGS.skip_broken:
        raise ValueError(f"{len(broken)} broken lines, the first is {broken[0]}; --skip_broken leaves them out")
    if broken or too_long:
        print(f"left out {len(broken)} broken lines and {too_long} prompts that are too long", flush=True)
    chosen = list(prompts.items())[: FLAGS.num_prompts]
    if not chosen:
        raise ValueError(f"no prompt of at most {FLAGS.max_prompt_tokens} tokens in {', '.join(FLAGS.prompts)}")
    return [
        Request(identifier, messages, ids, temperature, number)
        for identifier, (messages, ids) in chosen
        for temperature in temperatures
        for number in range(FLAGS.answers)
    ]


def open_output(path: pathlib.Path, dtype: str) -> set[tuple[str, float, int]]:
    """Answers that are there already; what a crash left of a line is cut off.

    Raises:
      ValueError: the file was written with other settings.
    """
    law = {"target": FLAGS.target, "dtype": dtype, "seed": FLAGS.seed, "max_new_tokens": FLAGS.max_new_tokens}
    about = path.with_name(path.name + ".run.json")
    if path.exists() != about.exists():
        raise ValueError(f"{path if path.exists() else about} is there without its partner: nothing was written")
    if not about.exists():
        about.write_text(json.dumps(law) + "\n", encoding="utf-8")
        path.touch()
        return set()
    check_same(path, json.loads(about.read_text(encoding="utf-8")), law)
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        os.truncate(path, whole)
    records = [json.loads(line) for line in text[:whole].splitlines()]
    return {(record["id"], record["temperature"], record["answer"]) for record in records}


def write_all(writer: Generator, model: LoadedModel, pending: Sequence[Request], started: float) -> int:
    """Write answers until all are there or time is up; how many were written."""
    written = tokens = 0
    with (
        pathlib.Path(FLAGS.output).open("a", encoding="utf-8") as file,
        tqdm(total=len(pending), unit="answer", disable=FLAGS.quiet, dynamic_ncols=True) as bar,
    ):
        clock = time.monotonic()
        for batch in batches(pending):
            for record in answer(writer, model, batch):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                tokens += len(record["answer_ids"])
            file.flush()
            os.fsync(file.fileno())
            written += len(batch)
            bar.update(len(batch))
            bar.set_postfix(tokens_per_second=f"{tokens / (time.monotonic() - clock):.0f}")
            if FLAGS.time_limit is not None and time.monotonic() - started > FLAGS.time_limit:
                break
    return written


def batches(pending: Sequence[Request]) -> Iterator[list[Request]]:
    """Requests whose prompts are about as long as each other."""
    size = FLAGS.batch * WINDOW
    for start in range(0, len(pending), size):
        window = sorted(pending[start : start + size], key=lambda request: len(request.ids))
        for first in range(0, len(window), FLAGS.batch):
            yield window[first : first + FLAGS.batch]


def answer(writer: Generator, model: LoadedModel, batch: Sequence[Request]) -> Iterator[dict[str, Any]]:
    """The records of one batch; rows that the last batch lacks are filled with answers of one token."""
    rows = [*batch, *[batch[0]] * (FLAGS.batch - len(batch))]
    generation = writer.generate(
        [request.ids for request in rows],
        temperature=[request.temperature for request in rows],
        sequence=[request.sequence for request in rows],
        max_new_tokens=[FLAGS.max_new_tokens] * len(batch) + [1] * (len(rows) - len(batch)),
        seed=FLAGS.seed,
        stop_ids=model.stop_ids,
    )
    for request, ids in zip(batch, generation.tokens, strict=False):
        finished = ids[-1] in model.stop_ids
        text = model.tokenizer.decode(ids)
        yield {
            "id": request.identifier,
            "answer": request.number,
            "temperature": request.temperature,
            "finished": finished,
            **({"end_id": ids[-1]} if finished else {}),
            "messages": [*request.messages, {"role": "assistant", "content": text}],
            "answer_ids": ids[:-1] if finished else ids,
        }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--temperature takes numbers separated by commas, got {text!r}") from None


if __name__ == "__main__":
    launch.run(main, FLAGS)
