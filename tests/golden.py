"""Reads the fixtures of `tests/data/golden`: targets, heads, and what the official code computes with them."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from eagle_jax.checkpoint.heads import load_head
from eagle_jax.checkpoint.hf import load_config, load_params
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import Head, HeadParams, make_head
from eagle_jax.models.transformer import make_target
from eagle_jax.types import Params, Target
from tests.xla import fusion_emitters

GOLDEN = Path(__file__).parent / "data" / "golden"
SEEDS = (0, 1, 2)
HEADS = [f"seed{seed}/{path.name}" for seed in SEEDS for path in sorted((GOLDEN / f"seed{seed}").glob("eagle*"))]
"""Every head with a random target; those in `generate` were fitted to theirs."""

QUICK = {"xla_backend_optimization_level": 0, **fusion_emitters(False)}
"""Compiler options for programs that run a few times on tiny arrays: a quarter of the time to compile."""


def results(path: str) -> dict[str, np.ndarray]:
    """The arrays of an npz file."""
    with np.load(GOLDEN / path) as stored:
        return dict(stored)


@functools.cache
def target(seed: int) -> tuple[ModelConfig, Target, Params]:
    """The Llama of a seed."""
    folder = GOLDEN / f"seed{seed}" / "target_llama"
    config = load_config(folder)
    return config, make_target(config), jax.tree.map(jnp.asarray, load_params(folder, config))


@functools.cache
def head(name: str) -> tuple[Head, HeadParams]:
    """A head, such as `seed1/eagle3_full`."""
    config, target_functions, _ = target(seed_of(name))
    head_config, params = load_head(GOLDEN / name, config)
    return make_head(head_config, target_functions), jax.tree.map(jnp.asarray, params)


def seed_of(name: str) -> int:
    """`seed1/...` -> 1."""
    return int(name.split("/")[0].removeprefix("seed"))
