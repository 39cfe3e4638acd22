"""Compile the programs of a published target for TPUs or GPUs that are not there: memory, work, traffic of each device.

    python -m experiments.scaling.compile --target_config=llama3-70b --topology=v5p:2x2x2 --mesh=1x8
    python -m experiments.scaling.compile --target_config=llama3-8b --topology=h200:1 --mesh=1x1 --programs=decode,plain

No weights are read or made. TPU topologies need the package libtpu, those of GPUs the CUDA plugin of jax;
--topology=cpu:8 compiles for virtual CPU devices, whose bytes of weights and caches are the same. --num_layers=2 is
quick; --from_layers=3 compiles programs of 3 and 4 layers and extrapolates their counts.
docs/scaling.md explains the numbers.
"""

import dataclasses
import functools
import importlib.metadata
import json
import pathlib
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from configs.targets.shapes import DRAFT_VOCAB, TARGETS, get_target
from eagle_jax import platforms, sharding
from eagle_jax.accelerators import GIB, GPUS
from eagle_jax.drafters.default_tree import LADDER
from eagle_jax.evaluation.summary import markdown_table
from eagle_jax.files import local, read_jsonl, with_fields
from eagle_jax.provenance import git_commit
from experiments.cli import launch
from experiments.cli.methods import HEAD_METHODS
from experiments.scaling.chips import Topology, get_topology
from experiments.scaling.cost import compile_and_count, least_read, memory_of, sensible, with_bounds
from experiments.scaling.gpu_cost import bound_of, count_launches, estimate_of, extrapolated
from experiments.scaling.programs import (
    PROGRAMS,
    Setting,
    Shapes,
    check_places,
    clamped,
    make_shapes,
    placement_of,
    tree_by_bound,
)
from experiments.scaling.training_step import lower_train_step

PUBLISHED = LADDER[0]
"""The tree of the papers."""

LOWERERS = {**PROGRAMS, "train": lower_train_step}

Row = dict[str, Any]
Table = tuple[list[str], list[list[object]]]

