"""What decoding costs on this device, for targets of published shapes with random weights: no checkpoint is needed.

    python -m experiments.bench.device --shapes=llama3-8b --output=device.jsonl

A line of --output is one cost in milliseconds: of a plain step, of a pass of the target over several tokens, of reading
a prompt, of a round of EAGLE-3 with one of --trees. What a round costs over a plain step is the tau from which on
drafting pays. Cells are measured in the order of what says most, until --time_limit; the same command goes on with
those that are missing. Weights are made on the device, so their values mean nothing and hardly a draft is accepted.
"""

import dataclasses
import functools
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs.targets.shapes import get_target
from eagle_jax import sharding
from eagle_jax.drafters.default_tree import TreeSize
from eagle_jax.evaluation.summary import markdown_table
from eagle_jax.evaluation.time_split import seconds
from eagle_jax.files import Record
from eagle_jax.generator import Generator, timed
from eagle_jax.journal import Journal
from eagle_jax.models.config import ModelConfig
from eagle_jax.provenance import device_kind, git_commit
from eagle_jax.sampling import first_largest, make_sampling
from eagle_jax.types import Params
from experiments.cli import launch
from experiments.scaling.programs import Setting, Shapes, make_shapes

FLAGS = flags.FlagValues()
flags.DEFINE_list("shapes", ["llama3-8b"], "targets, rows of configs/targets/shapes.py", flag_values=FLAGS)
flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "of weights and activations", flag_values=FLAGS)
flags.DEFINE_list("batches", ["1", "8", "64"], "rows that decode together", flag_values=FLAGS)
flags.DEFINE_list("passes", ["8", "64", "16", "256", "128", "2"], "tokens a row of a pass", flag_values=FLAGS)
flags.DEFINE_list("trees", ["60/7/10", "16/5/4", "4/2/1"], "of EAGLE-3: nodes/depth/top-k", flag_values=FLAGS)
flags.DEFINE_integer("prompt_tokens", 512, "tokens in the cache, and of the prompt that is read", flag_values=FLAGS)
flags.DEFINE_integer("num_layers", None, "of the target; left out, all", flag_values=FLAGS)
flags.DEFINE_integer("repeats", 5, "how often each thing is timed; the median counts", flag_values=FLAGS)
flags.DEFINE_float("time_limit", 540, "seconds after which no further cell is begun", flag_values=FLAGS)
flags.DEFINE_string("output", None, "JSON lines, one cost each", flag_values=FLAGS)

ROUNDS = 8
"""Rounds of each timed call."""

PLAIN = TreeSize(1, 0, 1)
"""Stands for plain decoding in the settings of a program."""

STEP = "plain step"
"""The cost that all others are compared with."""


class Cell(NamedTuple):
    """One cost."""

    shape: str
    dtype: str
    batch: int
    what: str
    measure: Callable[[], float]  # milliseconds


def main() -> None:
    """Measure what is missing, print all."""
    started = time.monotonic()
    launch.need(FLAGS, "output")
    launch.check_file("output", FLAGS.output)
    cells = list(planned())
    settings = {
        **{name: getattr(FLAGS, name) for name in ("prompt_tokens", "num_layers", "repeats")},
        "device": device_kind(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
    }
    with Journal(FLAGS.output, settings) as journal:
        known = {tuple(record["key"]) for record in journal.records}
        missing = [cell for cell in cells if cell[:4] not in known]
        for index, cell in enumerate(missing):
            if time.monotonic() - started > FLAGS.time_limit:
                print(f"time is up, {len(missing) - index} of {len(cells)} costs are missing; the same command goes on")
                break
            with launch.status(", ".join(map(str, cell[:4]))):
                journal.add({"key": cell[:4], **_outcome(cell.measure), "commit": git_commit()})
        print(f"{settings['device']}, {settings['cores']} cores, jax {jax.__version__}\n")
        print(markdown_table(*table(journal.records)))


def _outcome(measure: Callable[[], float]) -> Record:
    """The cost, or why there is none: too large a batch must not end the run."""
    try:
        return {"ms": measure()}
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"ms": None, "reason": "does not fit"}


def planned() -> Iterator[Cell]:
    """All cells, those first that say most: small batches before large ones, rounds before passes.

    Raises:
      ValueError: a shape or a tree that is none, or sizes below 1.
    """
    trees = [_tree(text) for text in FLAGS.trees]
    targets = {name: _target(name) for name in FLAGS.shapes}
    batches, passes = (_sizes(name) for name in ("batches", "passes"))
    for batch, dtype, shape in itertools.product(batches, FLAGS.dtypes, targets):
        at: Any = functools.partial(_setting, targets[shape], dtype, batch)
        yield Cell(shape, dtype, batch, STEP, functools.partial(_round, at, PLAIN))
        for tree in trees:
            yield Cell(shape, dtype, batch, f"round {tree}", functools.partial(_round, at, tree))
        for size in passes:
            yield Cell(shape, dtype, batch, f"pass over {size}", functools.partial(_pass, at, size))
        yield Cell(shape, dtype, batch, f"prompt of {FLAGS.prompt_tokens}", functools.partial(_prompt, at))


