"""Train a draft head or a draft model for a target, in one go or in pieces.

    python -m experiments.train --config=configs/train/eagle3_smollm2.py --data=answers.jsonl --run=runs/eagle3

The same command goes on where the run stopped: after --time_limit, SIGTERM, Ctrl-C or a crash. With --features the
frozen target reads the text once and its features are stored, up to --features_budget; without, it reads along in every
step. With --prompts_file the real tau is measured on them as training goes on, and the best weights are stored too.

Several processes train one run on a --mesh of all their devices: start the same command in each, with --distributed.
"""

import contextlib
import dataclasses
import time
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags
from tqdm import tqdm

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.evaluation.runner import prompt_ids
from eagle_jax.evaluation.tasks import read_questions
from eagle_jax.files import check_directory
from eagle_jax.models.transformer import make_target
from eagle_jax.processes import broadcast_text, is_primary
from eagle_jax.provenance import json_digest
from eagle_jax.training import step
from eagle_jax.training.conversations import text_key
from eagle_jax.training.data import make_iterator
from eagle_jax.training.feature_cache import FeatureCache
from eagle_jax.training.features import fingerprint
from eagle_jax.training.loop import Evaluate, LoopConfig, Outcome, train
from eagle_jax.training.row_features import RowFeatures
from eagle_jax.training.run import Run, check_run
from eagle_jax.types import Target
from experiments.cli import benchmarks, launch
from experiments.training_setup import (
    TrainingSetup,
    TrainingText,
    answers_of,
    coverage,
    heldout_rows,
    make_evaluate,
    make_training_setup,
    read_training_text,
)

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
    "config",
    None,
    "what to train: a file of configs/train; its fields are flags, as in --config.epochs=2",
    flag_values=FLAGS,
)
flags.DEFINE_list("data", None, "conversations, JSON lines: one or more files, separated by commas", flag_values=FLAGS)
flags.DEFINE_string("run", None, "directory of the run: checkpoints and metrics", flag_values=FLAGS)
flags.DEFINE_string(
    "features", None, "directory for the target's features; left out, every step computes its own", flag_values=FLAGS
)
flags.DEFINE_float(
    "features_budget",
    None,
    "GB that --features may take; what does not fit is computed whenever it is read. Left out: all must fit",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "prompts_file",
    None,
    "questions or conversations for the real tau, none of them trained on; left out, none is measured",
    flag_values=FLAGS,
)
flags.DEFINE_string(
    "export", None, "directory for the finished weights: a head as engines load it, or a model", flag_values=FLAGS
)
flags.DEFINE_float("time_limit", None, "seconds after which to save and stop", flag_values=FLAGS)
flags.DEFINE_bool("skip_broken", False, "leave broken lines of --data out instead of stopping", flag_values=FLAGS)
benchmarks.define_flag(FLAGS)
flags.DEFINE_string(
    "mesh", None, "DATAxMODEL: 4x2 shards rows over 4 groups of 2 devices that share a target", flag_values=FLAGS
)
flags.DEFINE_bool("split_head", False, "split the draft head over the devices as the target is", flag_values=FLAGS)
flags.DEFINE_string("distributed", None, launch.DISTRIBUTED, flag_values=FLAGS)
flags.DEFINE_bool("quiet", False, "no progress bars", flag_values=FLAGS)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run as it was requested, checked as far as that costs little."""

    config: Any
    model: LoadedModel
    target: Target
    texts: TrainingText
    setup: TrainingSetup
    optimizer: step.OptimizerConfig
    loop: LoopConfig
    evaluate: Evaluate | None
    features: FeatureCache | RowFeatures | None
    identity: dict[str, Any]  # of the run: everything that decides its numbers


def main() -> None:
    """Train as the flags say."""
    started = time.monotonic()
    check_flags()
    launch.join(FLAGS.distributed)
    mesh = launch.parse_mesh(FLAGS.mesh, batch=FLAGS.config.data.batch)
    plan = make_plan(FLAGS.config, mesh)
    check_run(FLAGS.run, plan.identity, FLAGS.export)
    features = plan.features
    if isinstance(features, FeatureCache) and not features.complete and not fill_cache(plan, features, started):
        launch.say("stopped while computing features; the same command goes on")
        return
    describe(plan)
    rows = features if isinstance(features, RowFeatures) else contextlib.nullcontext()
    with Run(FLAGS.run, plan.identity) as run, rows:
        outcome = work(run, plan, started)
        report(outcome, plan.loop.steps)
        if FLAGS.export and outcome.finished:
            export(run, outcome, plan.setup)


def check_flags() -> None:
    """Refuse bad values before anything is loaded."""
    launch.need(FLAGS, "config", "data", "run")
    for place in filter(None, (FLAGS.run, FLAGS.features, FLAGS.export)):
        check_directory(place)
    if FLAGS.features_budget is not None:
        if not FLAGS.features:
            raise ValueError("--features_budget needs --features, the directory that it limits")
        if FLAGS.features_budget < 0:
            raise ValueError(f"--features_budget must be at least 0, got {FLAGS.features_budget:g}")
        if FLAGS.mesh or FLAGS.distributed:
            raise ValueError("--features_budget computes rows on one device: leave --mesh and --distributed out")
    if FLAGS.split_head and FLAGS.mesh is None:
        raise ValueError("--split_head needs --mesh, the devices to split over")
    if FLAGS.config.dtype == "float16":
        raise ValueError("training in float16 needs a scaled loss, which is not done here: give bfloat16 or float32")


def make_plan(config: Any, mesh: Mesh | None) -> Plan:
    """Load the target, read the text, and build everything that the config names.

    Raises:
      ValueError: whatever of it cannot be.
    """
    with launch.status(f"Loading {config.target}") as progress:
        model = load_target(config.target, config.dtype, mesh=mesh, progress=progress)
    target = make_target(model.config)
    texts = read_training_text(
        model, config, FLAGS.data, skip_broken=FLAGS.skip_broken, benchmarks=benchmarks.from_flag(FLAGS)
    )
    setup = make_training_setup(target, model, texts.training, config, split_head=FLAGS.split_head)
    steps = config.steps or round(config.epochs * len(texts.training.rows) / rows_of(config))
    prompts = evaluation_prompts(model, texts, config)
    reading = (everywhere(config), model.config.tap_layers)
    text = fingerprint(texts.text.examples, model.name, model.config, model.params, *reading)
    return Plan(
        config=config,
        model=model,
        target=target,
        texts=texts,
        setup=setup,
        optimizer=step.OptimizerConfig(steps=steps, **config.optimizer),
        loop=LoopConfig(steps=steps, **config.loop),
        evaluate=make_evaluate(target, model, setup, prompts, config.evaluation.max_new_tokens) if prompts else None,
        features=plan_features(model, target, texts, config, text),
        identity={
            "config": config.to_dict(),
            "text_and_target": text,
            "split": "by prompt",  # runs from before held out documents, and are refused
            "features": stored_as(config),
            "evaluation_prompts": json_digest(prompts) if prompts else None,
            **setup.identity,
        },
    )


def work(run: Run, plan: Plan, started: float) -> Outcome:
    """The training itself."""
    config, setup = plan.config, plan.setup
    stored: dict[str, Any] = {}
    if isinstance(plan.features, FeatureCache):
        stored["lookup"] = plan.features.lookup
    elif plan.features is not None:
        stored["of_row"] = plan.features
    optimizer, schedule = step.make_optimizer(plan.optimizer)
    options = {"dtype": config.dtype, "everywhere": everywhere(config)}
    return train(
        run,
        step.initial_state(setup.first, optimizer, setup.recipe.num_steps),
        make_iterator(plan.texts.training, rows_of(config), seed=config.seed, **stored),
        step.make_train_step(
            setup.recipe, plan.target, optimizer, accumulate=config.data.accumulate, seed=config.seed, **options
        ),
        step.Frozen(plan.model.params, setup.vocabulary),
        plan.loop,
        learning_rate=schedule,
        heldout=heldout_rows(plan.texts, config.data.batch, **stored),
        measure=step.make_measure(setup.recipe, plan.target, **options),
        evaluate=plan.evaluate,
        time_limit=FLAGS.time_limit,
        started=started,
        mesh=plan.model.mesh,
        quiet=FLAGS.quiet,
    )


def rows_of(config: Any) -> int:
    """Packed rows that a step reads."""
    return config.data.batch * config.data.accumulate


def everywhere(config: Any) -> bool:
    """Whether the target's choice is needed after every position."""
    return "recipe" in config and config.recipe.get("alignment", "target") == "official"


