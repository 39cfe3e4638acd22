"""Float32 is computed in float32 on every device; half precision decodes; dtypes that do not fit are named."""

import functools
from typing import Any, Literal

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
from eagle_jax.training.recipes.feature_recipe import FeatureConfig, make_feature_recipe
from eagle_jax.training.recipes.unroll_recipe import UnrollConfig, make_unroll_recipe
from eagle_jax.training.step import Frozen, OptimizerConfig, initial_state, make_optimizer, make_train_step
from eagle_jax.types import Params
from tests.test_program import equations
from tests.training import small

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
def test_products_of_half_precision_are_left_alone(name: str) -> None:
    """On a GPU a product with one row is no matrix product any more where full precision is asked for."""
    drafter, params = build(name, "bfloat16")
    models, read = Models(TARGET, drafter, in_dtype(PARAMS, "bfloat16"), params), functools.partial(prefill, chunk=8)
    rows = jnp.zeros((1, 64), jnp.int32), jnp.ones(1, jnp.int32), make_sampling(1, temperature=1.0)
    state = jax.eval_shape(read, models, *rows)
    for program in (jax.make_jaxpr(read)(models, *rows), jax.make_jaxpr(decode)(models, state, rows[-1], 1)):
        products = [one for one in equations(program.jaxpr) if one.primitive.name == "dot_general"]
        assert len(products) > 20
        halves = [one for one in products if one.invars[0].aval.dtype == jnp.bfloat16]
        assert len(halves) > 10
        assert {one.params["precision"] for one in halves} == {None}


@pytest.mark.parametrize("kind", small.KINDS)
def test_training_in_full_precision(kind: Literal["eagle", "eagle3"]) -> None:
    """Loss, gradients and the target's features."""
    head, params, vocabulary = small.head(kind)
    _, target, target_params = small.model()
    make_recipe = {
        "eagle": lambda: make_feature_recipe(head, FeatureConfig()),
        "eagle3": lambda: make_unroll_recipe(head, UnrollConfig(num_steps=2)),
    }
    recipe = make_recipe[kind]()
    optimizer, _ = make_optimizer(OptimizerConfig(steps=2))
    state = initial_state({"weights": params.weights}, optimizer, recipe.num_steps)
    rows = dict(vars(small.batch_of([small.document(0, 20, 6)], 24)))
    program = jax.make_jaxpr(make_train_step(recipe, target, optimizer))(state, Frozen(target_params, vocabulary), rows)
    products = [one for one in equations(program.jaxpr) if one.primitive.name == "dot_general"]
    assert len(products) > 60
    assert {one.params["precision"] for one in products} == {(jax.lax.Precision.HIGHEST,) * 2}


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
    forced = accept_known(Models(target, drafter, params, weights), PROMPTS, written.tokens, **settings)
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
