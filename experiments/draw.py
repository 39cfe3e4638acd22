"""Draw the draft trees of real rounds: what was guessed, how sure the drafter was, what the target kept.

    python -m experiments.draw --method=eagle3 --nodes=16 --depth=5 --top_k=4 --prompt="..." --output=DIRECTORY

Writes round-1-light.png, round-1-light.svg, round-1-dark.png and round-1-dark.svg; --first and --rounds choose others.
"""

import pathlib

from absl import flags

from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.evaluation.draw import draw_tree
from eagle_jax.evaluation.rounds import rounds
from eagle_jax.evaluation.runner import prompt_ids
from eagle_jax.evaluation.tasks import from_prompt
from eagle_jax.evaluation.themes import THEMES
from eagle_jax.generate import Generator
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import make_sampling
from experiments import launch, methods

FLAGS = flags.FlagValues()
flags.DEFINE_string("target", "smollm2-135m", "as for experiments.generate", flag_values=FLAGS)
methods.define_flags(FLAGS)
FLAGS.set_default("method", "eagle3")
flags.DEFINE_string("prompt", None, "what to ask", flag_values=FLAGS)
flags.DEFINE_integer("first", 1, "the round to begin at, counted from 1", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 1, "rounds to draw, a figure each", flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 128, "longest answer", flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.0, "0 is greedy", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "of sampling", flag_values=FLAGS)
flags.DEFINE_bool("share_noise", True, "let the drafter see the noise that the target samples with", flag_values=FLAGS)
flags.DEFINE_string("output", None, "directory to write; files of the same names are replaced", flag_values=FLAGS)


def main() -> None:
    """Draw as the flags say."""
    for flag in ("prompt", "output"):
        if not getattr(FLAGS, flag):
            raise ValueError(f"give --{flag}")
    for flag in ("first", "rounds"):
        if getattr(FLAGS, flag) < 1:
            raise ValueError(f"--{flag} must be at least 1, got {getattr(FLAGS, flag)}")
    law = {flag: getattr(FLAGS, flag) for flag in ("temperature", "seed", "max_new_tokens")}
    make_sampling(1, **law)
    name, settings = methods.settings_from_flags(FLAGS)
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, settings.dtype, progress=progress)
    drafter = methods.make_method(name, model, settings)
    target = make_target(model.config, settings.dtype)
    generator = Generator(target, model.params, *drafter, share_noise=FLAGS.share_noise)
    with launch.status("Decoding"):
        prompt = prompt_ids(model, from_prompt(FLAGS.prompt))
        last = FLAGS.first + FLAGS.rounds - 1
        found = rounds(generator, prompt, last, stop_ids=model.stop_ids, **law)
    if len(found) < last:
        raise ValueError(f"round {last} was asked for, the answer has {len(found)}")
    output = pathlib.Path(FLAGS.output)
    output.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(found[FLAGS.first - 1 :], start=FLAGS.first):
        for theme_name, theme in THEMES.items():
            figure = draw_tree(one.tree, one.verdict, model.tokenizer.decode, theme=theme)
            for ending in ("png", "svg"):
                figure.savefig(output / f"round-{number}-{theme_name}.{ending}", dpi=150)
        print(f"round {number}: {model.tokenizer.decode(one.text[-12:])!r} -> {model.tokenizer.decode(one.written)!r}")


if __name__ == "__main__":
    launch.run(main, FLAGS)