def evaluation_prompts(model: LoadedModel, texts: TrainingText, config: Any) -> list[list[int]]:
    """Token ids of --prompts_file; none without the flag.

    Raises:
      ValueError: questions that are trained on: the best weights would be those that remember them.
    """
    if not FLAGS.prompts_file:
        return []
    questions = read_questions(FLAGS.prompts_file, config.evaluation.num_prompts)
    trained = {key for example in answers_of(texts.training) for key in example.prompt_keys}
    known = [text for text in (question.turns[0] for question in questions) if message_key(text) in trained]
    if known:
        raise ValueError(
            f"{len(known)} of {len(questions)} questions of {FLAGS.prompts_file} are prompts of --data, the first:"
            f" {known[0][:60]!r}; give prompts that are not trained on"
        )
    return [prompt_ids(model, question) for question in questions]


def message_key(text: str) -> str:
    """The key of a prompt that is nothing but this message."""
    return text_key([{"role": "user", "content": text}])


def stored_as(config: Any) -> str | None:
    """How features are rounded and read; the budget itself changes no number."""
    if not FLAGS.features:
        return None
    return config.features.dtype if FLAGS.features_budget is None else f"{config.features.dtype}, by row"


def plan_features(
    model: LoadedModel, target: Target, texts: TrainingText, config: Any, identity: str
) -> FeatureCache | RowFeatures | None:
    """The features on disk, as far as they are there; None where they are computed in every step.

    Raises:
      ValueError: features of something else, or several processes and features that are not there yet.
    """
    if not FLAGS.features:
        return None
    if FLAGS.features_budget is not None:
        heldout = texts.heldout.rows if texts.heldout else []
        return RowFeatures(
            FLAGS.features,
            [*heldout, *texts.training.rows],
            config.data.length,
            identity,
            target,
            model.params,
            budget=1e9 * FLAGS.features_budget,
            dtype=config.features.dtype,
            everywhere=everywhere(config),
        )
    cache = FeatureCache(FLAGS.features, texts.text.examples, identity, config.features.dtype)
    if not cache.complete and jax.process_count() > 1:
        raise ValueError(f"{FLAGS.features} is filled by one process: run without --distributed first, or without it")
    return cache


