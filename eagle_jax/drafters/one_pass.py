"""One pass, one tree: a draft head that guesses a block of positions at once, and the tree that is made of its guesses.

The head is read once a round (DFlash, arXiv 2602.06036; causal in its block as JetSpec, arXiv 2606.18394). Slot i of
the block gives base logits of the token at a + i + 1, where the root stands at a; they do not depend on which branch of
the tree is continued. Branches come from edges: low-rank scores of a token after its predecessor (DSpark,
arXiv 2607.05147), so that a depth needs no pass of its own. Nothing is V wide but the base logits:

    shortlist S_d      tokens of depth d that may stand in the tree: the best by base logits + noise
    predecessors P_d   those of S_d below which the tree may go on
    edges              base[S_d] + edges(P_{d-1}, S_d), of which the best top_k are the children of each predecessor
    confidence         softmax of that, over S_d and one cell that holds the mass of all other tokens by base logits

    slot              0          1          2               children of the root: edges(root, S_1)
    position          a + 1      a + 2      a + 3           below b in P_1: edges(b, S_2)
    depth of its nodes 1         2          3

`best_first` makes a tree of the tables. Without edges all nodes of a depth have the same children: the tree of DDTree
(arXiv 2604.12989).

Shared noise decides in three places, one more with each noise level: 0, which tokens are listed and selected as
children; 1, their confidence too; 2, predecessors too. At temperature 0 there is no noise, and all levels are one.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike

from eagle_jax.cache import commit, init_cache
from eagle_jax.drafters import best_first
from eagle_jax.drafters.base import Drafter, Observation, Size
from eagle_jax.drafters.best_first import NO_ROW, ChildTables
from eagle_jax.drafters.head import features_along, newest_of
from eagle_jax.models.block_head import BlockHead
from eagle_jax.models.draft_head import HeadParams
from eagle_jax.sampling import top_k_rows
from eagle_jax.tree import root_of
from eagle_jax.types import DraftTree, KVCache, Params

SIZES = (
    Size("edges", "children depend on the node above; else they are the same below all nodes of a depth", least=0),
    Size("noise_level", "shared noise decides 0 children, 1 confidence too, 2 predecessors too", least=0),
    Size("predecessors", "tokens of a depth that have children, at most"),
    Size("spine", "the chain of first children is in the tree in any case", least=0),
)
"""Settings beside the tree's sizes that a user may choose."""

