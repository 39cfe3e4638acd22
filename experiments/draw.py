"""Draw real rounds: drafted tokens, the drafter's confidence, what the target accepted, and where the time goes.

    python -m experiments.draw --method=eagle3 --nodes=16 --depth=5 --top_k=4 --prompt="..." --output=DIRECTORY

--what=tree         the tree of each of --rounds rounds from --first on: round-1-light.png, ...
--what=strip        the same rounds one below the other, under the text that they write: rounds-1-4-light.png, ...
--what=reliability  the drafter's confidence against acceptance, over all rounds of the answers to the first
                    --num_prompts questions of --prompts_file, at each of --temperatures: reliability-light.png, ...
--what=times        milliseconds of the parts of a round of each of --drafts: times-light.png, ...

Each picture is written for light and dark pages, as PNG and SVG.
"""

import pathlib
from typing import Any

from absl import flags

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.drafters import Drafter, make_vanilla
from eagle_jax.evaluation.calibration import expected_calibration_error, measure_calibration
from eagle_jax.evaluation.rounds import Round, rounds
from eagle_jax.evaluation.runner import prompt_ids
from eagle_jax.evaluation.slot_lists import make_slot_lists
from eagle_jax.evaluation.tasks import from_prompt, read_questions
from eagle_jax.evaluation.time_split import time_split
from eagle_jax.figures.calibration_diagram import reliability_diagram
from eagle_jax.figures.layout import with_dropped
from eagle_jax.figures.theme import THEMES, save
from eagle_jax.figures.time_charts import round_split
from eagle_jax.figures.timeline import draw_strip
from eagle_jax.figures.tree_picture import draw_tree
from eagle_jax.files import check_directory, local
from eagle_jax.generator import ALL_ROUNDS, Generator
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import make_sampling
from experiments.cli import draft_weights, launch, methods

FLAGS = flags.FlagValues()
flags.DEFINE_string("target", "smollm2-135m", "as for experiments.generate", flag_values=FLAGS)
methods.define_flags(FLAGS)
FLAGS.set_default("method", "eagle3")
flags.DEFINE_string("prompt", None, "tree, strip, times: the user's message", flag_values=FLAGS)
flags.DEFINE_integer("first", 1, "tree, strip: the round to begin at, counted from 1", flag_values=FLAGS)
flags.DEFINE_integer("rounds", None, "tree, strip: rounds to draw; default 1 and 4", flag_values=FLAGS)
flags.DEFINE_integer(
    "dropped",
    0,
    "tree, where it is dynamic: also draw, faded, this many of the best nodes that the drafter dropped",
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "slots",
    0,
    "tree of one_pass: above it, so many of the best tokens of each slot of the head, with the slot's own confidence",
    flag_values=FLAGS,
)
flags.DEFINE_bool("log_probabilities", False, "tree: write the log of each confidence below it", flag_values=FLAGS)
flags.DEFINE_string("prompts_file", None, "reliability: questions, JSON lines", flag_values=FLAGS)
flags.DEFINE_integer("num_prompts", 8, "reliability: questions from the start of the file", flag_values=FLAGS)
flags.DEFINE_list("temperatures", ["0", "1"], "reliability: temperatures of the answers", flag_values=FLAGS)
flags.DEFINE_list(
    "drafts", ["eagle3:4/1/2", "eagle3:16/5/4", "eagle3:60/7/10"],
    "times: METHOD or METHOD:NODES/DEPTH/TOP_K", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer("repeats", 5, "times: how often each part is timed", flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 128, "longest answer", flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.0, "0 is greedy", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "seed of sampling", flag_values=FLAGS)
flags.DEFINE_bool("share_noise", True, "let the drafter see the noise that the target samples with", flag_values=FLAGS)
flags.DEFINE_string("output", None, "directory to write; files of the same names are replaced", flag_values=FLAGS)


def main() -> None:
    """Draw what the flags select."""
    check_flags()
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, FLAGS.dtype, packed=True, progress=progress)
    PICTURES[FLAGS.what](model)


