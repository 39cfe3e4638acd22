"""Float32 is computed in float32 on every device; half precision decodes; dtypes that do not fit are named."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from eagle_jax.decode import Models, decode, prefill
from eagle_jax.drafters import (
    Drafter,
    make_chain,
    make_eagle1,
    make_eagle2,
    make_eagle3,
    make_prompt_lookup,
    make_vanilla,
)
from eagle_jax.evaluation.teacher_forced import accept_known
from eagle_jax.generator import Generator
from eagle_jax.kernels import packed
from eagle_jax.models.draft_head import HeadConfig, HeadParams, make_head
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import tiny_transformer
from eagle_jax.types import Params
from tests.test_program import equations

CONFIG, TARGET, PARAMS = tiny_transformer(vocab_size=48)
PROMPTS = [[5, 1, 5, 1], [*range(3, 40)], [7] * 9]
METHODS = ("prompt_lookup", "chain", "eagle", "eagle2", "eagle3")


def in_dtype(params: Params, dtype: str) -> Params:
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)


@functools.cache
def build(name: str, dtype: str) -> tuple[Drafter, Params]:
    """A drafter with weights of this dtype."""
    target = make_target(CONFIG)
    if name == "prompt_lookup":
        return make_prompt_lookup(3), ()
    if name == "chain":
        return make_chain(target, 3), in_dtype(PARAMS, dtype)
    taps = 3 if name == "eagle3" else 1
    kind: Any = "eagle3" if name == "eagle3" else "eagle"
    head = make_head(HeadConfig(kind=kind, layer=CONFIG, feature_width=CONFIG.width * taps), target)
    params = in_dtype(HeadParams(weights=nn.unbox(head.init(jax.random.key(2)))), dtype)
    if name == "eagle":
        return make_eagle1(head), params
    make = make_eagle2 if name == "eagle2" else make_eagle3
    return make(head, 12, 2, 4), params


@pytest.mark.parametrize("name", METHODS)
def test_products_in_full_precision(name: str) -> None:
    """Each matrix product of float32 numbers in both programs, those of the drafter too, says so."""
    drafter, params = build(name, "float32")
    sampling = make_sampling(1, temperature=1.0)
    text, length = jnp.zeros((1, 64), jnp.int32), jnp.ones(1, jnp.int32)
    models, read = Models(TARGET, drafter, PARAMS, params), functools.partial(prefill, chunk=8)
    state = jax.eval_shape(read, models, text, length, sampling)
    actual = 0
    for program in (
        jax.make_jaxpr(read)(models, text, length, sampling),
        jax.make_jaxpr(decode)(models, state, sampling, 1),
    ):
        for equation in equations(program.jaxpr):
            if equation.primitive.name == "dot_general":
                assert equation.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2, equation
                actual += 1
    assert actual > 40


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_half_precision(name: str, dtype: str, temperature: float) -> None:
    """Every method decodes, and teacher forcing has its rounds; a draft that is the target is nearly always right."""
    target, params = make_target(CONFIG), in_dtype(PARAMS, dtype)
    drafter, weights = build(name, dtype)
    settings = {"temperature": temperature, "seed": 4}
    generator = Generator(target, params, drafter, weights, capacity=128)
    written = generator.generate(PROMPTS, max_new_tokens=24, **settings)
    assert [len(tokens) for tokens in written.tokens] == [24] * 3
    assert all(0 <= token < CONFIG.vocab_size for tokens in written.tokens for token in tokens)
    forced = accept_known(target, params, drafter, weights, PROMPTS, written.tokens, **settings)
    assert written.tau == pytest.approx(forced.tau, rel=0.15)
    if name == "chain":
        assert written.tau > 3.2


@pytest.mark.parametrize("kernel", [True, False])
def test_draft_model_of_another_dtype(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches have the dtype of the target's activations; packed weights give float32 whatever they are stored in."""
    if not kernel:
        monkeypatch.setattr(packed.build, "available", lambda: False)
    drafter, params = build("chain", "bfloat16")
    generator = Generator(TARGET, PARAMS, drafter, params)
    if packed.build.available():
        assert generator.generate(PROMPTS).tokens == Generator(TARGET, PARAMS, make_vanilla()).generate(PROMPTS).tokens
    else:
        with pytest.raises(ValueError, match="activations of bfloat16, the cache is float32: load both alike"):
            generator.generate(PROMPTS)


def test_head_of_another_dtype() -> None:
    """Its products are computed in the dtype of the target's activations."""
    drafter, params = build("eagle3", "bfloat16")
    drafted = Generator(TARGET, PARAMS, drafter, params).generate(PROMPTS)
    assert drafted.tokens == Generator(TARGET, PARAMS, make_vanilla()).generate(PROMPTS).tokens
