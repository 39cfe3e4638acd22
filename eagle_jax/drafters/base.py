"""The protocol of a drafting method: a few pure functions around a state of its own.

In a round the drafter proposes a tree, the target verifies it, and the drafter observes the result. Whatever a method
needs besides its weights is in its state, a pytree that the decoding loop carries and never inspects.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import struct
from jax.typing import DTypeLike

from eagle_jax.types import DraftTree, Params, TargetOutput, any_weights

DrafterState = Any
"""A pytree; its arrays have the batch as first axis."""


@struct.dataclass
class Observation:
    """Tokens added to the text, in a round or during prefill, and the pass that computed them.

    Row b gained `count[b]` tokens in the target's cache, at positions length[b], length[b] + 1, ...; `output` at
    `path[b, i]` belongs to the i-th of them. `text` already holds the token after each.
    """

    text: jax.Array  # i32[B, S], the complete text, its newest token included
    length: jax.Array  # i32[B], tokens in the target's cache before
    output: TargetOutput
    path: jax.Array  # i32[B, P], or [B, C] during prefill; indices into the T rows of `output`
    count: jax.Array  # i32[B], 0 where a row had finished
    tree: DraftTree | None = None  # the tree that was verified; None during prefill
    choice: jax.Array | None = None  # i32[B, N], the target's token after each node, noise included if shared


class Size(NamedTuple):
    """A size that a user may choose: a keyword of the method's factory, which has the default."""

    name: str
    help: str
    least: int = 1


class Drafter(NamedTuple):
    """A drafting method. Build one with a cached factory, so that equal settings give the same object."""

    name: str
    nodes: int
    """Tree slots N, the root included."""
    max_depth: int
    """Depth of the deepest node, the root at 0."""
    init: Callable[[int, int, DTypeLike], DrafterState]
    """(batch, capacity, dtype of the target's activations) -> the state before the first prompt token."""
    propose: Callable[[Params, Params, DrafterState, jax.Array, jax.Array, jax.Array], tuple[DraftTree, DrafterState]]
    """(params, target_params, state, text i32[B,S], length i32[B], noise f32[B,P,V]) -> the tree and a new state. The
    root is `text` at `length`. The drafter adds `noise[:, d]` to the logits of nodes at depth d: temperature times the
    Gumbel noise of the next position, or zero for a plain top-k draft."""
    observe: Callable[[Params, Params, DrafterState, Observation], DrafterState]
    """(params, target_params, state, observation) -> the state for the next round."""
    top_k: int = 1
    """The most candidate children of a node."""
    deepest: int | None = None
    """Depth of the deepest node that can be accepted, where that is not `max_depth`."""
    learns_from_refused: bool = False
    """`observe` reads the target's choices after rejected nodes, which cannot be recovered from the text."""
    unread: tuple[int, ...] = ()
    """Nodes whose choice is not used: no logits are computed for them, and `Observation.choice` is NO_TOKEN there."""
    needs: str = ""
    """What its weights are, for the error where they are missing; "" for a method without weights."""
    check: Callable[[Params], None] = any_weights
    """(params) -> nothing; ValueError for weights of another head or draft model."""
    draws: bool = False
    """Whether `verify.residual` may use q: children are argmax samples of logits plus noise or `DraftTree.fixed`,
    whether one is dropped does not depend on its token, and `draft_logits` is filled."""
    own_noise: int = 0
    """Where drawn children may be dropped: how many nodes draw one in a round. `propose` then gets noise
    f32[B, own_noise, V] of that round alone, a vector for each of them, and the rule must be `residual`."""

    @property
    def most_accepted(self) -> int:
        """Drafted tokens that a round can accept."""
        return self.max_depth if self.deepest is None else self.deepest


def stateless(batch: int, capacity: int, dtype: DTypeLike) -> DrafterState:
    """`init` of a drafter without a state."""
    del batch, capacity, dtype
    return ()


def forget(params: Params, target_params: Params, state: DrafterState, observation: Observation) -> DrafterState:
    """`observe` of a drafter without a state."""
    del params, target_params, observation
    return state
