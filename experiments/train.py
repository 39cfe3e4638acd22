"""Train a draft head for a target, in one go or in pieces.

    python -m experiments.train --config=configs/train/eagle3_smollm2.py --data=answers.jsonl --run=runs/eagle3

The same command goes on where the run stopped: after --time_limit, SIGTERM, Ctrl-C or a crash. With --features the
frozen target reads the text once and its features are kept on disk; without, it reads along in every step. With
--prompts the real tau is measured on them as training goes on, and the best weights are kept.
"""

import dataclasses
import hashlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.drafters import make_eagle2
from eagle_jax.evaluation.runner import prompt_ids
from eagle_jax.evaluation.tasks import read_questions
from eagle_jax.generate import Generator
from eagle_jax.models.draft_head import Head, HeadParams, make_head
from eagle_jax.models.transformer import make_target
from eagle_jax.training import initialise, step
from eagle_jax.training.batch import Recipe, Vocabulary
from eagle_jax.training.conversations import read_corpus
from eagle_jax.training.data import Packing, Trimmed, assemble, make_iterator, pack, trim
from eagle_jax.training.feature_recipe import FeatureConfig, make_feature_recipe
from eagle_jax.training.features import FeatureCache, compute_features, fingerprint
from eagle_jax.training.loop import Evaluate, LoopConfig, Outcome, train
from eagle_jax.training.run import Run
from eagle_jax.training.unroll_recipe import UnrollConfig, make_unroll_recipe
from eagle_jax.types import Params, Target
from experiments import launch

FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file("config", None, "what to train: a file of configs/train", flag_values=FLAGS)
flags.DEFINE_list("data", None, "conversations, JSON lines: one or more files, separated by commas", flag_values=FLAGS)
flags.DEFINE_string("run", None, "directory of the run: checkpoints and metrics", flag_values=FLAGS)
flags.DEFINE_string(
    "features", None, "directory for the target's features; left out, every step computes its own", flag_values=FLAGS
)
flags.DEFINE_string("prompts", None, "questions for the real tau; left out, none is measured", flag_values=FLAGS)
flags.DEFINE_string("export", None, "directory for the finished head, as engines load it", flag_values=FLAGS)
flags.DEFINE_float("time_limit", None, "seconds after which to save and stop", flag_values=FLAGS)
flags.DEFINE_bool("skip_broken", False, "leave broken lines of --data out instead of stopping", flag_values=FLAGS)
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
    with launch.status(f"Loading {config.target}") as progress:
        model = load_target(config.target, config.dtype, progress=progress)
    target = make_target(model.config, config.dtype)
    material = read_material(model, config)
    identity = fingerprint(material.text.examples, model.name, model.params, everywhere(config))
    cache = fill_cache(target, model, material, config, identity, started)
    if cache is not None and not cache.complete:
        print("stopped while computing features; the same command goes on", flush=True)
        return

    head = make_head(make_head_config(model, config), target)
    answers = [material.text.examples[document] for row in material.training.rows for document in row]
    counts = initialise.count_tokens(answers, model.config.vocab_size)
    ranks = initialise.rank_tokens(counts, always=model.stop_ids)
    vocabulary = initialise.make_vocabulary(
        model.config, model.params, ranks, config.head.draft_vocab_size, config.dtype
    )
    steps = round(config.epochs * len(material.training.rows) / (config.data.batch * config.data.accumulate))
    optimizer, schedule = step.make_optimizer(step.OptimizerConfig(steps=steps, **config.optimizer))
    recipe = make_recipe(head, config)
    trained: dict[str, Any] = {"weights": first_weights(head, target, model, material, config)}
    if config.recipe.get("train_lm_head", False):
        trained["lm_head"] = vocabulary.lm_head.astype(jnp.float32)
    describe(material, head, trained, steps, counts, vocabulary)

    about = {
        "config": config.to_dict(),
        "text_and_target": identity,
        "token_ranks": hashlib.sha256(ranks.tobytes()).hexdigest(),
    }
    with Run(FLAGS.run, about) as run:
        data = make_iterator(
            material.training,
            config.data.batch * config.data.accumulate,
            seed=config.seed,
            lookup=cache.lookup if cache else None,
        )
        options = {"dtype": config.dtype, "everywhere": everywhere(config)}
        outcome = train(
            run,
            step.initial_state(trained, optimizer, recipe.num_steps),
            data,
            step.make_train_step(
                recipe, target, optimizer, accumulate=config.data.accumulate, seed=config.seed, **options
            ),
            step.Frozen(model.params, vocabulary),
            LoopConfig(steps=steps, **config.loop),
            learning_rate=schedule,
            heldout=heldout_rows(material, cache, config.data.batch),
            measure=step.make_measure(recipe, target, **options),
            evaluate=make_evaluate(target, model, head, config) if FLAGS.prompts else None,
            time_limit=None if FLAGS.time_limit is None else FLAGS.time_limit - (time.monotonic() - started),
            quiet=FLAGS.quiet,
        )
        report(outcome, steps)
        if FLAGS.export and outcome.finished:
            export(run, outcome, head, model, vocabulary, ranks)


def everywhere(config: Any) -> bool:
    """Whether the target's choice is needed behind every position."""
    return config.recipe.get("alignment", "target") == "official"


