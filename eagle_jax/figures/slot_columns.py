"""Draws what the slots of a one-pass head list, as columns above the tree that is made of the lists.

slot 0   slot 1          framed as in the tree below where it has the token at this depth, else faded
depth 1  depth 2
a        c             colour: the confidence of the slot alone, which knows no branch
b        d
"""

import numpy as np

from eagle_jax.evaluation.calibration import confidence
from eagle_jax.figures.layout import Decode, layout, visible
from eagle_jax.figures.nodes import FADED, Pen, looks, scale_of_confidence
from eagle_jax.types import NO_NODE, DraftTree, Verdict

_GAP = 0.8  # lines between lists and tree


def lists_height(lists: DraftTree) -> float:
    """Lines that the lists take, of as many tokens each, and the gap below them."""
    return (len(lists.tokens) - 1) / lists.max_depth + _GAP


def column_names(lists: DraftTree, columns: int) -> list[str]:
    """Names of the columns: the root, then the slots and the depths that they draft; the last may have no slot."""
    slots = [f"slot {depth - 1}\ndepth {depth}" for depth in range(1, lists.max_depth + 1)]
    return ["root", *slots, *(f"\ndepth {depth}" for depth in range(len(slots) + 1, columns))][:columns]


def draw_columns(pen: Pen, lists: DraftTree, tree: DraftTree, verdict: Verdict, decode: Decode) -> None:
    """The lists, each a column from line 0 down.

    Args:
      pen: of the tree.
      lists: fields [N], as `slot_lists.make_slot_lists` drafts them.
      tree, verdict: of the round, as `draw_tree` has them.
      decode: of the target's tokenizer.
    """
    fates, styles = _fates(tree, verdict), looks(pen.theme)
    colours = scale_of_confidence().to_rgba(confidence(lists))
    count = (len(lists.tokens) - 1) // lists.max_depth
    for node, token in enumerate(np.asarray(lists.tokens).tolist()[1:], start=1):
        slot, line = divmod(node - 1, count)
        fate = fates.get((slot + 1, token))
        look, alpha = styles[fate or "refused"], 1.0 if fate else FADED
        gid = f"list-{slot}-{line}"
        pen.node((slot + 1, line), visible(decode([token])), tuple(colours[node]), look, gid=gid, alpha=alpha)
    pen.axes.text(0, (count - 1) / 2, "each slot\nalone", ha="center", va="center", fontsize=11)


def _fates(tree: DraftTree, verdict: Verdict) -> dict[tuple[int, int], str]:
    """What became of a token at a depth, by depth and token; accepted ones count first, then the target's own."""
    tokens, parents = (np.asarray(field).tolist() for field in (tree.tokens, tree.parents))
    path = [int(node) for node in verdict.path if node != NO_NODE]
    fates = {(int(depth), tokens[node]): "refused" for node, (depth, _) in layout(parents).items()}
    fates[len(path), int(verdict.next_token)] = "own"
    return fates | {(depth, tokens[node]): "accepted" for depth, node in enumerate(path)}
