"""Counts compilations as jax itself reports them."""

import contextlib
from collections.abc import Iterator

import jax

from tests.xla import fusion_emitters

AS_SHIPPED = {"xla_backend_optimization_level": 3, **fusion_emitters(True)}
"""Compiler options of programs outside the tests, whose own are quicker (`conftest`): to test the very program."""

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def count_compilations() -> Iterator[list[str]]:
    """A list that grows by one entry for each program compiled inside the block, or loaded from disk."""
    seen: list[str] = []

    def listen(event: str, duration: float, **kwargs: str | int) -> None:
        del duration, kwargs
        if event == COMPILED:
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