def read_material(model: LoadedModel, config: Any) -> Material:
    """Conversations to packed rows, some of them held out."""

    def encode_plain(text: str) -> list[int]:
        return model.tokenizer.encode(text, add_special_tokens=False)

    with launch.status(f"Reading {', '.join(FLAGS.data)}"):
        corpus = read_corpus(FLAGS.data, model.tokenizer, encode_plain=encode_plain, skip_broken=FLAGS.skip_broken)
    if corpus.broken:
        print(f"left out {len(corpus.broken)} broken lines, the first: {corpus.broken[0]}", flush=True)
    length, slots = config.data.length, config.data.slots
    text = trim(corpus.examples, length, slots)
    if not 0 <= config.data.heldout < len(text.examples):
        raise ValueError(f"cannot hold out {config.data.heldout} of {len(text.examples)} conversations")
    order = np.random.default_rng(config.seed).permutation(len(text.examples))
    heldout, training = order[: config.data.heldout], order[config.data.heldout :]
    return Material(
        text,
        pack(text.examples, length, slots, documents=training, seed=config.seed),
        pack(text.examples, length, slots, documents=heldout) if len(heldout) else None,
    )


def fill_cache(
    target: Target, model: LoadedModel, material: Material, config: Any, identity: str, started: float
) -> FeatureCache | None:
    """The features on disk, complete unless time ran out; None where they are computed in every step."""
    if not FLAGS.features:
        return None
    cache = FeatureCache(FLAGS.features, material.text.examples, identity, config.features.dtype)
    if cache.complete:
        return cache
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
            stop=lambda: FLAGS.time_limit is not None and time.monotonic() - started > FLAGS.time_limit,
            progress=progress,
        )
    return cache


def make_head_config(model: LoadedModel, config: Any) -> Any:
    """The head's shape."""
    options = {name: value for name, value in config.head.items() if name not in ("kind", "draft_vocab_size")}
    return initialise.head_config(model.config, config.head.kind, **options)


def first_weights(head: Head, target: Target, model: LoadedModel, material: Material, config: Any) -> Params:
    """The head before its first step, as `config.start` says."""
    sizes = None
    if config.start.scale_features:
        row = assemble(material.training, material.training.rows[0])
        batch = step.text_of({name: jnp.asarray(field)[None] for name, field in row.items()})
        features = compute_features(target, model.params, batch)
        eagle3 = head.config.kind == "eagle3"
        read = features.taps if eagle3 else features.hidden
        sizes = initialise.typical_sizes(read, head.config.num_taps if eagle3 else 1, batch.segments)
    layer = config.start.layer if config.start.copy_layer else None
    return initialise.initial_weights(head, model.params, config.seed, layer=layer, feature_sizes=sizes)


def make_recipe(head: Head, config: Any) -> Recipe:
    """The recipe that belongs to the head."""
    if config.head.kind == "eagle3":
        return make_unroll_recipe(head, UnrollConfig(**config.recipe))
    return make_feature_recipe(head, FeatureConfig(**config.recipe))


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


def make_evaluate(target: Target, model: LoadedModel, head: Head, config: Any) -> Evaluate:
    """Real tau of the decoder on --prompts, greedy and at temperature 1; the prompts are one batch."""
    options = config.evaluation
    prompts = [prompt_ids(model, question) for question in read_questions(FLAGS.prompts, options.num_prompts)]
    drafter = make_eagle2(head, options.nodes, options.depth, options.top_k, dtype=config.dtype)

    def evaluate(params: HeadParams) -> dict[str, float]:
        writer = Generator(target, model.params, drafter, params)
        law = {"stop_ids": model.stop_ids, "max_new_tokens": options.max_new_tokens}
        greedy = writer.generate(prompts, temperature=0.0, **law)
        sampled = writer.generate(prompts, temperature=1.0, **law)
        return {"tau": greedy.tau, "tau_at_temperature_1": sampled.tau}

    return evaluate


def describe(
    material: Material, head: Head, trained: dict[str, Any], steps: int, counts: np.ndarray, vocabulary: Vocabulary
) -> None:
    """Say what is about to be trained on what."""
    packing = material.training
    size = sum(leaf.size for leaf in jax.tree.leaves(trained["weights"]))
    ids = vocabulary.target_ids
    covered = 1.0 if ids is None else counts[np.asarray(ids)].sum() / counts.sum()
    tokens, slots = packing.fill
    print(
        f"head: {head.config.kind}, {size / 1e6:.2f} million weights; draft vocabulary: {covered:.1%} of the answers\n"
        f"data: {sum(map(len, packing.rows))} conversations, {packing.num_supervised} supervised tokens in"
        f" {len(packing.rows)} rows ({tokens:.0%} of tokens, {slots:.0%} of slots used),"
        f" {material.text.num_cut} cut, {material.text.num_dropped} dropped\n"
        f"steps: {steps}",
        flush=True,
    )


def export(
    run: Run, outcome: Outcome, head: Head, model: LoadedModel, vocabulary: Vocabulary, ranks: np.ndarray
) -> None:
    """Write the weights with the best real tau, or the last ones where none was measured."""
    done, trained = run.best(outcome.state.trained) or (int(outcome.state.step), outcome.state.trained)
    frozen = "lm_head" not in trained
    params = step.head_params(trained, vocabulary)
    save_head(
        FLAGS.export,
        head.config,
        dataclasses.replace(params, lm_head=None) if frozen else params,
        model.config,
        frozen_lm_head=frozen,
        token_ranks=ranks if frozen else None,
    )
    print(f"wrote the head of step {done} to {FLAGS.export}", flush=True)


def report(outcome: Outcome, steps: int) -> None:
    """One closing line."""
    done = int(outcome.state.step)
    if outcome.finished:
        print(f"finished: {done} steps", flush=True)
    else:
        print(f"stopped at step {done} of {steps} ({outcome.reason}); the same command goes on", flush=True)


if __name__ == "__main__":
    launch.run(main, FLAGS)
