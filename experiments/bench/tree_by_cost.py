"""What choosing the size of the tree every round would bring over the best fixed size, for given costs.

    python -m experiments.bench.tree_by_cost --drafts=eagle3:32/5/8 --prompts_file=mt_bench/question.jsonl \
        --ladder=1,2,4,8,16,32 --pass_ms=17.5,17.4,20,21.5,30,62 --draft_ms=9.5

Nothing is timed: the trees at every position of plain decoding's answers are recorded once, and rounds are played along
them (`eagle_jax.evaluation.size_by_cost`). Every second prompt serves to calibrate confidences and to select the fixed
size; the others are reported. `pass_ms` are the costs of a pass of the target over so many nodes, `draft_ms` of all
else in a round, which all sizes share. The bound knows which tokens will be accepted.
"""

from collections.abc import Sequence

from absl import flags

from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.decode import Models
from eagle_jax.evaluation import runner
from eagle_jax.evaluation.recording import write_recorded
from eagle_jax.evaluation.size_by_cost import (
    Costs,
    Drafts,
    Played,
    calibrate,
    drafts_along,
    expected_tokens,
    play_by_cost,
    play_fixed,
)
from eagle_jax.evaluation.summary import markdown_table
from eagle_jax.evaluation.tasks import read_questions
from eagle_jax.generator import cache_slots
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import SamplingOptions
from experiments.cli import launch, methods

FLAGS = flags.FlagValues()
flags.DEFINE_string("target", "smollm2-135m", "as for experiments.generate", flag_values=FLAGS)
methods.define_flags(FLAGS, method=False)
flags.DEFINE_string("drafts", "eagle3:32/5/8", "METHOD or METHOD:NODES/DEPTH/TOP_K", flag_values=FLAGS)
flags.DEFINE_list("ladder", ["1", "2", "4", "8", "16", "32"], "sizes of trees, the root included", flag_values=FLAGS)
flags.DEFINE_list("pass_ms", None, "cost of a pass over so many nodes, by size", flag_values=FLAGS)
flags.DEFINE_float("draft_ms", None, "cost of a round besides its pass", lower_bound=0.0, flag_values=FLAGS)
flags.DEFINE_string("prompts_file", None, "questions, as for experiments.generate", flag_values=FLAGS)
flags.DEFINE_integer("num_prompts", 8, "questions, all of them one batch", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_integer("max_new_tokens", 64, "longest answer", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_float("temperature", 0.0, "0 is greedy", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "seed of sampling", flag_values=FLAGS)


def main() -> None:
    """Record, play, print."""
    launch.need(FLAGS, "prompts_file")
    sizes, costs = ladder()
    label, drafts = record(max(sizes))
    if not any(len(one.depths) for one in drafts[1::2]):
        raise ValueError("the answers that are reported have one token each: there is nothing to draft")
    policies = compare(drafts, sizes, costs)
    fixed = policies["best fixed size"]
    print(f"{label}, {FLAGS.target}, T = {FLAGS.temperature:g}, {len(drafts)} prompts, half of them reported\n")
    header = ["policy", "tau", "ms a token", "over fixed", *(f"{size} nodes" for size in sizes)]
    rows: list[list[object]] = []
    for name, one in policies.items():
        shares = [f"{share:.0%}" for share in one.rounds / one.rounds.sum()]
        rows.append([name, one.tau, 1 / one.rate, one.rate / fixed.rate, *shares])
    print(markdown_table(header, rows))


def ladder() -> tuple[tuple[int, ...], Costs]:
    """Sizes and costs from the flags.

    Raises:
      ValueError: not as many costs as sizes, something else than numbers, or a size below 1.
    """
    if FLAGS.pass_ms is None or FLAGS.draft_ms is None:
        raise ValueError(f"give --pass_ms and --draft_ms, got {FLAGS.pass_ms} and {FLAGS.draft_ms}")
    sizes, passes = tuple(map(int, FLAGS.ladder)), tuple(map(float, FLAGS.pass_ms))
    if len(sizes) != len(passes):
        raise ValueError(f"--pass_ms is one cost for each size, got {len(passes)} for {len(sizes)} sizes")
    if min(sizes) < 1:
        raise ValueError(f"--ladder must be at least 1, got {min(sizes)}")
    return sizes, Costs(passes, FLAGS.draft_ms)


def record(largest: int) -> tuple[str, list[Drafts]]:
    """The name of the draft, and the trees along plain decoding's answers."""
    label, name, settings = methods.read_draft(FLAGS.drafts, FLAGS)
    questions = read_questions(FLAGS.prompts_file, FLAGS.num_prompts)
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, FLAGS.dtype, packed=True, progress=progress)
    drafter, params = methods.make_method(name, model, settings)
    if drafter.nodes < largest:
        raise ValueError(f"--ladder go up to {largest}, but trees of {label} have {drafter.nodes} nodes")
    target = make_target(model.config)
    prompts = [runner.prompt_ids(model, question) for question in questions]
    options: SamplingOptions = {"temperature": FLAGS.temperature, "seed": FLAGS.seed, "stop_ids": model.stop_ids}
    options |= {"max_new_tokens": FLAGS.max_new_tokens}
    longest = max(map(len, prompts)) + FLAGS.max_new_tokens
    capacity = cache_slots(longest, drafter.max_depth, model.config.max_positions)
    with launch.status("Writing answers and drafting along them"):
        answers, recording = write_recorded(target, model.params, prompts, capacity=capacity, **options)
        models = Models(target, drafter, model.params, params)
        return label, drafts_along(models, prompts, answers, recording=recording, **options)


def compare(drafts: Sequence[Drafts], sizes: tuple[int, ...], costs: Costs) -> dict[str, Played]:
    """Policies on every second answer; what they need to know is taken from the others."""
    known, judged = drafts[::2], drafts[1::2]
    rates = [one.rate for one in play_fixed(known, sizes, costs)]
    written = [1.0 + one.accepted_by_size(sizes) for one in judged]
    own, fitted = ([expected_tokens(one, sizes, table) for one in judged] for table in (None, calibrate(known)))
    return {
        "best fixed size": play_fixed(judged, sizes, costs)[rates.index(max(rates))],
        "by cost, the drafter's confidence": play_by_cost(judged, own, sizes, costs),
        "by cost, calibrated": play_by_cost(judged, fitted, sizes, costs),
        "bound": play_by_cost(judged, written, sizes, costs),
    }


if __name__ == "__main__":
    launch.run(main, FLAGS)
