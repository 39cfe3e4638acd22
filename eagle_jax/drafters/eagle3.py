"""EAGLE-3: the dynamic tree of EAGLE-2, drafted by a head that fuses three layers and feeds on its own output.

arXiv 2503.01840, section 3. While decoding, only the head differs (`models.draft_head`): the features it reads, and
its draft vocabulary.
"""

from eagle_jax.drafters.base import Drafter
from eagle_jax.drafters.eagle2 import make_eagle2
from eagle_jax.models.draft_head import Head


def make_eagle3(head: Head, nodes: int = 60, depth: int = 7, top_k: int = 10, **parts: bool) -> Drafter:
    """Dynamic tree of an EAGLE-3 head; arguments as `make_eagle2`.

    Raises:
      ValueError: a head of another kind, or sizes that name no tree.
    """
    if head.config.kind != "eagle3":
        raise ValueError(f"eagle3 needs an EAGLE-3 head, got one of kind {head.config.kind!r}")
    return make_eagle2(head, nodes, depth, top_k, name="eagle3", **parts)
