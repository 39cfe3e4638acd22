"""Write answers with a drafting method, and watch them appear.

    python -m experiments.generate --target=smollm2-135m --method=prompt_lookup --prompt="..." --compare

Of a question with several turns only the first is used. `--compare` writes every answer by plain decoding too, in the
same process and in alternation, and reports whether the tokens were identical. Tokens per second count decoding alone;
compilation and prefill are not included.

`--batch=8` writes the same answers to `--prompts_file` eight at a time; a row whose answer has ended takes the next
prompt. They are shown when all are there.

Several processes write them on a `--mesh` of all their devices: start the same command in each, with `--distributed`.
"""

import functools
import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.continuous import write_all
from eagle_jax.drafters import make_vanilla
from eagle_jax.evaluation import runner, summary
from eagle_jax.evaluation.tasks import Question, from_prompt, read_questions
from eagle_jax.files import local
from eagle_jax.generator import Generator
from eagle_jax.give_up import GivingUp
from eagle_jax.models.transformer import make_target
from eagle_jax.processes import is_primary
from eagle_jax.provenance import device_kind
from eagle_jax.sampling import SamplingConfig
from eagle_jax.sharding import DATA
from experiments.cli import launch, methods

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "target", "smollm2-135m", "smollm2-135m, a Hugging Face directory or id, or a GGUF file", flag_values=FLAGS
)
methods.define_flags(FLAGS)
flags.DEFINE_string("prompt", None, "the user's message", flag_values=FLAGS)
flags.DEFINE_string(
    "prompts_file", None, "questions, one JSON object a line: Spec-Bench's, or with the key prompt", flag_values=FLAGS
)
flags.DEFINE_integer("num_prompts", None, "take this many questions from the start of the file", flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 128, "longest answer", flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.0, "0 is greedy", flag_values=FLAGS)
flags.DEFINE_float("top_p", 1.0, "sample from the most probable tokens up to this mass", flag_values=FLAGS)
text = "sample from tokens at least this many times as probable as the most probable one; 0: all"
flags.DEFINE_float("min_p", 0.0, text, flag_values=FLAGS)
flags.DEFINE_integer(
    "sampling_top_k", 0, "sample from this many of the most probable tokens; 0: all", flag_values=FLAGS
)
text = "divides logits of tokens of prompt and answer where positive, else multiplies them; 1: off"
flags.DEFINE_float("repetition_penalty", 1.0, text, flag_values=FLAGS)
text = "subtracted from logits of tokens of the answer; 0: off"
flags.DEFINE_float("presence_penalty", 0.0, text, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of sampling: same seed, same text, whatever the method", flag_values=FLAGS)
flags.DEFINE_enum(
    "rule",
    "match",
    ["match", "residual"],
    "how drafts are accepted; residual writes another text and needs --noshare_noise",
    flag_values=FLAGS,
)
flags.DEFINE_bool("share_noise", True, "let the drafter see the noise that the target samples with", flag_values=FLAGS)
text = "finish by plain decoding where drafting has cost time so far; one answer at a time, --rule=match"
flags.DEFINE_bool("give_up", False, text, flag_values=FLAGS)
flags.DEFINE_bool("compare", False, "write every answer by plain decoding too", flag_values=FLAGS)
flags.DEFINE_integer("batch", 1, "answers written at a time; more than 1 are not streamed", flag_values=FLAGS)
text = "DATAxMODEL: 2x4 shards the rows of --batch over 2 groups of devices and the weights over 4 in each"
flags.DEFINE_string("mesh", None, text, flag_values=FLAGS)
flags.DEFINE_string("distributed", None, launch.DISTRIBUTED, flag_values=FLAGS)
text = "split the draft head over the devices as the target is; left out, a bound on the time of drafting decides"
flags.DEFINE_bool("split_head", None, text, flag_values=FLAGS)
text = "write log-probabilities of the tokens to --json_output, and of this many most probable ones beside each"
flags.DEFINE_integer("logprobs", None, text, flag_values=FLAGS)
flags.DEFINE_string("json_output", None, "file for the numbers and answers, as one JSON object", flag_values=FLAGS)


def main() -> None:
    """Generate with the settings of the flags."""
    launch.join(FLAGS.distributed)
    sampling = SamplingConfig(
        FLAGS.temperature,
        FLAGS.sampling_top_k,
        FLAGS.top_p,
        FLAGS.min_p,
        FLAGS.seed,
        FLAGS.max_new_tokens,
        FLAGS.repetition_penalty,
        FLAGS.presence_penalty,
    )  # checks values before anything is loaded
    check_flags()
    name, settings = methods.settings_from_flags(FLAGS)
    questions = selected_questions()
    mesh = launch.parse_mesh(FLAGS.mesh, batch=FLAGS.batch)
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, settings.dtype, mesh=mesh, packed=True, progress=progress)
    rows = FLAGS.batch // (mesh.shape[DATA] if mesh else 1)
    name, settings = methods.with_tree(name, settings, model, batch=rows, temperatures=(FLAGS.temperature,))
    prompts = [runner.prompt_ids(model, question) for question in questions]
    drafter, drafter_params = methods.make_method(name, model, settings)
    target = make_target(model.config)
    capacity = runner.slots(target, prompts, drafter, FLAGS.max_new_tokens)
    placement: dict[str, Any] = {"capacity": capacity, "mesh": mesh}
    acceptance = {"rule": FLAGS.rule, "share_noise": FLAGS.share_noise}
    make_generator = GivingUp if FLAGS.give_up else Generator
    method = make_generator(
        target, model.params, drafter, drafter_params, **placement, **acceptance, logprobs=FLAGS.logprobs
    )
    plain = Generator(target, model.params, make_vanilla(), **placement) if FLAGS.compare else None
    write = one_by_one if FLAGS.batch == 1 else together
    answers = write(model, method, plain, questions, prompts, sampling)
    settings_shown = {
        "target": FLAGS.target,
        "method": name,
        "temperature": FLAGS.temperature,
        "seed": FLAGS.seed,
        **acceptance,
        "give_up": FLAGS.give_up,
        "dtype": settings.dtype,
        "device": device_kind(),
        "mesh": FLAGS.mesh,
        "batch": FLAGS.batch,
    }
    margin = runner.first_margin(method, prompts, answers, sampling)
    tree = summary.tree_size(drafter)
    record = summary.summarise(settings_shown, tree, answers, margin)
    launch.say("\n".join(summary.closing_lines(record)))
    if settings.head and (line := summary.doubt(record)):
        launch.note(line)
    if FLAGS.json_output and is_primary():
        local(FLAGS.json_output).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def check_flags() -> None:
    """Check flags before anything is loaded."""
    launch.check_file("json_output", FLAGS.json_output)
    if FLAGS.logprobs is not None and FLAGS.json_output is None:
        raise ValueError(f"--logprobs={FLAGS.logprobs} needs --json_output, the file that they are written to")
    if FLAGS.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {FLAGS.batch}")
    if FLAGS.give_up and FLAGS.batch > 1:
        raise ValueError(f"--give_up judges one answer at a time, with --batch={FLAGS.batch} rows begin and end apart")
    if FLAGS.split_head and FLAGS.mesh is None:
        raise ValueError("--split_head needs --mesh, the devices to split over")


