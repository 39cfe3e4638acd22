r"""Quantities derived from the parents of a draft tree: depths, ancestors, paths; a pass over it. Also builds chains.

    parents  -1 0 0 1 1 2       0            ancestors (row sees column)
    node      0 1 2 3 4 5      / \             0 1 2 3 4 5
                              1   2         3 [x x . x . .]
                             / \   \       5 [x . x . . x]
                            3   4   5

A tree is a fixed number of slots; its shape is data, so one compiled program serves every tree (DESIGN 3). The plainest
tree, a chain, is built here too.
"""

import jax
import jax.numpy as jnp

from eagle_jax.types import NO_NODE, NO_PARENT, DraftTree, KVCache, Params, Target, TargetOutput


def ancestors(parents: jax.Array, max_depth: int) -> jax.Array:
    """bool[B, N, N]: entry [b, i, j] is true where j is i itself or one of its ancestors.

    Each doubling step joins a node's known ancestors with those of the node that it points to, so paths of length
    `max_depth` need about log2(max_depth) steps. Unused slots see themselves alone.
    """
    num_nodes = parents.shape[1]
    own = jnp.arange(num_nodes)
    hop = jnp.where(parents == NO_PARENT, own[None, :], parents)
    seen = (own[:, None] == own[None, :])[None] | (hop[:, :, None] == own[None, None, :])
    reach = 1  # `seen` covers this many steps up; `hop` leads that far
    while reach < max_depth:
        seen = seen | jnp.take_along_axis(seen, hop[:, :, None], axis=1)
        hop = jnp.take_along_axis(hop, hop, axis=1)
        reach *= 2
    return seen


def depths(parents: jax.Array, max_depth: int) -> jax.Array:
    """i32[B, N]: edges between each node and the root; 0 for the root and for unused slots."""
    return ancestors(parents, max_depth).sum(-1, dtype=jnp.int32) - 1


def path_to(node: jax.Array, seen: jax.Array, max_depth: int) -> jax.Array:
    """i32[B, P]: the path from the root to `node` i32[B] in text order, then NO_NODE; `seen` is `ancestors`."""
    num_nodes = seen.shape[-1]
    on_path = jnp.take_along_axis(seen, node[:, None, None], axis=1)[:, 0]  # [B, N]
    # Parents come before their children, so text order is node order: the nodes sorted, those off the path last.
    order = jnp.sort(jnp.where(on_path, jnp.arange(num_nodes)[None, :], num_nodes), axis=1)
    width = max_depth + 1
    order = jnp.pad(order, ((0, 0), (0, max(0, width - num_nodes))), constant_values=num_nodes)[:, :width]
    return jnp.where(order < num_nodes, order, NO_NODE).astype(jnp.int32)


def tree_pass(target: Target, params: Params, tree: DraftTree, cache: KVCache) -> tuple[TargetOutput, jax.Array]:
    """One pass of a model over all nodes, each of which sees the text and its own ancestors.

    Args:
      target, params: the model.
      tree: whose root stands at position `cache.length`.
      cache: of the text before the root; it is read, not written.

    Returns:
      The output, in node order, and the depths of the nodes i32[B, N].
    """
    seen = ancestors(tree.parents, tree.max_depth)
    depth = seen.sum(-1, dtype=jnp.int32) - 1
    return target.forward(params, tree.tokens, cache.length[:, None] + depth, cache, seen), depth


def root_of(text: jax.Array, length: jax.Array) -> jax.Array:
    """i32[B]: the newest token, `text` i32[B, S] at index `length` i32[B]."""
    return jnp.take_along_axis(text, length[:, None], axis=1)[:, 0]


def chain_tree(root: jax.Array, drafted: jax.Array, num_drafted: jax.Array, log_values: jax.Array) -> DraftTree:
    """A path: the root and, below it, the first `num_drafted` tokens of a draft.

    Args:
      root: i32[B].
      drafted: i32[B, N - 1].
      num_drafted: i32[B], 0 gives the root alone; later slots are unused.
      log_values: f32[B, N - 1], running sums of log-confidence.
    """
    batch, max_depth = drafted.shape
    steps = jnp.arange(max_depth + 1)[None, :]
    used = steps <= num_drafted[:, None]
    return DraftTree(
        tokens=jnp.concatenate([root[:, None], drafted], axis=1),
        parents=jnp.where(used, steps - 1, NO_PARENT),
        candidate=used,
        log_values=jnp.concatenate([jnp.zeros((batch, 1)), log_values], axis=1),
        max_depth=max_depth,
    )