def table(records: list[Record]) -> tuple[list[str], list[list[object]]]:
    """A line a cost, in the order of measuring, beside its plain step."""
    costs = {tuple(record["key"]): record["ms"] for record in records}
    rows: list[list[object]] = []
    for (*where, what), cost in costs.items():
        plain = costs.get((*where, STEP))
        rows.append([*where, what, cost, cost / plain if cost and plain else None])
    return ["target", "dtype", "batch", "what", "ms", "over a plain step"], rows


def _tree(text: str) -> TreeSize:
    parts = text.split("/")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--trees takes nodes/depth/top-k, such as 60/7/10, got {text!r}")
    return TreeSize(*map(int, parts))


def _target(name: str) -> ModelConfig:
    target = get_target(name)
    return dataclasses.replace(target, num_layers=FLAGS.num_layers) if FLAGS.num_layers else target


def _sizes(name: str) -> list[int]:
    given = getattr(FLAGS, name)
    if not all(text.isdecimal() and int(text) for text in given):
        raise ValueError(f"--{name} takes whole numbers above 0, got {','.join(given)}")
    return [int(text) for text in given]


def _setting(target: ModelConfig, dtype: str, batch: int, tree: TreeSize) -> Setting:
    """A program for caches with room for the prompt and all timed rounds."""
    rounds = ROUNDS * (FLAGS.repeats + 1)
    return Setting(
        target=target,
        method="eagle3",
        nodes=max(tree.nodes, 2),
        depth=tree.depth,
        top_k=tree.top_k,
        batch=batch,
        context=FLAGS.prompt_tokens + rounds * (tree.depth + 2) + tree.nodes,
        dtype=dtype,
        split_head=False,
    )


def _shapes(setting: Setting) -> Shapes:
    return make_shapes(setting, sharding.make_mesh(devices=jax.devices()[:1]))


def _round(at: Callable[[TreeSize], Setting], tree: TreeSize) -> float:
    """A round of decoding."""
    setting = at(tree)
    models = _shapes(setting).plain if tree == PLAIN else _shapes(setting).models
    weights = random_weights(models.target_params), random_weights(models.drafter_params)
    generator = Generator(models.target, weights[0], models.drafter, weights[1], capacity=setting.context)
    rounds = ROUNDS * (FLAGS.repeats + 1) * (tree.depth + 2)
    sampling = make_sampling(setting.batch, max_new_tokens=rounds)
    state = generator.start([[1] * FLAGS.prompt_tokens] * setting.batch, sampling)
    times = []
    for _ in range(FLAGS.repeats + 1):
        state, spent = timed(generator.advance, state, sampling, ROUNDS)
        times.append(spent)
    return 1e3 / ROUNDS * statistics.median(times[1:])


def _prompt(at: Callable[[TreeSize], Setting]) -> float:
    """Reading a prompt in every row, and choosing the first token."""
    setting = at(PLAIN)
    models = _shapes(setting).plain
    generator = Generator(models.target, random_weights(models.target_params), models.drafter, capacity=setting.context)
    prompts = [[1] * FLAGS.prompt_tokens] * setting.batch
    sampling = make_sampling(setting.batch, max_new_tokens=1)
    return _median(lambda: generator.start(prompts, sampling).text)


def _pass(at: Callable[[TreeSize], Setting], size: int) -> float:
    """The target alone over `size` tokens a row after the prompt: layers, logits and arg-max."""
    setting = dataclasses.replace(at(PLAIN), context=FLAGS.prompt_tokens + size)
    models = _shapes(setting).plain
    target, params = models.target, random_weights(models.target_params)
    cache = target.init_cache(setting.batch, setting.context, target.activation_dtype(params))
    cache = dataclasses.replace(cache, length=jnp.full(setting.batch, FLAGS.prompt_tokens, jnp.int32))
    tokens = jnp.ones((setting.batch, size), jnp.int32)
    positions = jnp.broadcast_to(FLAGS.prompt_tokens + jnp.arange(size), tokens.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((size, size), bool)), (setting.batch, size, size))

    @jax.jit
    def run(params: Params, cache: Any) -> jax.Array:
        output = target.forward(params, tokens, positions, cache, mask)
        return first_largest(target.unembed(params, output.hidden))

    return _median(lambda: run(params, cache))


def _median(run: Callable[[], object]) -> float:
    seconds(run)  # compiles
    return 1e3 * statistics.median(seconds(run) for _ in range(FLAGS.repeats))


def random_weights(shapes: Params) -> Params:
    """Arrays of these shapes, made on the device: small normal numbers, and 0, 1, 2, ... where integers belong."""

    @jax.jit
    def make() -> Params:
        leaves, structure = jax.tree.flatten(shapes)
        keys = jax.random.split(jax.random.key(0), max(1, len(leaves)))
        made = [
            jnp.arange(np.prod(leaf.shape), dtype=leaf.dtype).reshape(leaf.shape)
            if jnp.issubdtype(leaf.dtype, jnp.integer)
            else 0.02 * jax.random.normal(key, leaf.shape, leaf.dtype)
            for leaf, key in zip(leaves, keys, strict=False)
        ]
        return jax.tree.unflatten(structure, made)

    return make()


if __name__ == "__main__":
    launch.run(main, FLAGS)