def check_flags() -> None:
    """Check values before anything is loaded."""
    launch.need(FLAGS, "prompts_file" if FLAGS.what == "reliability" else "prompt", "output")
    check_directory(FLAGS.output)
    for flag in ("first", "rounds", "num_prompts", "repeats"):
        given = getattr(FLAGS, flag)
        if given is not None and given < 1:
            raise ValueError(f"--{flag} must be at least 1, got {given}")
    for flag in ("dropped", "slots"):
        if getattr(FLAGS, flag) < 0:
            raise ValueError(f"--{flag} must be at least 0, got {getattr(FLAGS, flag)}")
    if FLAGS.slots and FLAGS.method not in methods.OF_BLOCKS:
        raise ValueError(f"--method={FLAGS.method} has no slots, as {' and '.join(methods.OF_BLOCKS)} has")
    if FLAGS.slots and FLAGS.dropped:
        raise ValueError(f"--slots={FLAGS.slots} and --dropped={FLAGS.dropped} are two pictures: give one of them")
    if FLAGS.dropped and FLAGS.method not in methods.DYNAMIC:
        *others, last = methods.DYNAMIC
        raise ValueError(f"--method={FLAGS.method} drops no nodes, as {', '.join(others)} and {last} do")
    temperatures = [float(text) for text in FLAGS.temperatures]
    make_sampling(len(temperatures), temperature=temperatures)
    make_sampling(1, **sampling_options())
    methods.settings_from_flags(FLAGS)


def sampling_options() -> dict[str, Any]:
    """Keywords of `make_sampling` from the flags."""
    return {flag: getattr(FLAGS, flag) for flag in ("temperature", "seed", "max_new_tokens")}


def output() -> pathlib.Path:
    """The output directory, created if missing."""
    folder = local(FLAGS.output)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def print_paths(picture: str) -> None:
    """Print the files of a picture."""
    print(f"wrote {output() / picture}-{{{','.join(THEMES)}}}.{{png,svg}}", flush=True)


def make_generator(model: LoadedModel) -> Generator:
    """Generator of the method that the flags select."""
    name, settings = methods.settings_from_flags(FLAGS)
    drafter = methods.make_method(name, model, settings)
    target = make_target(model.config)
    return Generator(target, model.params, *drafter, share_noise=FLAGS.share_noise)


def make_wider(model: LoadedModel, drafter: Drafter) -> Drafter | None:
    """What drafts beside: the same method with --dropped nodes more, or the lists of --slots."""
    name, settings = methods.settings_from_flags(FLAGS)
    if FLAGS.slots:
        head, _ = draft_weights.load_block_head(methods.HEAD_METHODS[name].kind, model, settings)
        level = {size: value for size, value in settings.sizes if size == "noise_level"}
        return make_slot_lists(head, drafter.max_depth - 1, FLAGS.slots, **level)
    if not FLAGS.dropped:
        return None
    sizes: dict[str, Any] = {
        "nodes": drafter.nodes + FLAGS.dropped,
        "depth": drafter.max_depth - 1,
        "top_k": drafter.top_k,
    }
    return methods.make_method(name, model, settings._replace(**sizes))[0]


def selected_rounds(model: LoadedModel, default: int) -> list[Round]:
    """The rounds from --first on, --rounds of them or `default`."""
    generator = make_generator(model)
    wider = make_wider(model, generator.drafter)
    last = FLAGS.first + (FLAGS.rounds or default) - 1
    with launch.status("Compiling and decoding"):
        prompt = prompt_ids(model, from_prompt(FLAGS.prompt))
        answer = rounds(generator, prompt, last, wider=wider, stop_ids=model.stop_ids, **sampling_options())
    if len(answer) < last:
        raise ValueError(f"round {last} was requested, the answer has {len(answer)}")
    return answer[FLAGS.first - 1 :]


