"""EAGLE-2: a tree shaped by the drafter's confidence (arXiv 2406.16858, section 4). Expand, then re-rank.

Expand: from the root's k best children on, D passes each feed the k best nodes of the last level and add the k best
children of each. A node's value is the product of the confidences along its path, here a sum of logs in float32.
Re-rank: of all k + D k^2 nodes the N - 1 of highest value are selected, shallow before deep where values tie, and
renumbered so that parents come first. A child's value is never above its parent's, so the selected nodes form a tree.

    candidates    [ k children of the root | k x k from pass 0 | k x k from pass 1 | ... ]

With `draws` a node has two children, the drafter's best token and one drawn from the others, and the p/q rule may use q
(RheoSampling, arXiv 2609.21827). A drawn child may be dropped only if that does not depend on its token. So its value
is one that its parent knows (`head.best_and_drawn`); the values of its descendants, which depend on the token, are
never above it, so they take no place from it nor from any node before it. And a vector of noise serves one node of one
round: keyed by position, noise that decides who is dropped would draw again, beside it or in the next round.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from eagle_jax.drafters import head as heads
from eagle_jax.drafters.base import Drafter, Observation
from eagle_jax.drafters.head import HeadState, TopChildren
from eagle_jax.models.draft_head import Head, HeadParams
from eagle_jax.sampling import top_k_rows
from eagle_jax.tree import root_of
from eagle_jax.types import NO_PARENT, DraftTree, Params

PARTS = ("use_value", "reranks", "draws")
"""Keywords of `make_eagle2` that leave out a part of the paper's tree, or have children drawn."""


class Candidates(NamedTuple):
    """All nodes of the expansion, in the flat order above: M = k + D k^2."""

    tokens: jax.Array  # i32[B, M]
    log_values: jax.Array  # f32[B, M]
    parents: jax.Array  # i32[B, M], flat index, NO_PARENT below the root
    picked: jax.Array  # i32[B, k + D k], flat index of the k nodes picked at each level, best first
    logits: jax.Array  # f32[B, 1 + D k, U], `TopChildren.logits` of the root and of all picked nodes but the last level


