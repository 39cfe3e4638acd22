"""Checks that a value read from a config or a line of JSON has the annotated type."""

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Record = TypeVar("Record")


def read_record(kind: type[Record], what: str, values: Mapping[str, Any]) -> Record:
    """A frozen dataclass of values that somebody wrote; lists become tuples.

    Args:
      kind: the dataclass; fields without a default are needed.
      what: names the values in messages.
      values: by field.

    Raises:
      ValueError: a field that is missing, unknown or of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    for name in sorted((needed - values.keys()) | (values.keys() - fields.keys())):
        raise ValueError(f"{what} {'has no' if name in fields else 'has the unknown'} field {name!r}")
    types = get_type_hints(kind)
    for name, value in values.items():
        check_type(f"{what}'s {name}", value, types[name])
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def check_type(what: str, value: object, kind: Any) -> None:
    """Refuse a value of another type.

    Args:
      what: names the value in the message.
      value: as it was read.
      kind: a class, `A | B`, `Literal[...]` or `tuple[A, ...]`.

    Raises:
      ValueError: `value` is not of type `kind`.
    """
    if not fits(value, kind):
        raise ValueError(f"{what} must be {spelled(kind)}, got {value!r}")


def fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type; a list counts as a tuple, an int as a float, a bool never as a number."""
    parts = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(fits(value, part) for part in parts)
    if get_origin(kind) is Literal:
        return value in parts
    if get_origin(kind) is tuple:
        return isinstance(value, tuple | list) and all(fits(item, parts[0]) for item in value)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind)


def spelled(kind: Any) -> str:
    """A type as text for messages."""
    parts = get_args(kind)
    if get_origin(kind) is UnionType:
        return " or ".join(map(spelled, parts))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(parts)}"
    if get_origin(kind) is tuple:
        return f"a tuple of {spelled(parts[0])}"
    return "None" if kind is NoneType else kind.__name__
