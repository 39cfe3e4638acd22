"""What the slots of a one-pass head would draft each for itself, before edges and values make a tree of it.

    root ─ a1 ─ a2 ─ a3      the best tokens of slot i stand at depth i + 1, with the slot's own confidence,
         ╲ b1 ╲ b2 ╲ b3      all below the best of the slot before: as a tree they can be recorded and drawn

The drafter made here is for `rounds.rounds(wider=...)`: it drafts beside the one whose rounds are played, from the
same state and with the same noise.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from eagle_jax.drafters import one_pass
from eagle_jax.drafters.base import Drafter
from eagle_jax.drafters.best_first import ChildTables
from eagle_jax.drafters.one_pass import BlockState, TreeSettings, make_one_pass
from eagle_jax.models.block_head import BlockHead
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.tree import root_of
from eagle_jax.types import NO_PARENT, DraftTree, Params


@functools.cache
def make_slot_lists(head: BlockHead, depth: int, count: int, noise_level: int = 1) -> Drafter:
    """The `count` best tokens of each of `depth` + 1 slots; arguments as `make_one_pass`.

    Raises:
      ValueError: more positions than the head drafts, or no tokens.
    """
    sizes: dict[str, Any] = {"nodes": 2, "depth": depth, "top_k": count, "noise_level": noise_level}
    sizes |= {"edges": False, "beam": 1, "predecessors": 1, "shortlist": count, "spine": False}
    drafter, settings = make_one_pass(head, **sizes), TreeSettings(**sizes)

    def propose(
        params: HeadParams,
        target_params: Params,
        state: BlockState,
        text: jax.Array,
        length: jax.Array,
        noise: jax.Array,
    ) -> tuple[DraftTree, BlockState]:
        root = root_of(text, length)
        listed = one_pass.shortlists(head, params, target_params, state, root, noise, settings)
        return lists_as_tree(one_pass.child_tables(head, params, root, listed, settings), root), state

    return drafter._replace(name="slot_lists", nodes=1 + (depth + 1) * count, propose=propose)


def lists_as_tree(tables: ChildTables, root: jax.Array) -> DraftTree:
    """The children of the first row of each depth, below the first child of the depth before; `root` i32[B]."""
    tokens, scores = tables.tokens[:, :, 0], tables.scores[:, :, 0]  # [B, D, k]
    batch, depth, count = tokens.shape
    above = jnp.cumsum(scores[:, :, :1], axis=1) - scores[:, :, :1]
    first = jnp.maximum(1 + (jnp.arange(depth) - 1) * count, 0)  # node of the first token of the depth before
    parents = jnp.concatenate([jnp.array([NO_PARENT]), jnp.repeat(first, count)])
    return DraftTree(
        tokens=jnp.concatenate([root[:, None], tokens.reshape(batch, -1)], axis=1),
        parents=jnp.broadcast_to(parents, (batch, 1 + depth * count)).astype(jnp.int32),
        candidate=jnp.ones((batch, 1 + depth * count), bool),
        log_values=jnp.pad((above + scores).reshape(batch, -1), ((0, 0), (1, 0))),
        max_depth=depth,
    )
