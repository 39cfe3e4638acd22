"""Rounds of a real generation, one by one: the tree that was drafted and what became of it.

The drafter is wrapped so that its state holds what it observed last, and the generator runs one round at a time. So
these are the rounds of decoding itself, on a mesh too, not of a copy of it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike

from eagle_jax.decode import DecodeState
from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.generator import Generator
from eagle_jax.sampling import SamplingOptions
from eagle_jax.sharding import to_host
from eagle_jax.types import NO_NODE, NO_PARENT, DraftTree, Params, Verdict


@struct.dataclass
class Observed:
    """What a drafter observed in the last round."""

    tree: DraftTree  # without logits
    path: jax.Array  # i32[B, P]
    choice: jax.Array  # i32[B, N]
    wider: DraftTree | None = None  # what the drafter beside would have drafted


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of one row; arrays are numpy's and have no batch axis."""

    text: list[int]  # prompt and answer before the round; the root of the tree is its last token
    tree: DraftTree  # fields [N]
    verdict: Verdict  # path [P], numbers
    choice: np.ndarray  # i32[N], the target's token after each node
    written: list[int]  # tokens that joined the text: the accepted ones and the next one, less where the answer ended
    wider: DraftTree | None = None  # the tree of `rounds(wider=...)`, fields [its own N]


@functools.cache
def observing(drafter: Drafter, wider: Drafter | None = None) -> Drafter:
    """The same drafter, whose state is a pair: its own, and what it observed in the last round.

    `wider` is a drafter of the same state and weights: it drafts beside, and its tree is stored too.
    """

    def init(batch: int, capacity: int, dtype: DTypeLike) -> DrafterState:
        path = jnp.full((batch, drafter.max_depth + 1), NO_NODE, jnp.int32)
        tree, choice = _no_tree(batch, drafter), jnp.zeros((batch, drafter.nodes), jnp.int32)
        return drafter.init(batch, capacity, dtype), Observed(
            tree, path, choice, None if wider is None else _no_tree(batch, wider)
        )

    def propose(
        params: Params, target_params: Params, state: DrafterState, *rest: jax.Array
    ) -> tuple[DraftTree, DrafterState]:
        tree, own = drafter.propose(params, target_params, state[0], *rest)
        if wider is None:
            return tree, (own, state[1])
        more = wider.propose(params, target_params, state[0], *rest)[0]
        return tree, (own, dataclasses.replace(state[1], wider=dataclasses.replace(more, draft_logits=None)))

    def observe(params: Params, target_params: Params, state: DrafterState, observation: Observation) -> DrafterState:
        own, last = drafter.observe(params, target_params, state[0], observation), state[1]
        if observation.tree is not None and observation.choice is not None:
            tree = dataclasses.replace(observation.tree, draft_logits=None)
            last = Observed(tree, observation.path, observation.choice, last.wider)
        return own, last

    return drafter._replace(init=init, propose=propose, observe=observe)


def _no_tree(batch: int, drafter: Drafter) -> DraftTree:
    """A tree for the state before the first round."""
    zeros = jnp.zeros((batch, drafter.nodes), jnp.int32)
    return DraftTree(
        tokens=zeros,
        parents=jnp.full_like(zeros, NO_PARENT),
        candidate=zeros.astype(bool),
        log_values=zeros.astype(jnp.float32),
        max_depth=drafter.max_depth,
    )


def rounds(
    generator: Generator,
    prompt: Sequence[int],
    num_rounds: int,
    *,
    wider: Drafter | None = None,
    **sampling: Unpack[SamplingOptions],
) -> list[Round]:
    """The first rounds of an answer; fewer where it ends.

    Args:
      generator: the method, its rule and its mesh.
      prompt: token ids.
      num_rounds: at most so many, from the first on.
      wider: a drafter of the same state and weights that drafts beside: the method with more nodes, whose trees show
        what re-ranking dropped (`figures.layout`), or `slot_lists.make_slot_lists`.
      **sampling: as `make_sampling` takes it.

    Raises:
      ValueError: the text does not fit into the generator's capacity, a sampling value out of range, or a wider drafter
        of another depth.
    """
    if wider is not None and wider.max_depth != generator.drafter.max_depth:
        raise ValueError(
            f"the wider drafter must be as deep as the other, {generator.drafter.max_depth}, got {wider.max_depth}"
        )
    generator = dataclasses.replace(generator, drafter=observing(generator.drafter, wider))
    settings = generator.check([prompt], **sampling)
    state = generator.start([prompt], settings)
    text, done, last = _row(state)
    played: list[Round] = []
    while len(played) < num_rounds and not done:
        before = text
        state = generator.advance(state, settings, 1)
        text, done, last = _row(state)
        played.append(_round(before, last, text[len(before) :]))
    return played


def _row(state: DecodeState) -> tuple[list[int], bool, Observed]:
    """The only row of a state, on the host: its text up to the newest token, whether it is done, the last round."""
    text, length, done, last = jax.tree.map(
        lambda x: np.array(to_host(x)[0]), (state.text, state.cache.length, state.done, state.drafter[1])
    )
    return text[: length + 1].tolist(), bool(done), last


def _round(text: list[int], last: Observed, written: list[int]) -> Round:
    num_accepted: Any = np.int32((last.path != NO_NODE).sum() - 1)
    # Under the rule `residual` the next token is not the choice; where the answer was cut off nothing else is known.
    next_token: Any = np.int32(written[-1] if len(written) > num_accepted else last.choice[last.path[num_accepted]])
    verdict = Verdict(path=last.path, num_accepted=num_accepted, next_token=next_token)
    return Round(text, last.tree, verdict, np.asarray(last.choice), written, last.wider)
