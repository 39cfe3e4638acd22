"""What a run of `experiments.train` reads and what it trains, and how well that decodes while it is trained.

The text is conversations as packed rows, to train on and held out. Trained is a draft head (`config.head`) or a small
draft model (`config.draft`).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from eagle_jax.checkpoint import distilled, hf
from eagle_jax.checkpoint.draft_vocabulary import Ranking
from eagle_jax.checkpoint.head_config import flat_engine
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.pick_layers import pick_layers
from eagle_jax.checkpoint.pretrained import LoadedModel, load_pretrained_head
from eagle_jax.checkpoint.save_target import save_target
from eagle_jax.drafters import Drafter, make_chain
from eagle_jax.drafters.draft_model import on_draft_vocabulary
from eagle_jax.evaluation.runner import slots
from eagle_jax.generator import Generator
from eagle_jax.models.block_head import BlockHead, make_any_head
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import Head, HeadParams, features_of
from eagle_jax.models.transformer import make_target
from eagle_jax.processes import is_primary
from eagle_jax.provenance import weights_digest
from eagle_jax.sampling import make_sampling
from eagle_jax.sharding import check_batch, head_shardings, place, to_host
from eagle_jax.training import initialise, step
from eagle_jax.training.benchmark_text import BenchmarkText
from eagle_jax.training.conversations import Example, read_corpus
from eagle_jax.training.data import Lookup, Packing, RowLookup, Trimmed, assemble_row, pack, trim
from eagle_jax.training.features import compute_features
from eagle_jax.training.loop import Evaluate
from eagle_jax.training.recipes import make_head_recipe
from eagle_jax.training.recipes.distill_recipe import FROZEN, make_distill_recipe, whole_student
from eagle_jax.training.records import Recipe, Vocabulary
from eagle_jax.training.split import split_by_prompt
from eagle_jax.types import Params, Target
from experiments.cli import launch
from experiments.cli.methods import tree_drafter

Trained = dict[str, Any]
"""What the optimizer changes: `TrainState.trained`."""


@dataclasses.dataclass(frozen=True)
class TrainingText:
    """Text ready for training."""

    text: Trimmed
    training: Packing
    heldout: Packing | None


class TrainingSetup(NamedTuple):
    """Something to be trained."""

    name: str
    recipe: Recipe
    vocabulary: Vocabulary
    first: Trained
    drafter: Drafter  # that decodes with it while it is trained
    drafter_params: Callable[[HeadParams], Params]
    export: Callable[[str, Trained], None]
    """(directory, weights) -> written as it is loaded later on; of several processes all call it, one writes."""
    identity: dict[str, str]  # of what was derived from the text, for the run's own


def read_training_text(
    model: LoadedModel,
    config: Any,
    paths: Sequence[str],
    *,
    skip_broken: bool,
    benchmarks: BenchmarkText | None = None,
) -> TrainingText:
    """Conversations to packed rows, some of them held out.

    Raises:
      ValueError: broken lines, or shares and sizes that leave nothing.
    """

    def encode_plain(text: str) -> list[int]:
        return model.tokenizer.encode(text, add_special_tokens=False)

    with launch.status(f"Reading {', '.join(paths)}"):
        corpus = read_corpus(
            paths,
            model.tokenizer,
            encode_plain=encode_plain,
            skip_broken=skip_broken,
            cut_loops=config.data.cut_loops,
            benchmarks=benchmarks,
        )
    if corpus.num_left_out:
        launch.say(f"left out {corpus.num_left_out} conversations that repeat a question of a benchmark")
    if corpus.broken:
        launch.say(f"left out {len(corpus.broken)} broken lines, the first: {corpus.broken[0]}")
    if corpus.num_loops:
        launch.say(f"cut {corpus.num_loops} answers where they begin to loop: {corpus.num_loop_tokens} tokens less")
    length, slots = config.data.length, config.data.slots
    text = trim(corpus.examples, length, slots)
    training, heldout = split_by_prompt(text.examples, config.data.heldout, config.seed)
    if not 0 < config.data.share <= 1:
        raise ValueError(f"data.share must be above 0 and at most 1, got {config.data.share}")
    training = training[: max(1, round(config.data.share * len(training)))]
    return TrainingText(
        text,
        pack(text.examples, length, slots, documents=training, seed=config.seed),
        pack(text.examples, length, slots, documents=heldout) if len(heldout) else None,
    )


def heldout_rows(
    text: TrainingText, batch: int, lookup: Lookup | None = None, of_row: RowLookup | None = None
) -> list[dict[str, np.ndarray]]:
    """Rows that are never trained on, in batches, with features as `assemble_row` finds them."""
    packing = text.heldout
    if packing is None:
        return []
    documents = [*packing.rows, *[[]] * (-len(packing.rows) % batch)]
    rows = [assemble_row(packing, some, lookup, of_row) for some in documents]
    if lookup or of_row:  # an empty row has no fields of features yet
        rows = [{name: row.get(name, np.zeros_like(rows[0][name])) for name in rows[0]} for row in rows]
    return [
        {name: np.stack([row[name] for row in rows[start : start + batch]]) for name in rows[0]}
        for start in range(0, len(rows), batch)
    ]


def make_training_setup(
    target: Target, model: LoadedModel, training: Packing, config: Any, *, split_head: bool = False
) -> TrainingSetup:
    """What the config describes, before its first step.

    On the model's mesh a head is replicated or, with `split_head`, split as the target is; a draft model is always
    split.

    Raises:
      ValueError: a shape or a size that cannot be, or `split_head` without a head.
    """
    if "draft" not in config:
        return _head(target, model, training, config, split_head)
    if split_head:
        raise ValueError(f"--split_head takes a config of a head, this one trains layers {list(config.draft.layers)}")
    return _draft_model(target, model, training, config)


def coverage(setup: TrainingSetup, training: Packing) -> float:
    """Share of the supervised tokens that can be drafted."""
    ids = setup.vocabulary.target_ids
    if ids is None:
        return 1.0
    tokens = np.concatenate([example.tokens[example.supervised] for example in answers_of(training)])
    return float(np.isin(tokens, np.asarray(ids)).mean())


def make_evaluate(
    target: Target, model: LoadedModel, setup: TrainingSetup, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> Evaluate:
    """Real tau of the decoder on prompts, greedy and at temperature 1; they are one batch.

    Raises:
      ValueError: prompts that do not divide over the model's mesh, or that leave no room for new tokens.
    """
    make_sampling(len(prompts), max_new_tokens=max_new_tokens)
    capacity = slots(target, prompts, setup.drafter, max_new_tokens)
    if model.mesh is not None:
        check_batch(model.mesh, len(prompts))

    def evaluate(params: HeadParams) -> dict[str, float]:
        drafter_params = setup.drafter_params(params)
        writer = Generator(target, model.params, setup.drafter, drafter_params, capacity=capacity, mesh=model.mesh)
        greedy, sampled = (
            writer.generate(prompts, temperature=heat, stop_ids=model.stop_ids, max_new_tokens=max_new_tokens)
            for heat in (0.0, 1.0)
        )
        return {"tau": greedy.tau, "tau_at_temperature_1": sampled.tau}

    return evaluate


def answers_of(training: Packing) -> list[Example]:
    """The documents that are trained on."""
    return [training.examples[document] for row in training.rows for document in row]


def _head(target: Target, model: LoadedModel, training: Packing, config: Any, split: bool) -> TrainingSetup:
    options = {name: value for name, value in config.head.items() if name not in ("kind", "draft_vocab_size")}
    head = make_any_head(initialise.head_config(model.config, config.head.kind, **options), target)
    ranks = _ranks(model, training)
    size = config.head.draft_vocab_size
    vocabulary = initialise.make_vocabulary(model.config, model.params, ranks, size, config.dtype)
    first: Trained = {"weights": _first_weights(head, target, model, training, config)}
    if config.recipe.get("train_lm_head", False):
        # A copy: training donates its state, and the loss goes on reading the target's rows.
        first["lm_head"] = jnp.array(vocabulary.lm_head, jnp.float32)
    tree = config.evaluation
    return TrainingSetup(
        name=config.head.kind,
        recipe=make_head_recipe(head, config.recipe),
        vocabulary=vocabulary,
        first=first if model.mesh is None else _on_mesh(first, head, model.mesh, split),
        drafter=tree_drafter(head, tree.nodes, tree.depth, tree.top_k),
        drafter_params=lambda params: params,
        export=lambda directory, trained: _export_head(directory, trained, head, model, vocabulary, ranks),
        identity={
            **_identity(ranks),
            **({"start": weights_digest(first)} if config.start.get("head") else {}),
        },
    )


def _on_mesh(first: Trained, head: Head | BlockHead, mesh: Mesh, split: bool) -> Trained:
    """Replicated or split, and not as the weights of the target that some of it started from."""
    params = HeadParams(first["weights"], first.get("lm_head"))
    places = head_shardings(mesh, head, params, split=split)
    return place(first, {name: getattr(places, name) for name in first})


def _ranks(model: LoadedModel, training: Packing) -> np.ndarray:
    """The target's tokens, those that its answers use most first."""
    counts = initialise.count_tokens(answers_of(training), model.config.vocab_size)
    return initialise.rank_tokens(counts, always=model.stop_ids)