def one_by_one(
    model: LoadedModel,
    method: Generator,
    plain: Generator | None,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    sampling: SamplingConfig,
) -> list[runner.Answer]:
    """The answers, each shown as it appears."""
    with launch.status("Compiling"):
        for generator in filter(None, (method, plain)):
            generator.warm_up(prompts[:1], **sampling.options(stop_ids=model.stop_ids))
    answers: list[runner.Answer] = []
    coming = runner.stream_answers(
        model, method, plain, questions, prompts, sampling, show=functools.partial(launch.say, end="")
    )
    for index in range(len(questions)):
        launch.say(heading(index, questions), end="")
        answers.append(next(coming))
        launch.say("\n")
    return answers


def together(
    model: LoadedModel,
    method: Generator,
    plain: Generator | None,
    questions: Sequence[Question],
    prompts: Sequence[list[int]],
    sampling: SamplingConfig,
) -> list[runner.Answer]:
    """The answers, `--batch` of them decoded at a time, shown at the end."""
    with launch.status("Compiling"):  # one prompt more than there are rows, so that a row is refilled; few tokens
        brief = sampling.options(stop_ids=model.stop_ids, max_new_tokens=min(3, sampling.max_new_tokens))
        for generator in filter(None, (method, plain)):
            write_all(generator, prompts[: FLAGS.batch + 1], batch=FLAGS.batch, **brief)
    with launch.status(f"Writing {len(prompts)} answers, {FLAGS.batch} at a time"):
        answers = runner.batched_answers(model, method, plain, questions, prompts, sampling, batch=FLAGS.batch)
    for index, answer in enumerate(answers):
        launch.say(f"{heading(index, questions)}{answer.text}\n")
    return answers


def heading(index: int, questions: Sequence[Question]) -> str:
    """The line before an answer, where there are several."""
    message = " ".join(questions[index].turns[0].split())
    return f"[{index + 1}/{len(questions)}] {message[:100]}\n\n" if len(questions) > 1 else ""


def selected_questions() -> list[Question]:
    """The questions of --prompt or --prompts_file."""
    if (FLAGS.prompt is None) == (FLAGS.prompts_file is None):
        given = "neither" if FLAGS.prompt is None else "both"
        raise ValueError(f"give either --prompt or --prompts_file, got {given}")
    if FLAGS.prompts_file is not None:
        return read_questions(FLAGS.prompts_file, FLAGS.num_prompts)
    if FLAGS.num_prompts not in (None, 1):
        raise ValueError(f"--num_prompts={FLAGS.num_prompts} needs --prompts_file; --prompt is 1 prompt")
    return [from_prompt(FLAGS.prompt)]


if __name__ == "__main__":
    launch.run(main, FLAGS)
