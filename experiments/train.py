"""Train a draft head or a draft model for a target, in one go or in pieces.

    python -m experiments.train --config=configs/train/eagle3_smollm2.py --data=answers.jsonl --run=runs/eagle3

The same command goes on where the run stopped: after --time_limit, SIGTERM, Ctrl-C or a crash. With --features the
frozen target reads the text once and its features are kept on disk; without, it reads along in every step. With
--prompts_file the real tau is measured on them as training goes on, and the best weights are kept.

Several processes train one run on a --mesh of all their devices: start the same command in each, with --distributed.
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags
from tqdm import tqdm

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.evaluation.runner import prompt_ids
from eagle_jax.evaluation.tasks import read_questions
from eagle_jax.generate import Generator
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.models.transformer import make_target
from eagle_jax.training import step
from eagle_jax.training.conversations import read_corpus
from eagle_jax.training.data import Packing, Trimmed, assemble, make_iterator, pack, trim
from eagle_jax.training.features import FeatureCache, fingerprint
from eagle_jax.training.loop import Evaluate, LoopConfig, Outcome, train
from eagle_jax.training.run import Run
from eagle_jax.types import Target
from experiments import launch
from experiments.subjects import Subject, coverage, make_subject

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
flags.DEFINE_string("prompts_file", None, "questions for the real tau; left out, none is measured", flag_values=FLAGS)
flags.DEFINE_string(
    "export", None, "directory for the finished weights: a head as engines load it, or a model", flag_values=FLAGS
)
flags.DEFINE_float("time_limit", None, "seconds after which to save and stop", flag_values=FLAGS)
flags.DEFINE_bool("skip_broken", False, "leave broken lines of --data out instead of stopping", flag_values=FLAGS)
flags.DEFINE_string(
    "mesh", None, "DATAxMODEL: 4x2 deals out rows to 4 groups of 2 devices that share a target", flag_values=FLAGS
)
flags.DEFINE_string("distributed", None, launch.DISTRIBUTED, flag_values=FLAGS)
flags.DEFINE_bool("quiet", False, "no progress bars", flag_values=FLAGS)


@dataclasses.dataclass(frozen=True)
class Material:
    """Text ready for training."""

    text: Trimmed
    training: Packing
    heldout: Packing | None


def main() -> None:
    """Train as the flags say."""
    started = time.monotonic()
    for name in ("config", "data", "run"):
        if not getattr(FLAGS, name):
            raise ValueError(f"give --{name}")
    config = FLAGS.config
    launch.join(FLAGS.distributed)
    mesh = launch.parse_mesh(FLAGS.mesh, batch=config.data.batch)
    with launch.status(f"Loading {config.target}") as progress:
        model = load_target(config.target, config.dtype, mesh=mesh, progress=progress)
    target = make_target(model.config, config.dtype)
    material = read_material(model, config)
    asked = (everywhere(config), model.config.tap_layers)
    identity = fingerprint(material.text.examples, model.name, model.params, *asked)
    cache = fill_cache(target, model, material, config, identity, started, mesh)
    if cache is not None and not cache.complete:
        launch.say("stopped while computing features; the same command goes on")
        return

    subject = make_subject(target, model, material.training, config)
    rows = config.data.batch * config.data.accumulate
    steps = config.steps or round(config.epochs * len(material.training.rows) / rows)
    optimizer, schedule = step.make_optimizer(step.OptimizerConfig(steps=steps, **config.optimizer))
    describe(material, subject, steps)

    about = {"config": config.to_dict(), "text_and_target": identity, **subject.identity}
    with Run(FLAGS.run, about) as run:
        data = make_iterator(material.training, rows, seed=config.seed, lookup=cache.lookup if cache else None)
        options = {"dtype": config.dtype, "everywhere": everywhere(config)}
        outcome = train(
            run,
            step.initial_state(subject.first, optimizer, subject.recipe.num_steps),
            data,
            step.make_train_step(
                subject.recipe, target, optimizer, accumulate=config.data.accumulate, seed=config.seed, **options
            ),
            step.Frozen(model.params, subject.vocabulary),
            LoopConfig(steps=steps, **config.loop),
            learning_rate=schedule,
            heldout=heldout_rows(material, cache, config.data.batch),
            measure=step.make_measure(subject.recipe, target, **options),
            evaluate=make_evaluate(target, model, subject, config) if FLAGS.prompts_file else None,
            time_limit=None if FLAGS.time_limit is None else FLAGS.time_limit - (time.monotonic() - started),
            mesh=mesh,
            quiet=FLAGS.quiet,
        )
        report(outcome, steps)
        if FLAGS.export and outcome.finished:
            export(run, outcome, subject)


def everywhere(config: Any) -> bool:
    """Whether the target's choice is needed behind every position."""
    return "recipe" in config and config.recipe.get("alignment", "target") == "official"


