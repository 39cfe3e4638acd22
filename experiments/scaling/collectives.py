"""What a compiled program sends from device to device, read from its optimised HLO text.

    %all-reduce.9 = bf16[60,8192]{1,0} all-reduce(%fusion.4), ..., metadata={op_name="jit(one_round)/target/Transformer/
        layers_0/self_attn/o_proj/dot_general"}

Each operation counts once. One in the body of a loop runs as often as the loop does, one in a branch only where the
branch is taken; both are marked.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SCOPES = ("noise", "draft", "target", "verify", "commit", "observe", "prefill")
"""Named scopes of the decoder; the innermost one counts."""

_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_NAME = re.compile(r'op_name="([^"]*)"')
_GROUPS = re.compile(r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]+)\})")  # [8,4]<=[32], or {{0,1},{2,3}}
_LAYER = re.compile(r"Transformer\)*/layers_(\d+)/")  # jvp(Transformer)/... where it is differentiated


class Collective(NamedTuple):
    """One operation."""

    kind: str
    bytes: int  # of its result on one device
    scope: str  # "" where it is in none
    layer: int | None  # of the target
    looped: bool
    branched: bool
    group: int | None  # devices that take part together; None: all


def read_collectives(hlo: str) -> list[Collective]:
    """All collectives of an HLO module."""
    return [one for line in hlo.splitlines() if (one := _read(line))]


def _read(line: str) -> Collective | None:
    operation = _OPERATION.match(line)
    if not operation:
        return None
    result, kind, started = operation.groups()
    sizes = [_bytes(*array) for array in _ARRAY.findall(result)]
    name = (_NAME.search(line) or ("", ""))[1]
    words = name.split("/")
    layer = _LAYER.search(name)
    groups = _GROUPS.search(line)
    return Collective(
        kind=kind,
        # What starts a gather or permute returns its operand too, and the result is never the smaller one.
        bytes=max(sizes) if started and kind != "all-reduce" else sum(sizes),
        scope=next((word for word in reversed(words) if word in SCOPES), ""),
        layer=int(layer[1]) if layer else None,
        looped="while" in words,
        branched="cond" in words,
        group=int(groups[1] or groups[2].count(",") + 1) if groups else None,
    )


def _bytes(bits: str, shape: str) -> int:
    """Of an array; the elements of a `pred` have no number of bits in their name and take a byte."""
    return max(1, int(bits or 8) // 8) * math.prod(int(size) for size in shape.split(",") if size)


def layer_sums(collectives: Sequence[Collective]) -> int:
    """The most collectives that one layer of the target has: 2 all-reduces under tensor parallelism, 0 without."""
    return max(Counter(one.layer for one in collectives if one.layer is not None).values(), default=0)


def table(collectives: Sequence[Collective]) -> list[dict[str, object]]:
    """Counts and bytes by kind and place, in the order of their first appearance."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for one in collectives:
        place = "layers" if one.layer is not None else ""
        groups.setdefault((one.kind, one.scope, place, one.looped, one.branched), []).append(one.bytes)
    return [
        {
            "kind": kind,
            "scope": scope,
            "place": place,
            "looped": looped,
            "branched": branched,
            "count": len(sizes),
            "bytes": sum(sizes),
        }
        for (kind, scope, place, looped, branched), sizes in groups.items()
    ]


def bytes_sent(collectives: Sequence[Collective], devices: int) -> float:
    """What each of `devices` sends at least; what is in branches is left out.

    With n devices in a group, (n - 1)/n of an array that is gathered, twice that of one that is summed for all, and all
    of what is passed on.
    """
    return sum(_sent(one, one.group or devices) for one in collectives if not one.branched)


def _sent(one: Collective, devices: int) -> float:
    shares = {"all-reduce": 2.0, "reduce-scatter": float(devices)}  # the result of the latter is one part of n
    if one.kind == "collective-permute":
        return float(one.bytes)
    return shares.get(one.kind, 1.0) * one.bytes * (devices - 1) / devices
