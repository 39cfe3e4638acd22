"""Draft-tree speculative decoding in JAX: EAGLE, EAGLE-2, EAGLE-3 and their peers, exact at any temperature."""

from eagle_jax.checkpoint.distilled import load_pretrained_draft
from eagle_jax.checkpoint.pretrained import LoadedModel, load_pretrained_head, load_target
from eagle_jax.continuous import write_all
from eagle_jax.drafters import (
    Drafter,
    make_chain,
    make_eagle1,
    make_eagle2,
    make_eagle3,
    make_lookahead,
    make_ouroboros,
    make_prompt_lookup,
    make_vanilla,
)
from eagle_jax.generator import Generation, Generator
from eagle_jax.models.draft_head import make_head
from eagle_jax.models.transformer import make_target
from eagle_jax.sampling import SamplingConfig
from eagle_jax.sharding import make_mesh
from eagle_jax.types import DraftTree, Sampling, Target, Verdict

__all__ = [
    "DraftTree",
    "Drafter",
    "Generation",
    "Generator",
    "LoadedModel",
    "Sampling",
    "SamplingConfig",
    "Target",
    "Verdict",
    "load_pretrained_draft",
    "load_pretrained_head",
    "load_target",
    "make_chain",
    "make_eagle1",
    "make_eagle2",
    "make_eagle3",
    "make_head",
    "make_lookahead",
    "make_mesh",
    "make_ouroboros",
    "make_prompt_lookup",
    "make_target",
    "make_vanilla",
    "write_all",
]
