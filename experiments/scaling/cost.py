"""Cost of a compiled program: bytes of each device's memory, its work, and a lower bound on its time.

    seconds >= max(FLOPs / peak, bytes read / HBM bandwidth, bytes sent / bandwidth of the links)

Communication can overlap with reads and computation, as far as the compiler manages; a program that waits for every
sum takes at least max(FLOPs / peak, bytes read / HBM bandwidth) + bytes sent / bandwidth of the links.

The bytes are those that have to be read: weights once for every pass over them, and a full cache; of experts as many
as the tokens of a pass choose on average, where each token chooses evenly and for itself. The compiler's own count is
no lower bound, since it counts prefetches into fast memory up to three times. Its FLOPs count the body of a loop once,
so one block of attention over the prefix. `optimal_seconds` is its estimate of time, implausible for some chips.
"""

import time
from collections.abc import Callable
from typing import Any

import jax

from eagle_jax.drafters.placement import bytes_read, head_bytes
from eagle_jax.models.config import ModelConfig
from eagle_jax.sharding import device_bytes
from experiments.scaling.chips import Topology
from experiments.scaling.collectives import bytes_sent, layer_sums, read_collectives, table
from experiments.scaling.gpu_cost import OPTIONS
from experiments.scaling.programs import Shapes

REFUSED = "RESOURCE_EXHAUSTED"
"""Marks the compiler's error for a program that does not fit."""


def memory_of(shapes: Shapes) -> dict[str, int]:
    """Bytes of one device that a drafting decoder holds between rounds."""
    state = shapes.state
    return {
        "target_weights": device_bytes(shapes.models.target_params),
        "head_weights": device_bytes(shapes.models.drafter_params),
        "target_cache": device_bytes(state.cache),
        "head_cache": device_bytes(state.drafter),
        "other": device_bytes((state.text, state.prompt_length, state.done, state.rounds, state.accepted)),
    }


def experts_left_alone(program: str, shapes: Shapes, target: ModelConfig) -> int:
    """Bytes of the experts of a device that no token of a pass chooses, on average; prefill and training read all."""
    experts, nodes = target.experts, {"step": 1, "one": 1, "round": shapes.models.drafter.nodes}
    nodes |= {"pass": nodes["round"], "decode": nodes["round"], "plain": 1}
    if experts is None or program not in nodes:
        return 0
    rows = shapes.state.text.sharding.shard_shape(shapes.state.text.shape)[0]
    share = (1 - experts.per_token / experts.count) ** (rows * nodes[program])
    layers = (shapes.models.target_params[f"layers_{layer}"]["mlp"] for layer in range(target.num_layers))
    return int(share * device_bytes([mlp["experts"] for mlp in layers if "experts" in mlp]))


def least_read(program: str, shapes: Shapes, config: ModelConfig) -> int:
    """Bytes of its memory that a device reads at least, with full caches: of `prefill` a chunk, of loops a round."""
    params, state = shapes.models.target_params, shapes.state
    gathered = device_bytes(params["embed_tokens"]) if "lm_head" in params else 0  # tied: the LM head reads all of it
    gathered += experts_left_alone(program, shapes, config)
    target = device_bytes(params) - gathered + device_bytes(state.cache)
    observed, drafted = _read_by_drafter(shapes)
    return {
        "prefill": target + observed,
        "round": target + observed + drafted,
        "decode": target + observed + drafted,
        "train": device_bytes(params) - gathered,
    }.get(program, target)


def _read_by_drafter(shapes: Shapes) -> tuple[int, int]:
    """Bytes of its memory that a device reads at least to observe, and to draft."""
    head, params, config = shapes.models.drafter_params, shapes.models.target_params, shapes.head.config
    lm_head = device_bytes(head.lm_head if head.lm_head is not None else params.get("lm_head", params["embed_tokens"]))
    held = head_bytes(config, head, lm_head, device_bytes(shapes.state.drafter))
    return bytes_read(config, held, shapes.models.drafter.max_depth)


