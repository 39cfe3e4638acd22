"""Write answers with a drafting method, and watch them appear.

    python -m experiments.generate --target=smollm2-135m --method=prompt_lookup --prompt="..." --compare

Of a question with several turns the first one is asked. `--compare` writes every answer by plain decoding too, in the
same process and in alternation, and says whether the tokens were identical. Tokens per second count decoding alone:
compiling and reading the prompt stand apart.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from eagle_jax.chat import TextStream
from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.drafters import Drafter, make_vanilla
from eagle_jax.evaluation import metrics, report
from eagle_jax.evaluation.tasks import Question, from_prompt, read_questions
from eagle_jax.generate import Generator
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import make_sampling
from eagle_jax.types import Params, Target
from experiments import launch, methods

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "target", "smollm2-135m", "smollm2-135m, a Hugging Face directory or id, or a .gguf file", flag_values=FLAGS
)
methods.define_flags(FLAGS)
flags.DEFINE_string("prompt", None, "what to ask", flag_values=FLAGS)
flags.DEFINE_string(
    "prompts_file", None, "questions, one JSON object a line: Spec-Bench's, or with the key prompt", flag_values=FLAGS
)
flags.DEFINE_integer("num_prompts", None, "take this many questions from the start of the file", flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 128, "longest answer", flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.0, "0 is greedy", flag_values=FLAGS)
flags.DEFINE_float("top_p", 1.0, "keep the most probable tokens up to this mass", flag_values=FLAGS)
flags.DEFINE_integer("sampling_top_k", 0, "keep this many of the most probable tokens; 0 keeps all", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of sampling: same seed, same text, whatever the method", flag_values=FLAGS)
flags.DEFINE_bool("compare", False, "write every answer by plain decoding too", flag_values=FLAGS)
flags.DEFINE_string("json_output", None, "file for the numbers and answers, as one JSON object", flag_values=FLAGS)


def main() -> None:
    """Generate as the flags say."""
    law = {"temperature": FLAGS.temperature, "top_k": FLAGS.sampling_top_k, "top_p": FLAGS.top_p, "seed": FLAGS.seed}
    make_sampling(1, max_new_tokens=FLAGS.max_new_tokens, **law)  # refuses bad values before anything is loaded
    name, settings = methods.settings_from_flags(FLAGS)
    questions = asked_questions()
    output = pathlib.Path(FLAGS.json_output) if FLAGS.json_output else None
    if output and (output.is_dir() or not output.parent.is_dir()):
        raise ValueError(f"--json_output={output} must name a file in a folder that exists")
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, settings.dtype, progress=progress)
    prompts = [prompt_ids(model, question) for question in questions]
    drafter, drafter_params = methods.make_method(name, model, settings)
    target = make_target(model.config, settings.dtype)
    capacity = slots(target, prompts, drafter)
    fast = Generator(target, model.params, drafter, drafter_params, capacity=capacity)
    plain = Generator(target, model.params, make_vanilla(), capacity=capacity) if FLAGS.compare else None
    options = {**law, "max_new_tokens": FLAGS.max_new_tokens, "stop_ids": model.stop_ids}
    with launch.status("Compiling"):
        for generator in filter(None, (fast, plain)):
            generator.warm_up(prompts[:1], **options)

    answers: list[report.Answer] = []
    for index, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
        if len(questions) > 1:
            print(f"\n[{index + 1}/{len(questions)}] {' '.join(question.turns[0].split())[:100]}\n", flush=True)
        options["sequence"] = [index]
        answers.append(answer(fast, plain, model, question, prompt, options, plain_first=index % 2 == 1))
    about = {
        "target": FLAGS.target,
        "method": name,
        "temperature": FLAGS.temperature,
        "seed": FLAGS.seed,
        "dtype": settings.dtype,
        "device": jax.devices()[0].device_kind,
    }
    margin = margin_at_difference(target, model.params, prompts, answers, law)
    record = report.summarise(about, report.tree_size(drafter), answers, margin)
    print("", *report.closing_lines(record), sep="\n", flush=True)
    if output:
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def asked_questions() -> list[Question]:
    """The questions of --prompt or --prompts_file."""
    if (FLAGS.prompt is None) == (FLAGS.prompts_file is None):
        raise ValueError(f"give either --prompt or --prompts_file, got {FLAGS.prompt!r} and {FLAGS.prompts_file!r}")
    if FLAGS.prompts_file is not None:
        return read_questions(FLAGS.prompts_file, FLAGS.num_prompts)
    if FLAGS.num_prompts not in (None, 1):
        raise ValueError(f"--num_prompts={FLAGS.num_prompts} needs --prompts_file; --prompt is 1 prompt")
    return [from_prompt(FLAGS.prompt)]


def prompt_ids(model: LoadedModel, question: Question) -> list[int]:
    """The question as the model is asked: by its chat template, or as plain text where it has none."""
    text = question.turns[0]
    if model.tokenizer.has_chat_template:
        return model.tokenizer.chat([{"role": "user", "content": text}])
    return model.tokenizer.encode(text)


def slots(target: Target, prompts: Sequence[Sequence[int]], drafter: Drafter) -> int:
    """Cache slots that serve every prompt, so that one program does.

    Raises:
      ValueError: the longest text does not fit into the model's context.
    """
    prompt = max(map(len, prompts))
    longest = prompt + FLAGS.max_new_tokens
    if longest > target.max_positions:
        raise ValueError(
            f"a prompt of {prompt} tokens and --max_new_tokens={FLAGS.max_new_tokens} come to {longest}, "
            f"the context of {FLAGS.target} is {target.max_positions}"
        )
    return max(512, 1 << (longest + drafter.max_depth).bit_length())


def answer(
    fast: Generator,
    plain: Generator | None,
    model: LoadedModel,
    question: Question,
    prompt: list[int],
    options: dict[str, Any],
    *,
    plain_first: bool,
) -> report.Answer:
    """Write one answer, shown as it grows, and the plain one before or after it, unseen."""
    reference = plain.generate([prompt], **options) if plain and plain_first else None
    text, shown, whole = TextStream(model.tokenizer.decode), 0, ""
    for written in fast.stream([prompt], **options):
        piece = text.push(written.tokens[0][shown:])
        shown, whole = len(written.tokens[0]), whole + piece
        print(piece, end="", flush=True)
    rest = text.finish()
    print(rest, flush=True)
    if plain and not plain_first:
        reference = plain.generate([prompt], **options)
    return report.Answer(
        question_id=question.question_id, prompt=question.turns[0], text=whole + rest, written=written, plain=reference
    )


def margin_at_difference(
    target: Target, params: Params, prompts: Sequence[list[int]], answers: Sequence[report.Answer], law: dict[str, Any]
) -> float | None:
    """Margin of the best score where an answer first differs from plain decoding; None where none does."""
    for index, (prompt, one) in enumerate(zip(prompts, answers, strict=True)):
        if one.plain is not None and not one.identical:
            position = metrics.first_difference(one.written.tokens[0], one.plain.tokens[0])
            return metrics.margin(target, params, prompt + one.plain.tokens[0][:position], sequence=index, **law)
    return None


if __name__ == "__main__":
    launch.run(main, FLAGS)
