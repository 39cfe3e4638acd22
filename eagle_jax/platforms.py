"""The platform that programs are traced for: that of the devices at hand, or of others that they are compiled for.

A few sizes and the order of a cache's axes follow from it. The value is part of the key of jit's caches, so programs
for two platforms can be traced in one process.
"""

from contextlib import AbstractContextManager
from typing import Any

import jax

_compiled_for: Any = jax.make_user_context(default_value=None)


def platform() -> str:
    """As jax names it: cpu, gpu or tpu."""
    name: str | None = _compiled_for.value
    return name or jax.default_backend()


def compiling_for(name: str) -> AbstractContextManager[None]:
    """Context in which programs are traced for devices of another platform, which need not be there."""
    context: AbstractContextManager[None] = _compiled_for(name)
    return context
