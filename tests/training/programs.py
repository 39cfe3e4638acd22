"""Looks into traced programs."""

from collections.abc import Iterator

from jax.extend import core


def shapes(jaxpr: core.Jaxpr) -> Iterator[tuple[int, ...]]:
    """Shapes of everything that a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
                if isinstance(inner, core.Jaxpr):
                    yield from shapes(inner)