FLAGS = flags.FlagValues()
flags.DEFINE_string("target_config", "llama3-8b", f"shape of the target: {', '.join(TARGETS)}", flag_values=FLAGS)
text = "devices: KIND:LAYOUT of a TPU, as v5p:2x2x2, v6e:2x4, v5e:4x4, v4:2x2x1, h200:N, h100:N, or cpu:N"
flags.DEFINE_string("topology", "cpu:8", text, flag_values=FLAGS)
flags.DEFINE_string("mesh", "1x8", "DATAxMODEL: devices over which rows and weights are split", flag_values=FLAGS)
flags.DEFINE_enum("method", "eagle3", list(HEAD_METHODS), "drafting method", flag_values=FLAGS)
text = "tree slots, the root included; eagle has its published tree, whatever --nodes, --depth and --top_k are"
flags.DEFINE_integer("nodes", None, text, lower_bound=2, flag_values=FLAGS)
text = "levels below the first; where no size is given, eagle3 has the best tree by bounds, others the published one"
flags.DEFINE_integer("depth", None, text, lower_bound=0, flag_values=FLAGS)
flags.DEFINE_integer("top_k", None, "children of a tree node", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("batch", 1, "rows that decode together", lower_bound=1, flag_values=FLAGS)
text = "slots of all caches, tokens of a row in train; for a target with fewer positions as many as those"
flags.DEFINE_integer("context", 4096, text, lower_bound=128, flag_values=FLAGS)
DTYPES = ["float32", "bfloat16", "float16"]
flags.DEFINE_enum("dtype", "bfloat16", DTYPES, "of weights and caches", flag_values=FLAGS)
text = "split the draft head over the devices as the target is; left out, the bound on drafting decides"
flags.DEFINE_boolean("split_head", None, text, flag_values=FLAGS)
text = "rows of the LM head of an EAGLE-3 or one-pass head"
flags.DEFINE_integer("draft_vocab", DRAFT_VOCAB, text, lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("num_layers", None, "compile with fewer layers of the target", lower_bound=1, flag_values=FLAGS)
text = "compile with this many layers of the target and with one more, extrapolate all counts to all layers"
flags.DEFINE_integer("from_layers", None, text, lower_bound=3, flag_values=FLAGS)
text = f"what to compile, of {', '.join(LOWERERS)}; left empty, nothing is compiled and only bytes are counted"
flags.DEFINE_list("programs", ["prefill", "round", "step", "train"], text, flag_values=FLAGS)
flags.DEFINE_string("output", "", "file to which one line of JSON is added for each program", flag_values=FLAGS)
text = "a file that --output has written: print its programs as one table and compile nothing"
flags.DEFINE_string("rows", "", text, flag_values=FLAGS)


_TIMES = ("ms, bound", "ms, no overlap", "ms, compiler")
_FIELDS = tuple(field.name for field in dataclasses.fields(Setting) if field.name != "target")


def main() -> None:
    """Check, compile one program after the other, print."""
    if FLAGS.rows:
        print(summary(pathlib.Path(FLAGS.rows)))
        return
    launch.check_file("output", FLAGS.output, folders=True)
    target = get_target(FLAGS.target_config)
    if FLAGS.num_layers:
        target = dataclasses.replace(target, num_layers=FLAGS.num_layers)
    unknown = [name for name in FLAGS.programs if name not in LOWERERS]
    if unknown:
        raise ValueError(f"--programs takes {', '.join(LOWERERS)}, got {', '.join(unknown)}")
    kind = FLAGS.topology.partition(":")[0]
    if FLAGS.from_layers and (kind == "cpu" or FLAGS.from_layers >= target.num_layers):
        raise ValueError(
            f"--from_layers={FLAGS.from_layers} extrapolates programs for TPUs and GPUs to the"
            f" {target.num_layers} layers of a longer target, the topology is {FLAGS.topology}"
        )
    given = {name: getattr(FLAGS, name) for name in _FIELDS}
    given |= {name: getattr(PUBLISHED, name) if given[name] is None else given[name] for name in PUBLISHED._fields}
    given |= {"context": clamped(FLAGS.context, target), "split_head": bool(FLAGS.split_head)}
    topology = get_topology(FLAGS.topology)
    if topology.chip:  # a program for devices that are not there cannot be read back from the cache
        jax.config.update("jax_enable_compilation_cache", False)
    with platforms.compiling_for(topology.platform):
        mesh = _mesh(topology)
        _compile(_with_defaults(Setting(target=target, **given), topology, mesh), topology, mesh)


def _with_defaults(setting: Setting, topology: Topology, mesh: Mesh) -> Setting:
    """Tree and place of the head by bounds where no flag says them; a line on stderr for each."""
    sizes_given = any(getattr(FLAGS, name) is not None for name in PUBLISHED._fields)
    if not sizes_given and topology.chip and setting.target.experts is None:
        choice = tree_by_bound(setting, mesh, topology.chip, topology.links, FLAGS.split_head)
        if choice is not None:
            launch.note(f"{choice.reason}; tau is that of the head of SmolLM2")
        if choice is not None and choice.size is not None:
            setting = dataclasses.replace(setting, **choice.size._asdict())
    if FLAGS.split_head is None:
        placement = placement_of(setting, mesh, topology.chip, topology.links)
        launch.note(placement.reason)
        setting = dataclasses.replace(setting, split_head=placement.split)
    return setting


def _compile(setting: Setting, topology: Topology, mesh: Mesh) -> None:
    """All programs of a setting; prints and appends to --output."""
    target, shapes = setting.target, make_shapes(setting, mesh)
    held = {
        "target": FLAGS.target_config,
        "num_layers": target.num_layers,
        **{field: getattr(setting, field) for field in _FIELDS},
        **_tree(setting, shapes),
        "topology": topology.name,
        "mesh": FLAGS.mesh,
        "commit": git_commit(),
        "memory": memory_of(shapes),
        "least_bytes": {name: least_read(name, shapes, target) for name in LOWERERS},
    }
    rows = [_row(name, held, setting, topology, mesh) for name in FLAGS.programs]
    if not rows:
        _append(held)
    tree = f"{held['nodes']}/{held['depth']}/{held['top_k']}" if held["top_k"] else f"{held['nodes']} nodes"
    print(
        f"{FLAGS.target_config}, {target.num_layers} layers, {setting.dtype}, batch {setting.batch}, "
        f"{setting.context} slots, on {topology.name} as {FLAGS.mesh}; {setting.method} {tree}, "
        f"head {'split' if setting.split_head else 'replicated'}"
    )
    print("\n" + markdown_table(*_memory(held, topology)))
    if FLAGS.from_layers:
        print(f"\ncounts from programs of {FLAGS.from_layers} and {FLAGS.from_layers + 1} layers")
    tables = (_programs, _collectives, *([_launches, _moved] if _is_gpu(topology) else []))
    for table in tables if rows else ():
        print("\n" + markdown_table(*table(rows)))


def _tree(setting: Setting, shapes: Shapes) -> Row:
    """Of the drafter that is compiled; a static tree has no one number of children."""
    top_k = setting.top_k if HEAD_METHODS[setting.method].dynamic else None
    return {"nodes": shapes.models.drafter.nodes, "depth": shapes.models.drafter.max_depth - 1, "top_k": top_k}


def summary(path: pathlib.Path) -> str:
    """The programs of all rows in a file, one line each, where a program was compiled twice the later one.

    Those for GPUs come once more with their launches, each time that they were compiled.
    """
    rows = [row for row in read_jsonl(path, with_fields()) if "program" in row]
    header = ["target", "devices", "rows x slots", "program", "peak GiB", "temporary GiB", *_TIMES, "sums a layer"]
    lines = {}
    for row in rows:
        where = (_model_of(row), f"{row['topology']} as {row['mesh']}", f"{row['batch']} x {row['context']}")
        numbers = (
            [
                f"{row['peak_bytes'] / GIB:.2f}",
                f"{row['temporary_bytes'] / GIB:.2f}",
                *_times(row),
                row["collectives_per_layer"],
            ]
            if row["fits"] is not False
            else ["does not fit", *[""] * 5]
        )
        lines[*where, row["program"]] = [*where, row["program"], *numbers]
    launches = [
        {**row, "program": f"{_model_of(row)}, {row['batch']} x {row['context']}, {row['program']}"}
        for row in rows
        if "kernels" in row
    ]
    tables = [(header, list(lines.values())), *([_launches(launches)] if launches else [])]
    return "\n\n".join(markdown_table(*table) for table in tables)


def _times(row: Row) -> list[str]:
    """Milliseconds under `_TIMES`; empty for CPUs, and where the compiler's estimate makes no sense."""
    known = [row["roofline_seconds"], row["serial_seconds"], row["optimal_seconds"] if sensible(row) else None]
    return ["" if seconds is None else f"{1e3 * seconds:.2f}" for seconds in known]


def _model_of(row: Row) -> str:
    """Target and method; layers only where they are not all of them."""
    layers = "" if row["num_layers"] == get_target(row["target"]).num_layers else f" of {row['num_layers']} layers"
    return f"{row['target']}{layers}, {row['method']}{', split' if row['split_head'] else ''}"


def _mesh(topology: Topology) -> Mesh:
    data, model = launch.mesh_sizes(FLAGS.mesh)
    if data * model != len(topology.devices):
        raise ValueError(
            f"--mesh={FLAGS.mesh} takes {data * model} devices, {topology.name} has {len(topology.devices)}"
        )
    return sharding.make_mesh(data, model, list(topology.devices))


def _is_gpu(topology: Topology) -> bool:
    return topology.chip in GPUS.values()


def _row(name: str, held: Row, setting: Setting, topology: Topology, mesh: Mesh) -> Row:
    """Compile one program; the row that describes it."""
    least = held["least_bytes"][name]
    with launch.status(f"Compiling {name}"):
        if FLAGS.from_layers:
            few, more = (_count(name, least, _shorter(setting, extra), topology, mesh) for extra in (0, 1))
            counted = extrapolated(few, more, setting.target.num_layers - FLAGS.from_layers)
            counted["compile_seconds"] = few["compile_seconds"] + more["compile_seconds"]
            counted |= with_bounds(counted, topology, least) if "peak_bytes" in counted else {}
        else:
            counted = _count(name, least, setting, topology, mesh)
    libtpu = importlib.metadata.version("libtpu") if topology.platform == "tpu" else None
    versions = {"jax": jax.__version__, "libtpu": libtpu, "from_layers": FLAGS.from_layers}
    row = {**held, "program": name, **versions, **counted, "least_bytes": least}
    if _is_gpu(topology):
        row["bounds"] = {kind: [bound_of(kind, row), estimate_of(kind, row)] for kind in GPUS}
    _append(row)
    return row


def _shorter(setting: Setting, extra: int) -> Setting:
    """With few layers of the target, of which the head fuses three different ones, as of all of them."""
    target = dataclasses.replace(setting.target, num_layers=FLAGS.from_layers + extra, tap_layers=(0, 1, 2))
    return dataclasses.replace(setting, target=target)


def _count(name: str, least_bytes: int, setting: Setting, topology: Topology, mesh: Mesh) -> Row:
    """Compile one program of a setting and count."""
    shapes = make_shapes(setting, mesh)
    with sharding.active(mesh):
        lowered = LOWERERS[name](shapes, setting, mesh)
    check = functools.partial(check_places, shapes) if name == "prefill" else None
    count = (lambda text: count_launches(name, text, shapes)) if _is_gpu(topology) else None
    return compile_and_count(lowered, topology, mesh.size, least_bytes, check, count)


def _append(row: Row) -> None:
    if FLAGS.output:
        path = local(FLAGS.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _memory(held: Row, topology: Topology) -> Table:
    memory = {**held["memory"], "sum": sum(held["memory"].values())}
    if topology.chip:
        memory["HBM"] = int(topology.chip.hbm)
    return ["a device holds", *memory], [["GiB", *(f"{size / GIB:.3f}" for size in memory.values())]]


def _programs(rows: list[Row]) -> Table:
    header = ["program", "fits", "peak GiB", "temporary GiB", "GFLOP", "GB read", *_TIMES, "sums a layer"]
    return header, [
        [
            row["program"],
            "yes" if row["fits"] else "",  # unknown for virtual devices
            f"{row['peak_bytes'] / GIB:.2f}",
            f"{row['temporary_bytes'] / GIB:.2f}",
            f"{row['flops'] / 1e9:.1f}",
            f"{row['least_bytes'] / 1e9:.2f}",
            *_times(row),
            row["collectives_per_layer"],
        ]
        if row["fits"] is not False
        else [row["program"], f"no: {row['refusal']}", *[""] * 8]
        for row in rows
    ]


def _collectives(rows: list[Row]) -> Table:
    header = ["program", "sends", "from", "times", "bytes", "note"]
    return header, [
        [
            row["program"],
            one["kind"],
            f"{one['scope']} {one['place']}".strip(),
            one["count"],
            one["bytes"],
            ", ".join(note for note in ("looped", "branched") if one[note]),
        ]
        for row in rows
        for one in row.get("collectives", ())
    ]


def _launches(rows: list[Row]) -> Table:
    """What a GPU and its host do in a round, a chunk of a prompt or a call."""
    header = ["program", "kernels", "host reads", "sampled", "of a call", "caches written", "weights written"]
    header += [f"ms, {what} {kind}" for kind in GPUS for what in ("bound", "estimate")] + ["products"]
    return header, [
        [
            row["program"],
            row["kernels"],
            row["host_reads"],
            f"{row['sampled']['kernels']}, {row['sampled']['host_reads']}",
            row["call_kernels"],
            row["rewrites"]["caches"],
            row["rewrites"]["weights"],
            *(f"{1e3 * seconds:.2f}" for kind in GPUS for seconds in row["bounds"][kind]),
            ", ".join(f"{kind} {count}" for kind, count in row["products"].items()),
        ]
        for row in rows
    ]


def _moved(rows: list[Row]) -> Table:
    """Kernels, and megabytes that they take and give, by part."""
    parts = list(dict.fromkeys(part for row in rows for part in row["launches"]))
    return ["kernels, MB", *parts], [
        [
            row["program"],
            *(f"{row['launches'].get(part, 0)}, {row['moved_bytes'].get(part, 0) / 1e6:.1f}" for part in parts),
        ]
        for row in rows
    ]


if __name__ == "__main__":
    launch.run(main, FLAGS)