def expand(
    head: Head,
    params: HeadParams,
    target_params: Params,
    state: HeadState,
    noise: jax.Array,
    *,
    depth: int,
    top_k: int,
    use_value: bool = True,
    draws: bool = False,
) -> Candidates:
    """Grow the candidates level by level: from the head's newest output, then `depth` passes of k nodes.

    With `use_value` false the k nodes of a level are picked by their own confidence, and the value is replaced by the
    lowest confidence on the path, which likewise is never above the parent's. With `draws` a node has 2 children
    instead of k, so the first levels are of 2, 4, ... nodes, and `noise` is a vector for each node in order of feeding.
    """
    count = 2 if draws else top_k  # children of a node

    def children(states: jax.Array, step: int, before: int) -> TopChildren:
        if draws:
            own = noise[:, before : before + states.shape[1]]
            return heads.best_and_drawn(head, params, target_params, states, own)
        return heads.top_children(head, params, target_params, states, noise[:, step], top_k)

    best = children(state.newest[:, None], 0, 0)
    tokens, values = best.tokens[:, 0], best.values[:, 0]
    batch = tokens.shape[0]
    flat = jnp.broadcast_to(jnp.arange(count), (batch, count))  # flat index of the nodes to feed
    levels = [Candidates(tokens, values, jnp.full_like(tokens, NO_PARENT), flat, best.logits)]
    states = jnp.broadcast_to(state.newest[:, None], (batch, count, state.newest.shape[1]))
    rows: jax.Array | None = None  # index of their parents among the nodes fed before
    fed, before = heads.no_drafted_nodes(head, state), 0
    for step in range(depth):
        outputs, fed = heads.extend(head, params, target_params, state, fed, tokens, states, rows, step + 1)
        best = children(outputs, step + 1, 1 + before)
        block_tokens = best.tokens.reshape(batch, -1)
        join = jnp.add if use_value else jnp.minimum
        block_values = join(values[:, :, None], best.values).reshape(batch, -1)
        parents = jnp.repeat(flat, count, axis=1)
        width = min(top_k, block_values.shape[1])
        _, picked = top_k_rows(block_values if use_value else best.values.reshape(batch, -1), width)
        values = jnp.take_along_axis(block_values, picked, axis=1)
        tokens = jnp.take_along_axis(block_tokens, picked, axis=1)
        states = jnp.take_along_axis(outputs, (picked // count)[:, :, None], axis=1)
        rows = before + picked // count
        flat = count * (1 + before) + picked
        before += outputs.shape[1]
        levels.append(Candidates(block_tokens, block_values, parents, flat, best.logits))
    return Candidates(*(jnp.concatenate(parts, axis=1) for parts in zip(*levels, strict=True)))


def rerank(candidates: Candidates, root: jax.Array, nodes: int, max_depth: int) -> DraftTree:
    """The tree of the `nodes` - 1 candidates of highest value below `root` i32[B]."""
    return keep(candidates, _highest(candidates, nodes), root, max_depth)


def _highest(candidates: Candidates, nodes: int) -> jax.Array:
    """The `nodes` - 1 candidates of highest value, i32[B, N - 1], sorted."""
    _, chosen = top_k_rows(candidates.log_values, nodes - 1)
    return jnp.sort(chosen, axis=1)


def rerank_drawn(
    candidates: Candidates, root: jax.Array, nodes: int, max_depth: int, ids: jax.Array, vocab_size: int
) -> DraftTree:
    """As `rerank` for `draws`; `ids` i32[U] are the tokens of the draft vocabulary, `vocab_size` is the target's V."""
    chosen = _highest(candidates, nodes)
    fed = candidates.picked[:, : candidates.logits.shape[1] - 1]
    # Nodes that were not fed have no children; they get the root's logits.
    row = ((chosen[:, :, None] == fed[:, None, :]) * (1 + jnp.arange(fed.shape[1]))[None, None, :]).sum(-1)
    row = jnp.pad(row, ((0, 0), (1, 0)))
    logits = jnp.take_along_axis(candidates.logits, row[:, :, None], axis=1)
    return dataclasses.replace(
        keep(candidates, chosen, root, max_depth),
        draft_logits=jnp.full((*row.shape, vocab_size), -jnp.inf).at[:, :, ids].set(logits),
        fixed=jnp.pad(chosen % 2 == 0, ((0, 0), (1, 0))),
    )


def first_come(candidates: Candidates, root: jax.Array, nodes: int, max_depth: int) -> DraftTree:
    """The tree of the first `nodes` - 1 nodes that expansion picked, level by level, without comparing their values."""
    return keep(candidates, jnp.sort(candidates.picked[:, : nodes - 1], axis=1), root, max_depth)


def keep(candidates: Candidates, chosen: jax.Array, root: jax.Array, max_depth: int) -> DraftTree:
    """The tree of the candidates `chosen` i32[B, N - 1] below `root` i32[B]; sorted, and closed under parents."""
    values = jnp.take_along_axis(candidates.log_values, chosen, axis=1)
    parents = jnp.take_along_axis(candidates.parents, chosen, axis=1)
    # Index of the parent among the chosen, counted from node 1; the root where there is none.
    place = (parents[:, :, None] == chosen[:, None, :]).argmax(-1) + 1
    batch, nodes = root.shape[0], chosen.shape[1] + 1
    return DraftTree(
        tokens=jnp.concatenate([root[:, None], jnp.take_along_axis(candidates.tokens, chosen, axis=1)], axis=1),
        parents=jnp.concatenate(
            [jnp.full((batch, 1), NO_PARENT), jnp.where(parents == NO_PARENT, 0, place)], axis=1
        ).astype(jnp.int32),
        candidate=jnp.ones((batch, nodes), bool),
        log_values=jnp.concatenate([jnp.zeros((batch, 1)), values], axis=1),
        max_depth=max_depth,
    )


def num_drawing(depth: int, top_k: int) -> int:
    """Nodes that get two children each with `draws`: the root, then up to `top_k` on each of `depth` levels."""
    return sum(min(top_k, 2**level) for level in range(depth + 1))


def check_sizes(nodes: int, depth: int, top_k: int) -> None:
    """Refuse triples that name no tree.

    Raises:
      ValueError: a size too small, or more nodes than expansion gives.
    """
    if nodes < 2 or depth < 0 or top_k < 1:
        raise ValueError(f"nodes must be at least 2, depth 0 and top_k 1, got {nodes}, {depth} and {top_k}")
    most = top_k + depth * top_k**2
    if nodes - 1 > most:
        raise ValueError(f"nodes - 1 is {nodes - 1}, but depth {depth} and top_k {top_k} find only {most} nodes")


def _check_draws(nodes: int, depth: int, top_k: int, all_parts: bool) -> None:
    """Refuse `draws` where the text would not follow the target's distribution, and sizes that it does not reach.

    Raises:
      ValueError: a part of EAGLE-2 left out, fewer than 2 nodes a level, or more nodes than expansion gives.
    """
    if not all_parts:
        raise ValueError("draws needs all parts of EAGLE-2, got draws=True with use_value=False or reranks=False")
    if top_k < 2:
        raise ValueError(f"with draws top_k must be at least 2, got {top_k}")
    most = 2 * num_drawing(depth, top_k)
    if nodes - 1 > most:
        raise ValueError(
            f"nodes - 1 is {nodes - 1}, but with draws depth {depth} and top_k {top_k} find only {most} nodes"
        )


def _check_first_come(nodes: int, depth: int, top_k: int) -> None:
    """Refuse more nodes than expansion picks, which without re-ranking are all there are."""
    most = top_k * (depth + 1)
    if nodes - 1 > most:
        raise ValueError(f"without re-ranking nodes - 1 is at most top_k * (depth + 1) = {most}, got {nodes - 1}")


@functools.cache
def make_eagle2(
    head: Head,
    nodes: int = 60,
    depth: int = 7,
    top_k: int = 10,
    *,
    name: str = "eagle2",
    use_value: bool = True,
    reranks: bool = True,
    draws: bool = False,
) -> Drafter:
    """Dynamic tree; the head's `HeadParams` are the drafter's params.

    Args:
      head: an EAGLE head of either kind.
      nodes: N, the root included.
      depth: D, head passes while drafting; the deepest node is at depth D + 1.
      top_k: k, children per node and nodes per level.
      name: of the drafter.
      use_value, reranks: False removes a part, as in the paper's ablation (table 3): the product along the path as a
        node's value, and the final selection of nodes by value.
      draws: two children a node, the best and a drawn one, for the rule `residual` alone; `top_k` then is the nodes per
        level.

    Raises:
      ValueError: sizes that name no tree, without re-ranking more nodes than expansion picks, or `draws` with another
        part left out.
    """
    check_sizes(nodes, depth, top_k)
    if draws:
        _check_draws(nodes, depth, top_k, use_value and reranks)
    if not reranks:
        _check_first_come(nodes, depth, top_k)
    select = rerank if reranks else first_come

    def propose(
        params: HeadParams,
        target_params: Params,
        state: HeadState,
        text: jax.Array,
        length: jax.Array,
        noise: jax.Array,
    ) -> tuple[DraftTree, HeadState]:
        grow = functools.partial(expand, depth=depth, top_k=top_k, use_value=use_value, draws=draws)
        candidates = grow(head, params, target_params, state, noise)
        root = root_of(text, length)
        if draws:
            vocab_size = noise.shape[-1]
            ids = jnp.arange(vocab_size) if params.target_ids is None else params.target_ids
            return rerank_drawn(candidates, root, nodes, depth + 1, ids, vocab_size), state
        return select(candidates, root, nodes, depth + 1), state

    def observe(params: HeadParams, target_params: Params, state: HeadState, observation: Observation) -> HeadState:
        return heads.observe(head, params, target_params, state, observation)

    return Drafter(
        name=name,
        nodes=nodes,
        max_depth=depth + 1,
        init=lambda batch, capacity, dtype: heads.init_state(head, batch, capacity, dtype),
        propose=propose,
        observe=observe,
        top_k=2 if draws else top_k,
        needs="the weights of its head",
        check=head.check,
        draws=draws,
        own_noise=num_drawing(depth, top_k) if draws else 0,
    )
