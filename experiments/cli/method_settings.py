"""What a drafting method may be told, and the sizes that follow from it.

Tree sizes are the official triple: `nodes` counts the root, `depth` D means D + 1 drafted levels, `top_k` children a
node. A chain has depth + 2 nodes and top_k 1. Lookahead and Ouroboros have sizes of their own.
"""

from typing import NamedTuple

from eagle_jax.drafters.default_tree import LADDER, ladder_tree

TRIPLE = ("nodes", "depth", "top_k")
LOOKAHEAD = ("level", "window", "guesses", "pool_from_prompt")
OUROBOROS = ("num_drafted", "phrases", "phrase_length", "draft_phrases")
SIZES = (*TRIPLE, *LOOKAHEAD, *OUROBOROS)


class Settings(NamedTuple):
    """What the flags say about drafting; None and "" where nothing was given."""

    nodes: int | None = None
    depth: int | None = None
    top_k: int | None = None
    draft: str = ""
    head: str = ""
    draft_vocab: int | None = None
    head_window: int | None = None
    dtype: str = "float32"
    level: int | None = None
    window: int | None = None
    guesses: int | None = None
    num_drafted: int | None = None
    phrases: int | None = None
    phrase_length: int | None = None
    draft_phrases: int | None = None
    pool_from_prompt: bool | None = None
    split_head: bool = False  # over the devices, as the target is


def tree_sizes(settings: Settings, batch: int) -> tuple[int, int, int]:
    """Nodes, depth and top_k of a dynamic tree: by platform for `batch` rows, or what is given and as published."""
    given = settings.nodes, settings.depth, settings.top_k
    usual = ladder_tree(batch) if given == (None, None, None) else LADDER[0]
    nodes, depth, top_k = (default if size is None else size for size, default in zip(given, usual, strict=True))
    return nodes, depth, top_k


def chain_length(settings: Settings, default: int) -> int:
    """Drafted tokens of a method whose tree is a chain.

    Raises:
      ValueError: sizes that are no chain's.
    """
    nodes, depth, top_k = settings.nodes, settings.depth, settings.top_k
    if top_k not in (None, 1):
        raise ValueError(f"the tree of this method is a chain: --top_k must be 1, got {top_k}")
    if nodes is not None and depth is not None and nodes != depth + 2:
        raise ValueError(
            f"the tree of this method is a chain: --depth={depth} has {depth + 2} nodes, got --nodes={nodes}"
        )
    drafted = depth + 1 if depth is not None else nodes - 1 if nodes is not None else default
    if drafted < 1:
        raise ValueError(f"a chain drafts at least 1 token (--nodes=2, --depth=0), got {drafted}")
    return drafted


def given_sizes(settings: Settings, names: tuple[str, ...]) -> dict[str, int]:
    """The sizes that were given, by name; the factory has the defaults of the others."""
    return {name: size for name in names if (size := getattr(settings, name)) is not None}