def draw_trees(model: LoadedModel) -> None:
    """A picture a round."""
    decode = model.tokenizer.decode
    for number, one in enumerate(selected_rounds(model, 1), start=FLAGS.first):
        tree, lists = one.tree, one.wider if FLAGS.slots else None
        if FLAGS.dropped and one.wider:
            tree = with_dropped(tree, one.wider)
        drawn: dict[str, Any] = {"log_probabilities": FLAGS.log_probabilities, "lists": lists}
        for name, theme in THEMES.items():
            figure = draw_tree(tree, one.verdict, decode, theme=theme, **drawn)
            save(figure, output(), f"round-{number}-{name}")
        print(f"round {number}: {decode(one.text[-12:])!r} -> {decode(one.written)!r}")
        print_paths(f"round-{number}")


def draw_rounds(model: LoadedModel) -> None:
    """Some rounds in one picture."""
    drawn = selected_rounds(model, 4)
    for name, theme in THEMES.items():
        figure = draw_strip(drawn, model.tokenizer.decode, theme=theme)
        save(figure, output(), f"rounds-{FLAGS.first}-{FLAGS.first + len(drawn) - 1}-{name}")
    print(f"{len(drawn)} rounds: {model.tokenizer.decode([token for one in drawn for token in one.written])!r}")
    print_paths(f"rounds-{FLAGS.first}-{FLAGS.first + len(drawn) - 1}")


def draw_reliability(model: LoadedModel) -> None:
    """Confidence against acceptance."""
    generator, options = make_generator(model), {**sampling_options(), "stop_ids": model.stop_ids}
    questions = read_questions(FLAGS.prompts_file, FLAGS.num_prompts)
    series: dict[str, list[Round]] = {}
    for temperature in map(float, FLAGS.temperatures):
        name = f"T = {temperature:g}"
        with launch.status(f"Decoding at {name}") as progress:
            decoded = series.setdefault(name, [])
            for number, question in enumerate(questions):
                options |= {"temperature": temperature, "sequence": [number]}
                decoded += rounds(generator, prompt_ids(model, question), ALL_ROUNDS, **options)
                progress(number + 1, len(questions))
        for paths, what in ((False, "tokens"), (True, "paths")):
            judged = measure_calibration(decoded, paths=paths)
            print(
                f"{name}: {len(decoded)} rounds, {len(judged.accepted)} {what}, mean confidence"
                f" {judged.confidence.mean():.3f}, accepted {judged.accepted.mean():.3f},"
                f" expected error {expected_calibration_error(judged):.3f}",
                flush=True,
            )
    for name, theme in THEMES.items():
        save(reliability_diagram(series, theme), output(), f"reliability-{name}")
    print_paths("reliability")


def draw_times(model: LoadedModel) -> None:
    """Parts of rounds."""
    prompt, target = prompt_ids(model, from_prompt(FLAGS.prompt)), make_target(model.config)
    options: dict[str, Any] = {
        "new_tokens": FLAGS.max_new_tokens,
        "repeats": FLAGS.repeats,
        "temperature": FLAGS.temperature,
    }
    drafts: dict[str, Any] = {}
    for text in FLAGS.drafts:
        label, name, settings = methods.read_draft(text, FLAGS)
        drafts[label] = methods.make_method(name, model, settings)
    costs = {}
    for label, drafter in drafts.items():
        with launch.status(f"Timing {label}"):
            costs[label] = time_split(Generator(target, model.params, *drafter), prompt, **options)
        print(f"{label}: " + ", ".join(f"{part} {cost:.1f} ms" for part, cost in costs[label].items()), flush=True)
    with launch.status("Timing plain decoding"):
        plain = Generator(target, model.params, make_vanilla())
        plain.warm_up([prompt], **sampling_options())
        written = plain.generate([prompt], **sampling_options())
    for name, theme in THEMES.items():
        save(round_split(costs, 1e3 * written.decode_seconds / written.rounds[0], theme), output(), f"times-{name}")
    print_paths("times")


PICTURES = {"tree": draw_trees, "strip": draw_rounds, "reliability": draw_reliability, "times": draw_times}
flags.DEFINE_enum("what", "tree", list(PICTURES), "what to draw", flag_values=FLAGS)


if __name__ == "__main__":
    launch.run(main, FLAGS)
