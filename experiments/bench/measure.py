"""Time single aspects of decoding against their alternatives and print a Markdown table.

    python -m experiments.bench.measure --what=pass_costs

pass_costs: a target pass over 1 to 64 tokens after a prompt. torch: plain decoding against `transformers` and PyTorch.
peers: plain decoding and EAGLE-3 beside HF transformers and OpenVINO GenAI (`experiments.bench.peers`, own prompts).
length: plain decoding in a large cache and in a small one. sampling: T = 1, T = 0.7 with top-p 0.9 and T = 0. split:
where a round of --method goes; the flags of drafting methods, --dtype apart, are for this one.
Numbers are medians in milliseconds; what is compared runs in alternation in one process.
"""

import dataclasses
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.drafters import make_vanilla
from eagle_jax.evaluation.summary import markdown_table
from eagle_jax.evaluation.time_split import alternate, seconds, time_split
from eagle_jax.generator import Generator
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import device_kind
from eagle_jax.sampling import SamplingOptions, first_largest
from eagle_jax.types import KVCache, Params
from experiments.bench.peers import QUESTIONS, compare, peer_writers
from experiments.bench.torch_baseline import torch_writer
from experiments.cli import launch, methods

PASS_SIZES = (1, 2, 4, 8, 12, 16, 32, 64)
SMALL, LARGE = 512, 4096
TEXT = "The tortoise walked on without a pause, and the hare, who had slept too long, came second. "

Table = tuple[list[str], list[list[object]]]

FLAGS = flags.FlagValues()
flags.DEFINE_string("target", "smollm2-135m", "as for experiments.generate", flag_values=FLAGS)
methods.define_flags(FLAGS)
flags.DEFINE_integer("prompt_tokens", 240, "length of the prompt", flag_values=FLAGS)
flags.DEFINE_integer("new_tokens", 128, "tokens written after the prompt", flag_values=FLAGS)
flags.DEFINE_integer("repeats", 7, "how often each thing is timed; the median counts", flag_values=FLAGS)


def main() -> None:
    """Load the target, measure, print."""
    if FLAGS.prompt_tokens < 1 or FLAGS.new_tokens < 2 or FLAGS.prompt_tokens + FLAGS.new_tokens > SMALL - 1:
        raise ValueError(
            f"--prompt_tokens (1 or more) and --new_tokens (2 or more) must come to less than {SMALL}, "
            f"got {FLAGS.prompt_tokens} and {FLAGS.new_tokens}"
        )
    with launch.status(f"Loading {FLAGS.target}") as progress:
        model = load_target(FLAGS.target, FLAGS.dtype, packed=True, progress=progress)
    prompt = model.tokenizer.encode(TEXT * FLAGS.prompt_tokens)[: FLAGS.prompt_tokens]
    with launch.status("Measuring"):
        header, rows = MEASUREMENTS[FLAGS.what](model, prompt)
    device = f"{device_kind()}, {os.cpu_count()} cores"
    print(
        f"{FLAGS.target}, {FLAGS.dtype}, {device}, jax {jax.__version__}; "
        f"prompt of {FLAGS.prompt_tokens} tokens, {FLAGS.new_tokens} new ones, medians of {FLAGS.repeats}\n"
    )
    print(markdown_table(header, rows))


def pass_costs(model: LoadedModel, prompt: list[int]) -> Table:
    """A pass over T tokens: forward, logits and argmax, with the prompt in a cache of 512 slots."""
    target = make_target(model.config)
    cache = dataclasses.replace(
        target.init_cache(1, SMALL, target.activation_dtype(model.params)), length=jnp.array([len(prompt)], jnp.int32)
    )

    def pass_over(size: int) -> Callable[[], float]:
        tokens = jnp.array([(prompt * size)[:size]], jnp.int32)
        positions = len(prompt) + jnp.arange(size)[None, :]
        mask = jnp.tril(jnp.ones((1, size, size), bool))

        @jax.jit
        def run(params: Params, cache: KVCache) -> jax.Array:
            output = target.forward(params, tokens, positions, cache, mask)
            return first_largest(target.unembed(params, output.hidden))

        return lambda: 1e3 * seconds(lambda: run(model.params, cache))

    costs = alternate({str(size): pass_over(size) for size in PASS_SIZES}, FLAGS.repeats)
    return ["tokens", "ms a pass", "over 1 token"], [[size, cost, cost / costs["1"]] for size, cost in costs.items()]


