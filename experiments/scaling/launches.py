"""What a program compiled for a GPU does there: kernels launched, waits of the host, copies of caches, bytes by part.

A GPU runs a program kernel by kernel, and the host, which launches them, has to read a number back wherever a branch or
the end of a loop depends on it. All of this can be counted in the optimised HLO:

    kernel     an instruction that runs on the device: fusion, product, copy, sort, ...; those of a loop as often as it
               runs, where that is known
    host read  a conditional, and a loop whose number of steps is not known when compiling; the main loop of a program
               reads one more for each of its steps
    rewrite    a kernel whose result has as many elements as a cache or a weight and is not written in place

Bytes are those of operands and results, so an array that one kernel writes and the next reads counts twice, although
a GPU's cache may hold it in between. Of arrays that are sliced, gathered or updated only those parts count.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from experiments.scaling.collectives import SCOPES
from experiments.scaling.hlo import Array, Computation, Instruction, Module

FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "opt-barrier", "after-all"),
        *("add-dependency", "partition-id", "replica-id", "async-done", "copy-done"),
        *("all-reduce-done", "all-gather-done", "collective-permute-done"),
    }
)
"""Instructions that launch nothing of their own."""

UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""Instructions that write a part of their first operand in place, and the number of the operand that is this part."""

PARTS = frozenset({"dynamic-slice", "gather", "slice"})
"""Instructions that read a part of their first operand."""

_CONTRACTED = re.compile(r"lhs_contracting_dim(?:ension)?s\"?[=:][\[{]([^\]}]*)")
_FUSION_KIND = re.compile(r'"fusion_backend_config":\{"kind":"(\w+)"')
_TARGET = re.compile(r'custom_call_target="([^"]+)"')