def fill_cache(plan: Plan, cache: FeatureCache, started: float) -> bool:
    """Compute the features that are missing; whether all are there now, before time ran out."""
    with tqdm(desc="features", unit="pass", disable=FLAGS.quiet, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            if not done:
                with tqdm.external_write_mode():
                    launch.say(f"features take {cache.num_bytes / 2**30:.1f} GiB in {cache.directory}")
            bar.total, bar.n = total, done
            bar.refresh()

        return cache.fill(
            plan.target,
            plan.model.params,
            length=plan.config.features.length,
            batch=plan.config.features.batch,
            everywhere=everywhere(plan.config),
            mesh=plan.model.mesh,
            stop=lambda: FLAGS.time_limit is not None and time.monotonic() - started > FLAGS.time_limit,
            progress=progress,
        )


def describe(plan: Plan) -> None:
    """Say what is about to be trained on what."""
    packing, setup = plan.texts.training, plan.setup
    size = sum(leaf.size for leaf in jax.tree.leaves(setup.first["weights"]))
    tokens, slots = packing.fill
    launch.say(
        f"{setup.name}: {size / 1e6:.2f} million weights; draft vocabulary:"
        f" {coverage(setup, packing):.1%} of the answers\n"
        f"data: {sum(map(len, packing.rows))} conversations, {packing.num_supervised} supervised tokens in"
        f" {len(packing.rows)} rows ({tokens:.0%} of tokens, {slots:.0%} of slots used),"
        f" {plan.texts.text.num_cut} cut, {plan.texts.text.num_dropped} dropped\n"
        f"steps: {plan.loop.steps}"
    )
    if isinstance(plan.features, RowFeatures):
        features = plan.features
        launch.say(
            f"features of {features.num_stored} of {features.num_rows} rows are stored in {features.directory},"
            f" {features.num_stored * features.row_bytes / 1e9:.1f} GB; the others are computed whenever they are read"
        )


def export(run: Run, outcome: Outcome, setup: TrainingSetup) -> None:
    """Write the weights with the best real tau, or the last ones where none was measured; nothing a second time."""
    done, trained = run.best(outcome.state.trained) or (int(outcome.state.step), outcome.state.trained)
    # One process looks for all: the files need not be there for the others.
    if broadcast_text("there" if is_primary() and run.exported(FLAGS.export) == done else ""):
        launch.say(f"the weights of step {done} are in {FLAGS.export} already")
        return
    setup.export(FLAGS.export, trained)
    run.keep_export(FLAGS.export, done)
    launch.say(f"wrote the weights of step {done} to {FLAGS.export}")


def report(outcome: Outcome, steps: int) -> None:
    """One closing line."""
    done = int(outcome.state.step)
    if outcome.finished:
        launch.say(f"finished: {done} steps")
    else:
        launch.say(f"stopped at step {done} of {steps} ({outcome.reason}); the same command goes on")


if __name__ == "__main__":
    launch.run(main, FLAGS)