NOISE_LEVELS = (0, 1, 2)
"""What shared noise decides: children; and their confidence; and predecessors."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeSettings:
    """How a tree is made of the outputs of one pass; the fields are the arguments of `make_one_pass`."""

    nodes: int
    depth: int
    top_k: int
    edges: bool
    noise_level: int
    beam: int
    predecessors: int
    shortlist: int
    spine: bool

    def check(self, slots: int) -> None:
        """Refuse sizes that name no tree of a head with so many `slots`.

        Raises:
          ValueError: the first size that is out of range.
        """
        least = {"nodes": 2, "depth": 0, "top_k": 1, "beam": 1, "predecessors": 1}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {getattr(self, name)}")
        if self.noise_level not in NOISE_LEVELS:
            raise ValueError(f"noise_level is one of {NOISE_LEVELS}, got {self.noise_level}")
        if self.depth >= slots:
            raise ValueError(f"depth is at most {slots - 1} for a head that drafts {slots} positions, got {self.depth}")
        if self.shortlist < max(self.top_k, self.predecessors):
            raise ValueError(
                f"a shortlist of {self.shortlist} tokens is too short for top_k {self.top_k} and"
                f" {self.predecessors} predecessors"
            )
        most = sum(best_first.level_widths(self.max_depth, self.top_k, self.beam))
        if self.nodes - 1 > most:
            raise ValueError(
                f"nodes - 1 is {self.nodes - 1}, but depth {self.depth}, top_k {self.top_k} and beam"
                f" {self.beam} find only {most} nodes"
            )

    @property
    def max_depth(self) -> int:
        """Of the tree, the root at 0."""
        return self.depth + 1

    @property
    def spine_depth(self) -> int:
        """Down to where the chain of first children is selected in any case: half of a small tree at most."""
        return min(self.max_depth, self.nodes // 2) if self.spine else 0


@struct.dataclass
class BlockState:
    """What the drafter carries from round to round."""

    cache: KVCache  # of each layer of the head; as long as the target's
    newest: jax.Array | None  # [B, E], the context of the last token in it; None for a head that does not join it


def empty_state(head: BlockHead, batch: int, capacity: int, dtype: DTypeLike) -> BlockState:
    """Nothing read yet; `dtype` is that of the cache."""
    layer = head.config.layer
    sizes = (head.config.num_layers, batch, capacity, layer.num_kv_heads, layer.head_dim)
    newest = jnp.zeros((batch, layer.width), dtype) if head.config.joins_context else None
    return BlockState(init_cache(*sizes, jnp.dtype(dtype)), newest)


class Shortlist(NamedTuple):
    """The tokens of each depth whose edges are computed, best first."""

    rows: jax.Array  # i32[B, D, S], of the draft vocabulary
    tokens: jax.Array  # i32[B, D, S], of the target's
    logits: jax.Array  # f32[B, D, S], base logits
    noise: jax.Array  # f32[B, D, S]
    rest: jax.Array  # f32[B, D], log of the summed exp of all other tokens, by which confidence is normalised


def shortlist(
    base: jax.Array, noise: jax.Array, target_ids: jax.Array | None, size: int, *, noisy_confidence: bool
) -> Shortlist:
    """The best tokens of each depth by base logits f32[B, D, U] plus noise f32[B, D, U].

    With `noisy_confidence` the mass of the other tokens is counted with the noise too.
    """
    noisy = base + noise
    _, rows = top_k_rows(noisy, min(size, base.shape[-1]))

    def at(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, rows, axis=2)

    scored = noisy if noisy_confidence else base
    total = jax.nn.logsumexp(scored, axis=-1)
    listed = jnp.exp(jax.nn.logsumexp(at(scored), axis=-1) - total)  # share of the mass; rounding may put it above 1
    rest = total + jnp.log1p(-jnp.minimum(listed, 1.0))
    tokens = rows if target_ids is None else jnp.take(target_ids, rows)
    return Shortlist(rows, tokens.astype(jnp.int32), at(base), at(noise), rest)


def child_tables(
    head: BlockHead, params: HeadParams, root: jax.Array, listed: Shortlist, settings: TreeSettings
) -> ChildTables:
    """The children of every predecessor at every depth.

    Args:
      head, params: whose edges are added.
      root: i32[B], the predecessor of the first depth.
      listed: the tokens that are compared.
      settings: of the tree.
    """
    batch, depth, size = listed.rows.shape
    logits, noise = listed.logits[:, :, None], listed.noise[:, :, None]
    count = min(settings.predecessors, size) if settings.edges else 1
    # Places of the predecessors in the shortlist, which is sorted by logits plus noise.
    places = jnp.broadcast_to(jnp.arange(count), (batch, depth, count))
    if settings.noise_level < 2:
        _, places = top_k_rows(listed.logits, count)
    if settings.edges:
        tokens = jnp.take_along_axis(listed.tokens, places, axis=2)
        before = jnp.broadcast_to(root[:, None, None], (batch, 1, count))
        logits = logits + head.edges(params, jnp.concatenate([before, tokens[:, :-1]], axis=1), listed.rows)
    scored = logits + noise if settings.noise_level >= 1 else logits
    _, picked = top_k_rows(logits + noise, settings.top_k)  # [B, D, R, k], places in the shortlist
    total = jnp.logaddexp(jax.nn.logsumexp(scored, axis=-1), listed.rest[:, :, None])
    scores = jnp.take_along_axis(scored, picked, axis=3) - total[..., None]
    # A child that is a predecessor of the next depth has that row there. Without edges all rows are the first.
    is_predecessor = picked[..., None] == places[:, :, None, None]
    next_rows = jnp.where(is_predecessor.any(-1), is_predecessor.argmax(-1), NO_ROW)
    rows = next_rows if settings.edges else jnp.zeros_like(picked)
    return ChildTables(
        tokens=jnp.take_along_axis(listed.tokens[:, :, None], picked, axis=3),
        scores=jnp.minimum(scores, 0.0),  # rounding may put a certain token above
        rows=rows.astype(jnp.int32),
    )


def shortlists(
    head: BlockHead,
    params: HeadParams,
    target_params: Params,
    state: BlockState,
    root: jax.Array,
    noise: jax.Array,
    settings: TreeSettings,
) -> Shortlist:
    """The shortlists below `root` i32[B], from one pass of the head; `noise` f32[B, P, V] as in `Drafter.propose`."""
    depth = settings.max_depth
    cache = state.cache
    states = head.block(params, target_params, root, cache.length, cache, state.newest)[:, :depth]
    base = head.logits(params, target_params, states)
    if settings.top_k > base.shape[-1]:
        raise ValueError(f"top_k is {settings.top_k}, the draft vocabulary has {base.shape[-1]} tokens")
    noise = noise[:, :depth]
    if params.target_ids is not None:
        noise = jnp.take(noise, params.target_ids, axis=2)
    return shortlist(base, noise, params.target_ids, settings.shortlist, noisy_confidence=settings.noise_level >= 1)


def read(head: BlockHead, params: HeadParams, state: BlockState, observation: Observation) -> BlockState:
    """The state with the target's features of the tokens that joined the text: the context of later blocks."""
    steps = jnp.broadcast_to(jnp.arange(observation.path.shape[1])[None, :], observation.path.shape)
    fused = head.fuse(params, features_along(head.config, observation))
    keys, values = head.context(params, fused, observation.length[:, None] + steps)
    cache = dataclasses.replace(state.cache, length=observation.length)
    newest = state.newest
    if newest is not None:
        joined = newest_of(fused, observation).astype(newest.dtype)
        newest = jnp.where((observation.count > 0)[:, None], joined, newest)
    return BlockState(commit(cache, keys, values, steps, observation.count), newest)