@dataclasses.dataclass
class Work:
    """Of one run of a computation."""

    kernels: int = 0
    host_reads: int = 0
    loops: int = 0  # of unknown length; their bodies count once
    flops: float = 0.0
    launches: Counter[str] = dataclasses.field(default_factory=Counter)  # kernels by scope
    bytes: Counter[str] = dataclasses.field(default_factory=Counter)  # by scope
    products: Counter[str] = dataclasses.field(default_factory=Counter)  # kernels that read a weight in full, by kind
    rewrites: Counter[str] = dataclasses.field(default_factory=Counter)  # of caches and of weights

    def add(self, other: "Work", times: int = 1) -> None:
        """Another computation that this one runs `times` times."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, Counter):
                mine.update({key: times * count for key, count in theirs.items()})
            else:
                setattr(self, field.name, mine + times * theirs)


class Sizes(NamedTuple):
    """Numbers of elements of the arrays that no kernel should write in full."""

    caches: frozenset[int]
    weights: frozenset[int]


def count_call(module: Module, sizes: Sizes, *, sampled: bool = False) -> tuple[Work, Work | None]:
    """What a call of a program does beside its main loop, and what one step of that loop does.

    Args:
      module: the program.
      sizes: of caches and weights.
      sampled: of each conditional, count the branch with the most kernels; by default that with the fewest, which
        rounds take in which all rows are greedy.

    Returns:
      The rest of the call, and a step: None without a loop of unknown length in the entry computation.
    """
    counter = _Counter(module, sizes, sampled)
    loops = [one for one in module.computations[module.entry].values() if one.opcode == "while" and _steps(one) is None]
    main = max(loops, key=lambda loop: counter.step(loop).kernels, default=None)
    return counter.work(module.entry, without=main), None if main is None else counter.step(main)


def _steps(loop: Instruction) -> int | None:
    """Of a while loop, where the compiler knows them."""
    _, _, text = loop.attributes.partition('"known_trip_count":{"n":"')
    return int(text.partition('"')[0]) if text else None


class _Counter:
    """Counts in one module."""

    def __init__(self, module: Module, sizes: Sizes, sampled: bool) -> None:
        self.module, self.sizes, self.sampled = module, sizes, sampled
        self.scope = "rest"  # of the kernel before

    def step(self, loop: Instruction) -> Work:
        """Of one step of a loop: its body and, where the compiler does not know its length, its condition."""
        total = Work()
        for name in loop.computations("body", *(["condition"] if _steps(loop) is None else [])):
            total.add(self.work(name))
        return total

    def work(self, name: str, without: Instruction | None = None) -> Work:
        """Of a computation and all that it calls but one of its loops."""
        total = Work()
        computation = self.module.computations[name]
        for one in computation.values():
            if one.opcode == "while":
                steps = _steps(one)
                if one is not without:
                    total.add(self.step(one), 1 if steps is None else steps)
                    total.host_reads += steps is None
                    total.loops += steps is None
            elif one.opcode == "conditional":
                branches = one.computations("branch_computations", "true_computation", "false_computation")
                works = sorted(map(self.work, branches), key=lambda work: work.kernels)
                total.add(works[-1 if self.sampled else 0])
                total.host_reads += 1
            elif one.opcode in ("call", "async-start"):
                for called in one.computations("to_apply", "calls"):
                    total.add(self.work(called))
            elif one.opcode not in FREE:
                self._add_kernel(total, one, computation)
        return total

    def _add_kernel(self, total: Work, one: Instruction, computation: Computation) -> None:
        self.scope = scope = self._scope(one)
        operands = [computation[name] for name in dict.fromkeys(one.operands)]
        written, read = self._written(one, computation), self._read(one, operands)
        total.kernels += 1
        total.launches[scope] += 1
        total.bytes[scope] += sum(array.bytes for array in written) + sum(read.values())
        total.flops += self._flops(one, computation)
        given = {operand.arrays[0].size for operand in operands if read[operand.name] >= operand.bytes > 0}
        for what, sizes in (("caches", self.sizes.caches), ("weights", self.sizes.weights)):
            total.rewrites[what] += any(array.size in sizes & given for array in written)
        if (self.sizes.weights - self.sizes.caches) & given:
            total.products[_kind(one)] += 1

    def _scope(self, one: Instruction) -> str:
        """The innermost named scope of a kernel or of what is fused in it; without any name, that of the one before."""
        names = [one.words]
        for called in one.computations("calls"):
            names += [line.words for line, _ in reversed(list(self.module.fused(called)))]
        if not any(names):
            return self.scope
        return next((word for words in names for word in reversed(words) if word in SCOPES), "rest")

    def _written(self, one: Instruction, computation: Computation) -> list[Array]:
        """The arrays that a kernel writes, of those updated in place the part."""
        inner = computation
        results = [one]
        if one.opcode == "fusion":
            (called,) = one.computations("calls")
            inner, root = self.module.computations[called], self.module.root(called)
            results = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
        arrays: list[Array] = []
        for result in results:
            result = _through_bitcasts(result, inner)
            place = UPDATES.get(result.opcode)
            arrays += result.arrays if place is None else inner[result.operands[place]].arrays
        workspace = one.opcode == "custom-call" and len(arrays) > 1  # scratch space of a library comes last
        return arrays[:-1] if workspace else arrays

    def _read(self, one: Instruction, operands: Sequence[Instruction]) -> dict[str, int]:
        """Bytes that a kernel reads of each operand."""
        if one.opcode != "fusion":
            if one.opcode in PARTS or one.opcode in UPDATES:
                first = one.bytes if one.opcode in PARTS else 0
                return {operand.name: operand.bytes if place else first for place, operand in enumerate(operands)}
            return {operand.name: operand.bytes for operand in operands}
        (called,) = one.computations("calls")
        inner = self.module.computations[called]
        shares = _shares_read(inner)
        read = dict.fromkeys((operand.name for operand in operands), 0)
        sizes = {operand.name: operand.bytes for operand in operands}
        for line in inner.values():
            if line.opcode == "parameter":
                name = one.operands[int(line.operands[0])]
                read[name] = min(sizes[name], read[name] + int(shares[line.name] * line.bytes))
        return read

    def _flops(self, one: Instruction, computation: Computation) -> float:
        """Of the products in a kernel."""
        lines = [(one, computation)]
        for called in one.computations("calls"):
            lines += self.module.fused(called)
        total = 0.0
        for line, where in lines:
            contracted = _CONTRACTED.search(line.attributes)
            if contracted and line.opcode in ("dot", "custom-call"):
                left = where[line.operands[0]].arrays[0]
                axes = [int(axis) for axis in re.findall(r"\d+", contracted[1])]
                total += 2.0 * line.arrays[0].size * math.prod(left.dims[axis] for axis in axes)
        return total


def _through_bitcasts(one: Instruction, computation: Computation) -> Instruction:
    while one.opcode == "bitcast":
        one = computation[one.operands[0]]
    return one


def _shares_read(computation: Computation) -> dict[str, float]:
    """The share of each array in a fused computation that its result depends on, by name."""
    shares = dict.fromkeys(computation, 0.0)
    for user in reversed(computation.values()):  # users come after what they use
        share = 1.0 if user.is_root else min(1.0, shares[user.name])
        share = 1.0 if share and user.opcode == "dot" else share  # every part of a product reads all of an operand
        for place, name in enumerate(() if user.opcode == "parameter" else user.operands):
            if place == 0 and user.opcode in UPDATES:
                continue
            some = place == 0 and user.opcode in PARTS
            shares[name] += share * (user.arrays[0].size / max(computation[name].arrays[0].size, 1) if some else 1.0)
    return {name: min(1.0, share) for name, share in shares.items()}


def _kind(one: Instruction) -> str:
    """What computes a product: a code generator or a library; "loop" is a product that is written out."""
    config, target = _FUSION_KIND.search(one.attributes), _TARGET.search(one.attributes)
    if config and "gemm" in config[1]:
        return "triton"
    return target[1] if target else "loop"
