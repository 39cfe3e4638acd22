"""Which hidden states of its target a head fuses: layers by number, and as parts of what a target returns."""

from collections.abc import Sequence

from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HeadConfig


def parts_of(target: ModelConfig, layers: Sequence[int]) -> tuple[int, ...]:
    """`HeadConfig.parts` of a head that fuses the hidden states entering some layers of its target.

    Args:
      target: shape of the target.
      layers: in the order of fusion; their number stands for the last hidden state, which comes out of the final norm.
        An empty sequence is the target's taps.

    Raises:
      ValueError: a hidden state that the target does not give.
    """
    given = (*target.taps, target.num_layers)
    if tuple(layers) == target.taps:
        return ()
    if not set(layers) <= set(given):
        raise ValueError(
            f"the head reads the inputs of layers {list(layers)}, the target gives {list(target.taps)} and"
            f" {target.num_layers}, its last hidden state"
        )
    return tuple(map(given.index, layers))


def layers_of(config: HeadConfig, target: ModelConfig) -> tuple[int, ...]:
    """The layers whose inputs a head fuses, as `parts_of` takes them."""
    return tuple((*target.taps, target.num_layers)[part] for part in config.parts) or target.taps
