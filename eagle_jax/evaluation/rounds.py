"""Rounds of a real generation, one by one: the tree that was drafted and what became of it.

The drafter is wrapped so that it remembers what it was shown last; `prefill` and `decode` run as they are. So these are
the rounds of the very decoding, not of a copy of it.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import DTypeLike

from eagle_jax.decode import Models, decode, prefill
from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.generator import Generator
from eagle_jax.sampling import make_sampling
from eagle_jax.types import NO_NODE, NO_PARENT, DraftTree, Params, Verdict


@struct.dataclass
class Seen:
    """What a drafter was shown after the last round."""

    tree: DraftTree  # without logits
    path: jax.Array  # i32[B, P]
    choice: jax.Array  # i32[B, N]
    wider: DraftTree | None = None  # what a drafter with more nodes would have drafted


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of one row; arrays are numpy's and have no batch axis."""

    text: list[int]  # prompt and answer before the round; the root of the tree is its last token
    tree: DraftTree  # fields [N]
    verdict: Verdict  # path [P], numbers
    choice: np.ndarray  # i32[N], the target's token behind each node
    written: list[int]  # tokens that joined the text: the accepted ones and the next one, less where the answer ended
    wider: DraftTree | None = None  # the tree of `rounds(wider=...)`, fields [its own N]


@functools.cache
def observing(drafter: Drafter, wider: Drafter | None = None) -> Drafter:
    """The same drafter, whose state is a pair: its own, and what it was shown after the last round.

    `wider` is the same method with more nodes: it drafts beside, from the same state, and what it drafts is kept too.
    """

    def init(batch: int, capacity: int, dtype: DTypeLike) -> DrafterState:
        path = jnp.full((batch, drafter.max_depth + 1), NO_NODE, jnp.int32)
        tree, choice = _no_tree(batch, drafter), jnp.zeros((batch, drafter.nodes), jnp.int32)
        return drafter.init(batch, capacity, dtype), Seen(
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
        own, seen = drafter.observe(params, target_params, state[0], observation), state[1]
        if observation.tree is not None and observation.choice is not None:
            tree = dataclasses.replace(observation.tree, draft_logits=None)
            seen = Seen(tree, observation.path, observation.choice, seen.wider)
        return own, seen

    return drafter._replace(init=init, propose=propose, observe=observe)


def _no_tree(batch: int, drafter: Drafter) -> DraftTree:
    """What stands for a tree before the first round."""
    zeros = jnp.zeros((batch, drafter.nodes), jnp.int32)
    return DraftTree(
        tokens=zeros,
        parents=jnp.full_like(zeros, NO_PARENT),
        candidate=zeros.astype(bool),
        log_values=zeros.astype(jnp.float32),
        max_depth=drafter.max_depth,
    )


def rounds(
    generator: Generator, prompt: Sequence[int], num_rounds: int, *, wider: Drafter | None = None, **sampling: Any
) -> list[Round]:
    """The first rounds of an answer; fewer where it ends.

    Args:
      generator: the method; its `rule` and `share_noise` count.
      prompt: token ids.
      num_rounds: at most so many, from the first on.
      wider: the generator's method with more nodes; its trees show what re-ranking dropped (`tree_layout`).
      **sampling: as `make_sampling` takes it.

    Raises:
      ValueError: the text does not fit into the generator's capacity, a sampling value out of range, or a wider drafter
        of another depth.
    """
    if wider is not None and wider.max_depth != generator.drafter.max_depth:
        raise ValueError(
            f"the wider drafter must be as deep as the other, {generator.drafter.max_depth}, got {wider.max_depth}"
        )
    drafter = observing(generator.drafter, wider)
    settings = make_sampling(1, **sampling)
    text = np.zeros((1, generator.slots([prompt], settings)), np.int32)
    text[0, : len(prompt)] = prompt
    models = Models(generator.target, drafter, generator.target_params, generator.drafter_params)
    state = prefill(
        models, jnp.asarray(text), jnp.array([len(prompt)], jnp.int32), settings, chunk=generator.prefill_chunk
    )
    found: list[Round] = []
    while len(found) < num_rounds and not bool(state.done[0]):
        length = int(state.cache.length[0])
        before = np.asarray(state.text[0, : length + 1]).tolist()
        state = decode(models, state, settings, 1, rule=generator.rule, share_noise=generator.share_noise)
        written = np.asarray(state.text[0, length + 1 : int(state.cache.length[0]) + 1]).tolist()
        found.append(_round(before, jax.tree.map(lambda x: np.asarray(x[0]), state.drafter[1]), written))
    return found


def _round(text: list[int], seen: Seen, written: list[int]) -> Round:
    num_accepted: Any = np.int32((seen.path != NO_NODE).sum() - 1)
    # Under the rule `residual` the next token is not the choice; where the answer was cut off nothing else is known.
    last: Any = np.int32(written[-1] if len(written) > num_accepted else seen.choice[seen.path[num_accepted]])
    verdict = Verdict(path=seen.path, num_accepted=num_accepted, next_token=last)
    return Round(text, seen.tree, verdict, np.asarray(seen.choice), written, seen.wider)
