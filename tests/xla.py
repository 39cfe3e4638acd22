"""Which options of XLA the installed jaxlib knows. Imported before jax, so that flags can follow from it."""

import importlib.metadata
import re

_VERSION = tuple(map(int, re.findall(r"\d+", importlib.metadata.version("jaxlib"))[:2]))

FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"


def fusion_emitters(on: bool) -> dict[str, bool]:
    """The compiler option for CPU code by fusion emitters, which XLA has always used since jaxlib 0.11.

    As a flag that it does not know, it ends the process before a line is printed.
    """
    return {FUSION_EMITTERS: on} if _VERSION < (0, 11) else {}
