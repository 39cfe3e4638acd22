"""Drafting methods, one file each; the protocol is in `base`."""

from eagle_jax.drafters.base import Drafter, Observation
from eagle_jax.drafters.chain import make_chain
from eagle_jax.drafters.prompt_lookup import make_prompt_lookup
from eagle_jax.drafters.vanilla import make_vanilla

__all__ = ["Drafter", "Observation", "make_chain", "make_prompt_lookup", "make_vanilla"]
