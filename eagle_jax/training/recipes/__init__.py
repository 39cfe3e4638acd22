"""The recipes of draft heads by name, and which of them train which kind of head.

A training config may name its recipe (`config.recipe.name`); without a name it is the first of the head's kind, so that
configs and runs from before recipes had names go on as they were.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from eagle_jax.models.block_head import BlockHead
from eagle_jax.models.draft_head import Head
from eagle_jax.training.recipes.block_recipe import BlockConfig, make_block_recipe
from eagle_jax.training.recipes.feature_recipe import FeatureConfig, make_feature_recipe
from eagle_jax.training.recipes.unroll_recipe import UnrollConfig, make_unroll_recipe
from eagle_jax.training.records import Recipe


class HeadRecipe(NamedTuple):
    """One recipe."""

    config: type[Any]  # the dataclass of its knobs
    make: Callable[[Any, Any], Recipe]  # (head as functions, config) -> the recipe


RECIPES: dict[str, HeadRecipe] = {
    "feature": HeadRecipe(FeatureConfig, make_feature_recipe),
    "unroll": HeadRecipe(UnrollConfig, make_unroll_recipe),
    "block": HeadRecipe(BlockConfig, make_block_recipe),
}

RECIPES_OF_KIND: dict[str, tuple[str, ...]] = {
    "eagle": ("feature", "unroll"),
    "eagle3": ("unroll",),
    "one_pass": ("block",),
}
"""By the kinds of `models.draft_head.HEAD_KINDS`: the recipes that can train such a head, its default first."""


def make_head_recipe(head: Head | BlockHead, settings: Mapping[str, Any]) -> Recipe:
    """The recipe for one head.

    Args:
      head: the head.
      settings: knobs of the recipe; `name` may say which one.

    Raises:
      ValueError: a recipe that does not train this kind of head, a knob that it does not have, or a value out of range.
    """
    knobs, names = dict(settings), RECIPES_OF_KIND[head.config.kind]
    name = knobs.pop("name", names[0])
    if name not in names:
        raise ValueError(f"a head of kind {head.config.kind} is trained by {' or '.join(names)}, got recipe {name!r}")
    recipe = RECIPES[name]
    known = [field.name for field in dataclasses.fields(recipe.config)]
    unknown = sorted(knobs.keys() - set(known))
    if unknown:
        raise ValueError(f"the recipe {name} has no knob {unknown[0]!r}; known: {', '.join(known)}")
    return recipe.make(head, recipe.config(**knobs))
