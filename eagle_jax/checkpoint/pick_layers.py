"""A smaller model out of a target's own layers: a draft model that nobody had to train, or the start of one."""

import dataclasses
from collections.abc import Sequence

from eagle_jax.models.config import ModelConfig
from eagle_jax.types import Params


def truncate_layers(config: ModelConfig, params: Params, num_layers: int) -> tuple[ModelConfig, Params]:
    """The first `num_layers` layers of a model with its embedding, final norm and LM head: a draft from the target.

    The arrays are shared, not copied.
    """
    if not 1 <= num_layers <= config.num_layers:
        raise ValueError(f"cannot keep {num_layers} layers of a model with {config.num_layers}: 1 or more, at most all")
    return pick_layers(config, params, range(num_layers))


def pick_layers(config: ModelConfig, params: Params, layers: Sequence[int]) -> tuple[ModelConfig, Params]:
    """Some layers of a model with its embedding, final norm and LM head; the arrays are shared, not copied.

    Args:
      config, params: the model.
      layers: which, in ascending order, counted from the end where negative.

    Raises:
      ValueError: no layers, one that is not there, or another order.
    """
    places = [layer + config.num_layers if layer < 0 else layer for layer in layers]
    if not places or places != sorted(set(places)) or not 0 <= places[0] <= places[-1] < config.num_layers:
        raise ValueError(f"layers must be ascending and among the model's {config.num_layers}, got {list(layers)}")
    picked = {name: value for name, value in params.items() if not name.startswith("layers_")}
    picked |= {f"layers_{new}": params[f"layers_{old}"] for new, old in enumerate(places)}
    windows = tuple(config.window(layer) for layer in places) if config.windows else ()
    experts = config.experts
    if experts is not None:
        dense = tuple(new for new, old in enumerate(places) if old in experts.dense_layers)
        experts = dataclasses.replace(experts, dense_layers=dense)
    few = dataclasses.replace(config, num_layers=len(places), windows=windows, experts=experts, tap_layers=())
    return few, picked
