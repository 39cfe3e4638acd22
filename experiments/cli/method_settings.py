"""What a drafting method may be given, and the sizes that follow from it.

Tree sizes are the official triple: `nodes` counts the root, `depth` D means D + 1 drafted levels, `top_k` children a
node. A chain has depth + 2 nodes and top_k 1. Lookahead and Ouroboros declare sizes beside their factories.
"""

from typing import NamedTuple

from eagle_jax.drafters.base import Size
from eagle_jax.drafters.default_tree import LADDER, TreeSize, ladder_tree

TRIPLE = (
    Size(
        "nodes",
        "tree slots, the root included. Where no size is given, (--nodes, --depth, --top_k) of eagle2 and eagle3 are "
        "those with the most expected tokens per second on this machine, which is measured; where one is given, the "
        f"others are those of {tuple(LADDER[0])}",
    ),
    Size("depth", "levels below the first: --depth=4 drafts 5 tokens deep", least=0),
    Size("top_k", "children of a tree node"),
)


class MethodSettings(NamedTuple):
    """Everything that is known of a method before its weights are loaded; None, "" and () where nothing was given."""

    nodes: int | None = None
    depth: int | None = None
    top_k: int | None = None
    draft: str = ""
    head: str = ""
    draft_vocab: int | None = None
    head_window: int | None = None
    dtype: str = "float32"
    split_head: bool | None = None  # over the devices, as the target is; None: where that takes less time, by a bound
    batch: int = 1  # rows that decode together
    sizes: tuple[tuple[str, int], ...] = ()  # of methods that declare their own, by name

    @property
    def triple(self) -> tuple[int | None, int | None, int | None]:
        """(nodes, depth, top_k) as given."""
        return self.nodes, self.depth, self.top_k

    def size(self, name: str) -> int | None:
        """A size by its name, None where it was not given."""
        return dict(self.sizes).get(name) if name not in self._fields else getattr(self, name)


def tree_sizes(settings: MethodSettings, batch: int) -> TreeSize:
    """Nodes, depth and top_k of a dynamic tree: by platform for `batch` rows, or what is given and as published."""
    return fill_in(settings, ladder_tree(batch) if settings.triple == (None, None, None) else LADDER[0])


def fill_in(settings: MethodSettings, usual: TreeSize) -> TreeSize:
    """Nodes, depth and top_k as given, and as usual where they are not."""
    given = zip(settings.triple, usual, strict=True)
    return TreeSize(*(default if size is None else size for size, default in given))


def chain_length(settings: MethodSettings, default: int) -> int:
    """Drafted tokens of a method whose tree is a chain.

    Raises:
      ValueError: sizes that are no chain's.
    """
    nodes, depth, top_k = settings.triple
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
