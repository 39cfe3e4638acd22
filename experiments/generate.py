"""Write answers with a drafting method, and watch them appear.

    python -m experiments.generate --target=smollm2-135m --method=prompt_lookup --prompt="..." --compare

Of a question with several turns the first one is asked. `--compare` writes every answer by plain decoding too, in the
same process and in alternation, and says whether the tokens were identical. Tokens per second count decoding alone:
compiling and reading the prompt stand apart.
"""

import json
import pathlib
from typing import Any

import jax
from absl import flags

from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.drafters import make_vanilla
from eagle_jax.evaluation import report, runner
from eagle_jax.evaluation.tasks import Question, from_prompt, read_questions
from eagle_jax.generate import Generator
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import make_sampling
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
flags.DEFINE_enum(
    "rule",
    "match",
    ["match", "residual"],
    "how drafts are accepted; residual writes another text and needs --noshare_noise",
    flag_values=FLAGS,
)
flags.DEFINE_bool("share_noise", True, "let the drafter see the noise that the target samples with", flag_values=FLAGS)
flags.DEFINE_bool(
    "give_up", None, "finish by plain decoding where drafting has cost time so far; default: yes", flag_values=FLAGS
)
flags.DEFINE_bool("compare", False, "write every answer by plain decoding too", flag_values=FLAGS)
flags.DEFINE_string(
    "mesh", None, "DATAxMODEL: 1x4 splits the weights over 4 devices; DATA is 1, prompts come singly", flag_values=FLAGS
)
flags.DEFINE_string("json_output", None, "file for the numbers and answers, as one JSON object", flag_values=FLAGS)


def main() -> None:
    """Generate as the flags say."""
    law = {"temperature": FLAGS.temperature, "top_k": FLAGS.sampling_top_k, "top_p": FLAGS.top_p, "seed": FLAGS.seed}
    make_sampling(1, max_new_tokens=FLAGS.max_new_tokens, **law)  # refuses bad values before anything is loaded
    name, settings = methods.settings_from_flags(FLAGS)
    questions = asked_questions()
    mesh = launch.parse_mesh(FLAGS.mesh, batch=1)
    output = pathlib.Path(FLAGS.json_output) if FLAGS.json_output else None
    if output and (output.is_dir() or not output.parent.is_dir()):
        raise ValueError(f"--json_output={output} must name a file in a folder that exists")
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, settings.dtype, mesh=mesh, progress=progress)
    prompts = [runner.prompt_ids(model, question) for question in questions]
    drafter, drafter_params = methods.make_method(name, model, settings)
    target = make_target(model.config, settings.dtype)
    capacity = runner.slots(target, prompts, drafter, FLAGS.max_new_tokens)
    give_up = FLAGS.give_up if FLAGS.give_up is not None else FLAGS.rule == "match" and name != "vanilla"
    where: dict[str, Any] = {"capacity": capacity, "mesh": mesh}
    ways = {"rule": FLAGS.rule, "share_noise": FLAGS.share_noise, "give_up": give_up}
    method = Generator(target, model.params, drafter, drafter_params, **where, **ways)
    plain = Generator(target, model.params, make_vanilla(), **where) if FLAGS.compare else None
    options = {**law, "max_new_tokens": FLAGS.max_new_tokens}
    with launch.status("Compiling"):
        for generator in filter(None, (method, plain)):
            generator.warm_up(prompts[:1], stop_ids=model.stop_ids, **options)

    answers: list[report.Answer] = []
    coming = runner.ask(model, method, plain, questions, prompts, show=show, **options)
    for index, question in enumerate(questions, start=1):
        if len(questions) > 1:
            show(f"[{index}/{len(questions)}] {' '.join(question.turns[0].split())[:100]}\n\n")
        answers.append(next(coming))
        show("\n\n")
    settings_shown = {
        "target": FLAGS.target,
        "method": name,
        "temperature": FLAGS.temperature,
        "seed": FLAGS.seed,
        **ways,
        "dtype": settings.dtype,
        "device": jax.devices()[0].device_kind,
        "mesh": FLAGS.mesh,
    }
    margin = runner.margin_at_difference(method, prompts, answers, **law)
    record = report.summarise(
        settings_shown, report.tree_size(drafter, methods.children(name, settings)), answers, margin
    )
    show("\n".join(report.closing_lines(record)) + "\n")
    if output:
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def show(text: str) -> None:
    """Print a piece of text at once."""
    print(text, end="", flush=True)


def asked_questions() -> list[Question]:
    """The questions of --prompt or --prompts_file."""
    if (FLAGS.prompt is None) == (FLAGS.prompts_file is None):
        raise ValueError(f"give either --prompt or --prompts_file, got {FLAGS.prompt!r} and {FLAGS.prompts_file!r}")
    if FLAGS.prompts_file is not None:
        return read_questions(FLAGS.prompts_file, FLAGS.num_prompts)
    if FLAGS.num_prompts not in (None, 1):
        raise ValueError(f"--num_prompts={FLAGS.num_prompts} needs --prompts_file; --prompt is 1 prompt")
    return [from_prompt(FLAGS.prompt)]


if __name__ == "__main__":
    launch.run(main, FLAGS)