def torch(model: LoadedModel, prompt: list[int]) -> Table:
    """Complete answers by both programs, and the cost of a token after the first one, which leaves out prefill."""
    count = FLAGS.new_tokens
    generator, write = plain(model, SMALL), torch_writer(model)

    def ours(tokens: int) -> list[int]:
        return generator.generate([prompt], max_new_tokens=tokens).tokens[0]

    def timed(run: Callable[[int], list[int]], tokens: int) -> Callable[[], float]:
        return lambda: 1e3 * seconds(lambda: run(tokens))

    def theirs(tokens: int) -> list[int]:
        return write(prompt, tokens)

    same = sum(a == b for a, b in zip(ours(count), theirs(count), strict=True))
    writers = {"transformers and torch": theirs, "eagle_jax": ours}
    names = list(writers)
    costs = alternate(
        {f"{name} {tokens}": timed(run, tokens) for name, run in writers.items() for tokens in (1, count)},
        FLAGS.repeats,
    )
    per_answer = {name: costs[f"{name} {count}"] / count for name in names}
    after_first = {name: (costs[f"{name} {count}"] - costs[f"{name} 1"]) / (count - 1) for name in names}
    header = ["plain decoding by", "ms a token, prompt included", "speed-up", "ms a token", "speed-up", "equal tokens"]
    return header, [
        [
            name,
            per_answer[name],
            per_answer[names[0]] / per_answer[name],
            after_first[name],
            after_first[names[0]] / after_first[name],
            f"{same}/{count}",
        ]
        for name in names
    ]


def length(model: LoadedModel, prompt: list[int]) -> Table:
    """The same text in caches of two sizes."""
    costs = alternate({str(size): per_token(plain(model, size), prompt, {}) for size in (SMALL, LARGE)}, FLAGS.repeats)
    return ["cache slots", "ms a token", f"over {SMALL}"], [
        [n, cost, cost / costs[str(SMALL)]] for n, cost in costs.items()
    ]


def sampling(model: LoadedModel, prompt: list[int]) -> Table:
    """Greedy and sampled decoding by the same program."""
    settings: dict[str, SamplingOptions] = {
        "T = 0": {"temperature": 0.0},
        "T = 1": {"temperature": 1.0},
        "T = 0.7, top-p 0.9": {"temperature": 0.7, "top_p": 0.9},
    }
    generator = plain(model, SMALL)
    costs = alternate({name: per_token(generator, prompt, some) for name, some in settings.items()}, FLAGS.repeats)
    return ["sampling", "ms a token", "over T = 0"], [
        [name, cost, cost / costs["T = 0"]] for name, cost in costs.items()
    ]


def plain(model: LoadedModel, capacity: int) -> Generator:
    """Plain decoding with a cache of the given size."""
    return Generator(make_target(model.config), model.params, make_vanilla(), capacity=capacity)


def per_token(generator: Generator, prompt: list[int], options: SamplingOptions) -> Callable[[], float]:
    """A run that writes --new_tokens tokens and gives the milliseconds of one round."""
    options = {**options, "max_new_tokens": FLAGS.new_tokens}

    def run() -> float:
        result = generator.generate([prompt], **options)
        return 1e3 * result.decode_seconds / sum(result.rounds)

    return run


def split(model: LoadedModel, prompt: list[int]) -> Table:
    """The parts of a round of --method, and each part's share of it."""
    name, settings = methods.settings_from_flags(FLAGS)
    name, settings = methods.with_tree(name, settings, model)
    drafter, params = methods.make_method(name, model, settings)
    generator = Generator(make_target(model.config), model.params, drafter, params, capacity=SMALL)
    costs = time_split(generator, prompt, new_tokens=FLAGS.new_tokens, repeats=FLAGS.repeats)
    return [f"part of a round of {name}, {drafter.nodes} nodes", "ms", "share"], [
        [part, cost, cost / costs["round"]] for part, cost in costs.items()
    ]


def peers(model: LoadedModel, prompt: list[int]) -> Table:
    """Against other programs on the same file."""
    del prompt
    prompts = [model.tokenizer.chat([{"role": "user", "content": text}]) for text in QUESTIONS]
    return compare(peer_writers(FLAGS.target, model), prompts, FLAGS.new_tokens, FLAGS.repeats)


MEASUREMENTS = {
    "peers": peers,
    "pass_costs": pass_costs,
    "torch": torch,
    "length": length,
    "sampling": sampling,
    "split": split,
}
flags.DEFINE_enum("what", "pass_costs", list(MEASUREMENTS), "what to measure", flag_values=FLAGS)


if __name__ == "__main__":
    launch.run(main, FLAGS)