def _identity(ranks: np.ndarray) -> dict[str, str]:
    return {"token_ranks": hashlib.sha256(ranks.tobytes()).hexdigest()}


def _first_weights(
    head: Head | BlockHead, target: Target, model: LoadedModel, training: Packing, config: Any
) -> Params:
    """The head before its first step, as `config.start` says.

    Raises:
      ValueError: a trained head to start from that is shaped or computed otherwise.
    """
    if trained := config.start.get("head"):
        return _weights_of(trained, head, model)
    sizes = None
    if config.start.scale_features:
        row = assemble_row(training, training.rows[0])
        batch = step.text_of({name: jnp.asarray(field)[None] for name, field in row.items()})
        features = compute_features(target, model.params, batch)
        read = features_of(head.config, features.hidden, features.taps)
        num_parts = read.shape[-1] // features.hidden.shape[-1]
        sizes = initialise.typical_sizes(read, num_parts, batch.segments)
        if head.config.fc_norm or head.config.norm_before_fc:  # which fc reads them after
            sizes = initialise.normed_sizes(sizes, together=head.config.norm_before_fc)
    layer = config.start.layer if config.start.copy_layer else None
    return initialise.initial_weights(head, model.config, model.params, config.seed, layer=layer, feature_sizes=sizes)


def _weights_of(name: str, head: Head | BlockHead, model: LoadedModel) -> Params:
    """The float32 weights of a trained head, to go on from."""
    config, params = load_pretrained_head(name, model)
    differing = [
        field.name
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(head.config, field.name)
    ]
    if differing:
        field = differing[0]
        raise ValueError(
            f"config.start.head={name}: its {field} is {getattr(config, field)}, here it would be"
            f" {getattr(head.config, field)}"
        )
    return jax.tree.map(lambda x: jnp.array(x, jnp.float32), params.weights)