def read_material(model: LoadedModel, config: Any) -> Material:
    """Conversations to packed rows, some of them held out."""

    def encode_plain(text: str) -> list[int]:
        return model.tokenizer.encode(text, add_special_tokens=False)

    with launch.status(f"Reading {', '.join(FLAGS.data)}"):
        corpus = read_corpus(FLAGS.data, model.tokenizer, encode_plain=encode_plain, skip_broken=FLAGS.skip_broken)
    if corpus.broken:
        launch.say(f"left out {len(corpus.broken)} broken lines, the first: {corpus.broken[0]}")
    length, slots = config.data.length, config.data.slots
    text = trim(corpus.examples, length, slots)
    if not 0 <= config.data.heldout < len(text.examples):
        raise ValueError(f"cannot hold out {config.data.heldout} of {len(text.examples)} conversations")
    order = np.random.default_rng(config.seed).permutation(len(text.examples))
    heldout, training = order[: config.data.heldout], order[config.data.heldout :]
    if not 0 < config.data.share <= 1:
        raise ValueError(f"data.share must be above 0 and at most 1, got {config.data.share}")
    training = training[: max(1, round(config.data.share * len(training)))]
    return Material(
        text,
        pack(text.examples, length, slots, documents=training, seed=config.seed),
        pack(text.examples, length, slots, documents=heldout) if len(heldout) else None,
    )


def fill_cache(
    target: Target,
    model: LoadedModel,
    material: Material,
    config: Any,
    identity: str,
    started: float,
    mesh: Mesh | None,
) -> FeatureCache | None:
    """The features on disk, complete unless time ran out; None where they are computed in every step.

    Raises:
      ValueError: several processes, and features that are not there yet.
    """
    if not FLAGS.features:
        return None
    cache = FeatureCache(FLAGS.features, material.text.examples, identity, config.features.dtype)
    if cache.complete:
        return cache
    if jax.process_count() > 1:
        raise ValueError(f"{FLAGS.features} is filled by one process: run without --distributed first, or without it")
    with tqdm(desc="features", unit="pass", disable=FLAGS.quiet, dynamic_ncols=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        cache.fill(
            target,
            model.params,
            length=config.features.length,
            batch=config.features.batch,
            everywhere=everywhere(config),
            mesh=mesh,
            stop=lambda: FLAGS.time_limit is not None and time.monotonic() - started > FLAGS.time_limit,
            progress=progress,
        )
    return cache


def heldout_rows(material: Material, cache: FeatureCache | None, batch: int) -> list[dict[str, np.ndarray]]:
    """Rows that are never trained on, in batches."""
    packing = material.heldout
    if packing is None:
        return []
    documents = [*packing.rows, *[[]] * (-len(packing.rows) % batch)]
    rows = [assemble(packing, some, cache.lookup if cache else None) for some in documents]
    if cache:  # an empty row has no fields of features yet
        rows = [{name: row.get(name, np.zeros_like(rows[0][name])) for name in rows[0]} for row in rows]
    return [
        {name: np.stack([row[name] for row in rows[start : start + batch]]) for name in rows[0]}
        for start in range(0, len(rows), batch)
    ]


def make_evaluate(target: Target, model: LoadedModel, subject: Subject, config: Any) -> Evaluate:
    """Real tau of the decoder on --prompts_file, greedy and at temperature 1; the prompts are one batch."""
    options = config.evaluation
    prompts = [prompt_ids(model, question) for question in read_questions(FLAGS.prompts_file, options.num_prompts)]
    mesh = launch.parse_mesh(FLAGS.mesh, batch=len(prompts))

    def evaluate(params: HeadParams) -> dict[str, float]:
        writer = Generator(target, model.params, subject.drafter, subject.drafter_params(params), mesh=mesh)
        law = {"stop_ids": model.stop_ids, "max_new_tokens": options.max_new_tokens}
        greedy = writer.generate(prompts, temperature=0.0, **law)
        sampled = writer.generate(prompts, temperature=1.0, **law)
        return {"tau": greedy.tau, "tau_at_temperature_1": sampled.tau}

    return evaluate


def describe(material: Material, subject: Subject, steps: int) -> None:
    """Say what is about to be trained on what."""
    packing = material.training
    size = sum(leaf.size for leaf in jax.tree.leaves(subject.first["weights"]))
    tokens, slots = packing.fill
    launch.say(
        f"{subject.name}: {size / 1e6:.2f} million weights; draft vocabulary:"
        f" {coverage(subject, packing):.1%} of the answers\n"
        f"data: {sum(map(len, packing.rows))} conversations, {packing.num_supervised} supervised tokens in"
        f" {len(packing.rows)} rows ({tokens:.0%} of tokens, {slots:.0%} of slots used),"
        f" {material.text.num_cut} cut, {material.text.num_dropped} dropped\n"
        f"steps: {steps}"
    )


def export(run: Run, outcome: Outcome, subject: Subject) -> None:
    """Write the weights with the best real tau, or the last ones where none was measured."""
    done, trained = run.best(outcome.state.trained) or (int(outcome.state.step), outcome.state.trained)
    subject.export(FLAGS.export, trained)
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