@functools.cache
def make_one_pass(
    head: BlockHead,
    nodes: int = 16,
    depth: int = 7,
    top_k: int = 8,
    *,
    edges: bool = True,
    noise_level: int = 1,
    beam: int = 16,
    predecessors: int = 32,
    shortlist: int = 64,
    spine: bool = True,
) -> Drafter:
    """A tree from one pass of a head that drafts a block; its `HeadParams` are the drafter's params.

    Args:
      head: of kind one_pass.
      nodes: N, the root included.
      depth: D; the deepest node is at depth D + 1, so a head that drafts so many positions needs D below that.
      top_k: k, children of a node; with 1 the tree is a chain.
      edges: children depend on the node above, where the head has edges; False: the same below all nodes of a depth.
      noise_level: what shared noise decides: 0 children, 1 confidence too, 2 predecessors too.
      beam: nodes of a depth that have children, at most.
      predecessors: tokens of a depth that have children, at most.
      shortlist: tokens of a depth whose edges are computed.
      spine: the chain of first children is in the tree in any case, down to `TreeSettings.spine_depth`.

    Raises:
      ValueError: sizes that name no tree of this head.
    """
    settings = TreeSettings(
        nodes=nodes,
        depth=depth,
        top_k=top_k,
        edges=edges and head.config.edge_rank > 0,
        noise_level=noise_level,
        beam=beam,
        predecessors=predecessors,
        shortlist=shortlist,
        spine=spine,
    )
    settings.check(head.config.num_drafted)

    def propose(
        params: HeadParams,
        target_params: Params,
        state: BlockState,
        text: jax.Array,
        length: jax.Array,
        noise: jax.Array,
    ) -> tuple[DraftTree, BlockState]:
        root = root_of(text, length)
        listed = shortlists(head, params, target_params, state, root, noise, settings)
        tables = child_tables(head, params, root, listed, settings)
        return best_first.grow(tables, root, nodes, beam=beam, spine=settings.spine_depth), state

    def observe(params: HeadParams, target_params: Params, state: BlockState, observation: Observation) -> BlockState:
        del target_params
        return read(head, params, state, observation)

    return Drafter(
        name="one_pass",
        nodes=nodes,
        max_depth=depth + 1,
        init=lambda batch, capacity, dtype: empty_state(head, batch, capacity, dtype),
        propose=propose,
        observe=observe,
        top_k=top_k,
        needs="the weights of its head",
        check=head.check,
    )