def compile_and_count(
    lowered: jax.stages.Lowered,
    topology: Topology,
    devices: int,
    least_bytes: int,
    check: Callable[[jax.stages.Compiled], None] | None = None,
    count: Callable[[str], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Compile one program for `devices` of a topology, each of which reads `least_bytes`; `check` inspects it.

    `count` adds fields that it reads from the text of a program for GPUs, for which the compiler counts no work.

    Returns:
      `compile_seconds`; `fits`, with `refusal` where it does not; bytes of a device: `argument_bytes`, `output_bytes`
      (those not written in place of an argument), `temporary_bytes`, `code_bytes`, `peak_bytes`, the sum of these;
      `flops`, `bytes_accessed`, `optimal_seconds` by the compiler; `roofline_seconds`, the bound, `serial_seconds`, the
      same where nothing is sent beside other work, and `network_seconds`, the sending alone; `collectives`,
      `collectives_per_layer`, `sent_bytes`. For CPUs `fits` and the last three times are None.
    """
    started = time.perf_counter()
    try:
        compiled = lowered.compile(OPTIONS) if count else lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if REFUSED not in str(error):
            raise
        return {"fits": False, "refusal": _first_line(str(error)), "compile_seconds": time.perf_counter() - started}
    row: dict[str, Any] = {"compile_seconds": time.perf_counter() - started}
    if check is not None:
        check(compiled)
    stats: Any = compiled.memory_analysis()
    row |= {
        "argument_bytes": stats.argument_size_in_bytes,
        "output_bytes": stats.output_size_in_bytes - stats.alias_size_in_bytes,
        "temporary_bytes": stats.temp_size_in_bytes,
        "code_bytes": stats.generated_code_size_in_bytes,
    }
    row["peak_bytes"] = sum(row[name] for name in ("argument_bytes", "output_bytes", "temporary_bytes", "code_bytes"))
    # For a TPU the compiler would have refused.
    row["fits"] = row["peak_bytes"] <= topology.chip.hbm if topology.chip and count else True if topology.chip else None
    text = compiled.as_text() or ""
    counted = count(text) if count else {}
    analysis = counted if count else compiled.cost_analysis() or {}
    return row | _work(analysis, text, topology, devices, least_bytes) | counted


def _work(analysis: dict[str, Any], text: str, topology: Topology, devices: int, least_bytes: int) -> dict[str, Any]:
    collectives = read_collectives(text)
    flops, sent = analysis.get("flops", 0.0), bytes_sent(collectives, devices)
    return {
        "flops": flops,
        "bytes_accessed": analysis.get("bytes accessed", 0.0),
        "optimal_seconds": analysis.get("optimal_seconds"),
        **_bounds(flops, least_bytes, sent, topology),
        "sent_bytes": sent,
        "collectives_per_layer": layer_sums(collectives),
        "collectives": table(collectives),
    }


def _bounds(flops: float, least_bytes: int, sent: float, topology: Topology) -> dict[str, float | None]:
    """Seconds that a program takes at least, with and without overlap, and those that it sends; None for CPUs."""
    chip = topology.chip
    if chip is None:
        return dict.fromkeys(("roofline_seconds", "serial_seconds", "network_seconds"))
    network = sent / (chip.link * max(topology.links, 1))
    alone = max(flops / chip.flops, least_bytes / chip.bandwidth)
    return {
        "roofline_seconds": max(alone, network),
        "serial_seconds": alone + network,
        "network_seconds": network,
    }


def with_bounds(row: dict[str, Any], topology: Topology, least_bytes: int) -> dict[str, Any]:
    """The fields of a row that follow from its counts, where these are those of a longer target."""
    fits = {"fits": row["peak_bytes"] <= topology.chip.hbm} if topology.chip else {}
    return _bounds(row["flops"], least_bytes, row["sent_bytes"], topology) | fits


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]


def sensible(row: dict[str, Any]) -> bool:
    """Whether the compiler's estimate of time is between half the bound and five times it."""
    estimate, bound = row.get("optimal_seconds"), row.get("roofline_seconds")
    return bool(estimate and bound and 0.5 * bound <= estimate <= 5 * bound)