def _export_head(
    directory: str,
    trained: Trained,
    head: Head | BlockHead,
    model: LoadedModel,
    vocabulary: Vocabulary,
    ranks: np.ndarray,
) -> None:
    frozen = "lm_head" not in trained
    params = step.head_params(_to_host(trained), vocabulary)
    if not is_primary():
        return
    save_head(
        directory,
        head.config,
        dataclasses.replace(params, lm_head=None) if frozen else params,
        model.config,
        engine=flat_engine(head.config),
        frozen_lm_head=frozen,
        token_ranks=ranks if frozen else None,
    )


def _to_host(tree: Params) -> Params:
    """All of each weight in every process, however it is sharded."""
    return jax.tree.map(to_host, tree)


def _draft_model(target: Target, model: LoadedModel, training: Packing, config: Any) -> TrainingSetup:
    del target
    layers: Sequence[int] = config.draft.layers
    student_config, params = pick_layers(model.config, model.params, layers)
    start = config.draft.get("start", "")
    if start:
        params = _draft_to_go_on_from(start, student_config, model)
    student = make_target(student_config)
    # A copy: training donates its state, and the target's own arrays stay in use.
    first = {name: value for name, value in params.items() if name not in FROZEN}
    first = jax.tree.map(lambda x: jnp.array(x, jnp.float32), first)
    ranks, size = _ranks(model, training), config.draft.vocab_size
    vocabulary = initialise.make_vocabulary(model.config, model.params, ranks, size, config.dtype)
    ranking = None if vocabulary.target_ids is None else Ranking(ranks, size)

    def export(directory: str, trained: Trained) -> None:
        weights = _to_host(whole_student(trained["weights"], model.params))
        if is_primary():
            save_target(directory, student_config, weights, model.tokenizer, ranking=ranking)

    return TrainingSetup(
        name=f"draft model of layers {', '.join(map(str, layers))}",
        recipe=make_distill_recipe(student),
        vocabulary=vocabulary,
        first={"weights": first},
        drafter=make_chain(on_draft_vocabulary(student), config.evaluation.drafted),
        drafter_params=lambda trained: dataclasses.replace(
            trained, weights=whole_student(trained.weights, model.params)
        ),
        export=export,
        identity={**_identity(ranks), **({"start": weights_digest(first)} if start else {})},
    )


def _draft_to_go_on_from(name: str, config: ModelConfig, model: LoadedModel) -> Params:
    """The weights of a trained draft model.

    Raises:
      ValueError: one of another shape.
    """
    if name == distilled.NAME:
        stored, params = distilled.load_pretrained_draft(model)
    else:
        stored = hf.load_config(name)
        params = hf.load_params(name, stored)
    for field in dataclasses.fields(config):
        own, wanted = getattr(stored, field.name), getattr(config, field.name)
        if own != wanted and field.name != "tap_layers":  # which no draft model has
            raise ValueError(f"config.draft.start={name}: its {field.name} is {own}, here it would be {wanted}")
    return params
