"""The text of an optimised HLO module as instructions by computation, with the shapes of what each gives.

    %fusion.3 = bf16[1,8,4]{2,1,0} fusion(%param_0, %gte.1), kind=kLoop, calls=%fused_computation.3, metadata={...}

Names, shapes and operands are read; what else a compiler adds to a line stays text.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_BITS = re.compile(r"\D*(\d+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([^\s=]+) = ")
_REFERENCE = re.compile(r"%([^\s,(){}]+)")
_SCOPE = re.compile(r'op_name="([^"]*)"')


class Array(NamedTuple):
    """Type and shape of one array."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """A `pred` has no number of bits in its name; it takes a byte, as all below a byte do here."""
        bits = _BITS.match(self.dtype)
        return max(1, int(bits[1]) // 8 if bits else 1) * self.size


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    arrays: tuple[Array, ...]  # of its result, those of a tuple in order
    opcode: str
    operands: tuple[str, ...]  # names; of a parameter its number
    attributes: str
    is_root: bool

    @property
    def words(self) -> list[str]:
        """The named scopes it was traced in, outermost first, and the operation."""
        name = _SCOPE.search(self.attributes)
        return name[1].split("/") if name else []

    @property
    def bytes(self) -> int:
        """Of its result."""
        return sum(array.bytes for array in self.arrays)

    def computations(self, *kinds: str) -> list[str]:
        """Names of the computations that it calls as one of `kinds`, attributes such as body or calls."""
        names: list[str] = []
        for kind in kinds:
            match = re.search(rf"\b{kind}=(\{{[^}}]*\}}|%\S+?(?=[,\s]|$))", self.attributes)
            names += _REFERENCE.findall(match[1]) if match else []
        return names


Computation = dict[str, Instruction]
"""Instructions by name, in the order of the schedule."""


class Module(NamedTuple):
    """All computations by name, and the name of the first one."""

    computations: dict[str, Computation]
    entry: str

    def root(self, name: str) -> Instruction:
        """The result of a computation."""
        return next(one for one in self.computations[name].values() if one.is_root)

    def fused(self, name: str) -> Iterator[tuple[Instruction, Computation]]:
        """All instructions of a fused computation and of the fusions inside of it, each with where it stands."""
        for one in self.computations[name].values():
            yield one, self.computations[name]
            for other in one.computations("calls"):
                yield from self.fused(other)


def read_module(text: str) -> Module:
    """Parse `Compiled.as_text()`.

    Raises:
      ValueError: no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = computations.setdefault(start[2], {})
            entry = start[2] if start[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (head := _INSTRUCTION.match(line)):
            current[head[2]] = _instruction(head[2], bool(head[1]), line[head.end() :])
    if not entry:
        raise ValueError("the text of a compiled program has no entry computation")
    return Module(computations, entry)


def _instruction(name: str, is_root: bool, rest: str) -> Instruction:
    """`rest` is what follows the equals sign."""
    cut = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    opcode, _, arguments = rest[cut:].strip().partition("(")
    end = _closing("(" + arguments) - 1
    arrays = tuple(
        Array(dtype, tuple(int(size) for size in dims.split(",") if size)) for dtype, dims in _ARRAY.findall(rest[:cut])
    )
    operands = (arguments[:end],) if opcode == "parameter" else tuple(_REFERENCE.findall(arguments[:end]))
    return Instruction(name, arrays, opcode, operands, arguments[end + 1 :], is_root)


def _closing(text: str) -> int:
    """Index of the bracket that closes the first one."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if not depth:
            return index
    raise ValueError(f"brackets do not close in {text!r:.80}")
