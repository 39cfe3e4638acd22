"""Plain decoding and EAGLE-3 against other programs on the same file and CPU; a mode of `experiments.bench.measure`.

HF transformers (PyTorch, float32) and OpenVINO GenAI (the GGUF file itself, weights stay compressed), each plain and
with its own prompt lookup. All of them read the same token ids and write the same number of greedy tokens, past the end
of the answer where that comes before; they run in alternation in one process, each with all cores. To install them:
`pip install -e ".[peers]"`.
"""

import functools
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eagle_jax.checkpoint.pretrained import SMOLLM2, LoadedModel, load_target, smollm2_path
from eagle_jax.evaluation.metrics import first_difference
from eagle_jax.evaluation.time_split import seconds
from eagle_jax.generator import Generator
from eagle_jax.models.transformer import make_target
from experiments.bench.torch_baseline import torch_writer
from experiments.cli import methods
from experiments.cli.method_settings import MethodSettings

Writer = Callable[[list[int], int], list[int]]
"""(prompt, number of new tokens) -> tokens."""

QUESTIONS = (
    "Explain how a bicycle stays upright while it is moving.",
    "Write a Python function that returns the n-th Fibonacci number, and explain how it works.",
    "A farmer has 17 sheep, buys 8 more and sells 5. How many sheep does he have? Explain step by step.",
    "Write a short email to a colleague who has to miss a meeting tomorrow, and suggest another day.",
    "What are the main differences between a virus and a bacterium? Answer in a few paragraphs.",
    "Summarise in three sentences: the tortoise and the hare agreed to race. The hare, sure to win, lay down to sleep; "
    "the tortoise walked on without a pause, and when the hare woke up, the tortoise had already passed the mark.",
    "List five things to pack for a week of hiking in the mountains, with one reason for each.",
    "Tell the beginning of a story about a lighthouse keeper who finds a letter in a bottle on the beach.",
)
"""Prompts not used for tuning: usual chat messages, 40 to 90 tokens with the template."""


def peer_writers(target: str, model: LoadedModel) -> dict[str, Writer]:
    """All that are installed, by name; ours first.

    Raises:
      ValueError: another target than the one whose GGUF file comes with a package, or none of the peers is installed.
    """
    if target != SMOLLM2:
        raise ValueError(f"peers are compared on the GGUF file of {SMOLLM2}, got --target={target}")
    missing = [name for name in ("openvino_genai", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed: .venv/bin/python -m pip install -e '.[peers]'")
    writers = {
        "OpenVINO GenAI, float32": _openvino(f32=True),
        "OpenVINO GenAI, float32, prompt lookup": _openvino(f32=True, prompt_lookup=True),
    }
    writers["OpenVINO GenAI, its default precision"] = _openvino()
    writers["HF transformers, float32"] = torch_writer(model)
    writers["HF transformers, float32, prompt lookup"] = torch_writer(model, prompt_lookup_num_tokens=10)
    ours: dict[str, Writer] = {}
    for dtype in ("float32", "bfloat16"):
        loaded = model if dtype == "float32" else load_target(target, dtype, packed=True)
        for label, name in (("plain", "vanilla"), ("EAGLE-3", "eagle3")):
            name, settings = methods.with_tree(name, MethodSettings(dtype=dtype), loaded)
            drafter = methods.make_method(name, loaded, settings)
            ours[f"eagle_jax {label}, {dtype}"] = _writer(
                Generator(make_target(loaded.config), loaded.params, *drafter)
            )
    return {**ours, **writers}


def _writer(generator: Generator) -> Writer:
    return lambda prompt, count: generator.generate([prompt], max_new_tokens=count).tokens[0]


def _openvino(*, f32: bool = False, prompt_lookup: bool = False) -> Writer:
    """OpenVINO GenAI's pipeline over the GGUF file."""
    import openvino
    import openvino_genai

    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"} if f32 else {}
    options |= {"prompt_lookup": True} if prompt_lookup else {}
    pipeline = openvino_genai.LLMPipeline(str(smollm2_path()), "CPU", **options)
    config = openvino_genai.GenerationConfig()
    config.ignore_eos, config.do_sample = True, False
    if prompt_lookup:
        config.num_assistant_tokens, config.max_ngram_size = 10, 3

    def write(prompt: list[int], count: int) -> list[int]:
        config.max_new_tokens = count
        result = pipeline.generate(openvino.Tensor(np.array([prompt], np.int64)), config)
        return [int(token) for token in result.tokens[0]]

    return write


def compare(
    writers: dict[str, Writer], prompts: Sequence[list[int]], new_tokens: int, repeats: int
) -> tuple[list[str], list[list[object]]]:
    """Milliseconds to the first token, and for each further one: medians over prompts and repeats."""
    first: dict[str, list[float]] = {name: [] for name in writers}
    later: dict[str, list[float]] = {name: [] for name in writers}
    texts = {name: [write(prompt, new_tokens) for prompt in prompts] for name, write in writers.items()}
    for _ in range(repeats):
        for prompt in prompts:
            for name, write in writers.items():
                one, most = (1e3 * seconds(functools.partial(write, prompt, count)) for count in (1, new_tokens))
                first[name].append(one)
                later[name].append((most - one) / (new_tokens - 1))
    plain = next(iter(writers))
    header = ["", "ms a token", "ms to the first token", "ms a token over ours, plain", "texts equal to ours, plain"]
    rows: list[list[object]] = []
    base = statistics.median(later[plain])
    for name in writers:
        equal = sum(first_difference(a, b) is None for a, b in zip(texts[name], texts[plain], strict=True))
        cost = statistics.median(later[name])
        rows.append([name, cost, statistics.median(first[name]), cost / base, f"{equal}/{len(prompts)}"])
    return header, rows
