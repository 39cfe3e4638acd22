"""The norms and layers of heads that speculators trains, against a slow twin: while decoding and in training."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.checkpoint.heads import load_head, save_head
from eagle_jax.drafters import make_eagle3
from eagle_jax.drafters.base import Observation
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.testing import tiny_transformer
from eagle_jax.training.unroll import unroll
from eagle_jax.types import TargetOutput
from tests.checkpoint.heads import random_head
from tests.reference.draft_head import DraftHead
from tests.tolerance import assert_close, head_terms
from tests.training import small

LENGTH, CAPACITY, STEPS = 11, 32, 4

VARIANTS: dict[str, dict[str, Any]] = {
    "EAGLE-3": {},
    "residual": {"norm_before_residual": True},
    "before fc": {"norm_before_fc": True},
    "3.1": {"fc_norm": True, "norm_output": True},
    "all of speculators": {"norm_before_residual": True, "norm_before_fc": True, "norm_output": True},
    "Qwen3's layer": {"norm_before_residual": True, "qk_norm": True},
    "window": {"norm_before_residual": True, "window": 4},
}


def stored(
    folder: Path, *, qk_norm: bool = False, window: int | None = None, **flags: Any
) -> tuple[HeadConfig, HeadParams, DraftHead, Any]:
    """A random head, written and read back, its twin, and the target's weights."""
    target, _, target_params = tiny_transformer(num_layers=7, qk_norm=qk_norm)
    config, params = random_head("eagle3", target, **flags)
    config = dataclasses.replace(config, layer=dataclasses.replace(config.layer, windows=(window,) if window else ()))
    save_head(folder / "head", config, params, target, dtype="float32", engine="speculators", verifier="owner/model")
    again, reloaded = load_head(folder / "head", target)
    assert again == config
    return config, reloaded, DraftHead(folder / "head", np.asarray(target_params["embed_tokens"])), target_params


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_drafted_chain(variant: str, tmp_path: Path) -> None:
    """Tokens and confidence of a chain that the drafter proposes after it has observed a text."""
    config, params, twin, target_params = stored(tmp_path, **VARIANTS[variant])
    _, target, _ = tiny_transformer(num_layers=7, qk_norm="qk_norm" in VARIANTS[variant])
    rng = np.random.default_rng(1)
    text = rng.integers(0, config.layer.vocab_size, LENGTH + 1).astype(np.int32)
    taps = rng.standard_normal((LENGTH, config.feature_width)).astype(np.float32)
    drafter = make_eagle3(make_head(config, target), STEPS + 1, STEPS - 1, 1)
    observation = Observation(
        text=jnp.asarray(np.pad(text, (0, CAPACITY - len(text)))[None]),
        length=jnp.array([0]),
        output=TargetOutput(jnp.zeros((1, LENGTH, config.target_width)), jnp.asarray(taps[None]), (), ()),
        path=jnp.arange(LENGTH)[None],
        count=jnp.array([LENGTH]),
    )

    @jax.jit
    def propose(params: HeadParams) -> Any:
        state = drafter.observe(params, target_params, drafter.init(1, CAPACITY, "float32"), observation)
        noise = jnp.zeros((1, drafter.max_depth + 1, config.layer.vocab_size))
        return drafter.propose(params, target_params, state, observation.text, jnp.array([LENGTH]), noise)[0]

    tree = propose(params)
    state = twin.read(taps, text[1:])
    drafted, log_values, value = [], [], 0.0
    for _ in range(STEPS):
        log_probabilities = twin.log_probabilities(twin.chain(state, drafted)[-1] if drafted else state)
        best = int(log_probabilities.argmax())
        value += float(log_probabilities[best])
        drafted.append(int(params.target_ids[best]))
        log_values.append(value)
    assert tree.tokens[0].tolist() == [text[-1], *drafted]
    terms = head_terms(config, LENGTH + STEPS, STEPS) + len(params.lm_head)
    assert_close(tree.log_values[0, 1:], np.array(log_values), terms)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "window"])
def test_unrolled_chains(variant: str, tmp_path: Path) -> None:
    """What training computes along every chain; heads are trained without a window."""
    config, params, twin, target_params = stored(tmp_path, **VARIANTS[variant])
    _, target, _ = tiny_transformer(num_layers=7, qk_norm="qk_norm" in VARIANTS[variant])
    example = small.document(0, LENGTH + STEPS, 2)
    batch = small.batch_of([example], 16)
    rng = np.random.default_rng(2)
    taps = rng.standard_normal((1, 16, config.feature_width)).astype(np.float32)
    head = make_head(config, target)
    states = jax.jit(lambda taps: unroll(head, params, target_params, batch, taps, batch.slots, STEPS))(taps)
    for row, slot in list(enumerate(example.slots))[: -STEPS + 1 : 3]:
        reader = DraftHead(tmp_path / "head", twin.embedding)
        first = reader.read(taps[0, : slot + 1], example.tokens[1 : slot + 2])
        chain = reader.chain(first, example.tokens[slot + 2 : slot + 1 + STEPS])
        for step, wanted in enumerate([first, *chain]):
            assert_close(states[step][0, row], wanted, head_terms(config, LENGTH + STEPS, step + 1))


def test_every_variant_computes_something_else(tmp_path: Path) -> None:
    """A twin that ignored a flag as the head does would prove nothing."""
    taps = np.random.default_rng(3).standard_normal((3, 96))
    found = []
    for number, variant in enumerate(VARIANTS.values()):
        *_, twin, _ = stored(tmp_path / str(number), **{**variant, "window": 2 if "window" in variant else None})
        found.append(twin.log_probabilities(twin.read(taps, np.array([5, 6, 7]))))
    assert len(np.unique(np.round(found, 6), axis=0)) == len(VARIANTS)
