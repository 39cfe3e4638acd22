"""Drafting methods, one file each; the protocol is in `base`."""

from eagle_jax.drafters.base import Drafter, Observation
from eagle_jax.drafters.chain import make_chain
from eagle_jax.drafters.eagle1 import make_eagle1
from eagle_jax.drafters.eagle2 import make_eagle2
from eagle_jax.drafters.eagle3 import make_eagle3
from eagle_jax.drafters.lookahead import make_lookahead
from eagle_jax.drafters.one_pass import make_one_pass
from eagle_jax.drafters.ouroboros import make_ouroboros
from eagle_jax.drafters.prompt_lookup import make_prompt_lookup
from eagle_jax.drafters.vanilla import make_vanilla

__all__ = [
    "Drafter",
    "Observation",
    "make_chain",
    "make_eagle1",
    "make_eagle2",
    "make_eagle3",
    "make_lookahead",
    "make_one_pass",
    "make_ouroboros",
    "make_prompt_lookup",
    "make_vanilla",
]
