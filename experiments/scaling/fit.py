"""The smallest TPU slices that hold published targets, their draft heads and caches: bytes alone, nothing is compiled.

    python -m experiments.scaling.fit --targets=llama3-8b,llama3-70b --kinds=v5e,v5p

Weights and caches are split over all chips of a slice by the rules of `eagle_jax.sharding`, and what does not divide is
replicated. The layers of a target are alike, so two short targets give the bytes of a long one. The sizes of temporary
arrays and code come from `experiments.scaling.compile`; --reserve leaves room for them.
"""

import dataclasses
import functools
import json
import math
from typing import Any

from absl import flags
from jax.sharding import AbstractMesh, AxisType

from configs.targets.shapes import TARGETS, get_target
from eagle_jax.accelerators import GIB, TPUS, links_of
from eagle_jax.evaluation.summary import markdown_table
from eagle_jax.files import local
from eagle_jax.provenance import git_commit
from eagle_jax.sharding import DATA, MODEL
from experiments.cli import launch
from experiments.cli.methods import HEAD_METHODS
from experiments.scaling.chips import LAYOUTS
from experiments.scaling.cost import memory_of
from experiments.scaling.programs import Setting, clamped, make_shapes, placement_of

FLAGS = flags.FlagValues()
flags.DEFINE_list("targets", [*TARGETS], "shapes of targets", flag_values=FLAGS)
flags.DEFINE_list("kinds", [*TPUS], "of TPU", flag_values=FLAGS)
flags.DEFINE_enum("method", "eagle3", list(HEAD_METHODS), "drafting method", flag_values=FLAGS)
flags.DEFINE_integer("batch", 1, "rows that decode together", lower_bound=1, flag_values=FLAGS)
text = "slots of all caches, for a target with fewer positions as many as those"
flags.DEFINE_integer("context", 4096, text, lower_bound=128, flag_values=FLAGS)
flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16", "float16"], "of all that is held", flag_values=FLAGS)
text = "split the draft head over the devices as the target is; left out, the bound on drafting decides"
flags.DEFINE_boolean("split_head", None, text, flag_values=FLAGS)
# Prefill of Llama-3-70B takes 2.3 GiB beyond what is held on each of eight v5p chips; a program gets 15.75 of v5e's 16.
flags.DEFINE_float("reserve", 3.0, "GiB of a device for all else", lower_bound=0.0, flag_values=FLAGS)
flags.DEFINE_string("output", "", "file to which one line of JSON is added for each slice", flag_values=FLAGS)

Row = dict[str, Any]

_FIELDS = ("method", "batch", "context", "dtype", "split_head")


def main() -> None:
    """Count, print."""
    launch.check_file("output", FLAGS.output, folders=True)
    unknown = [kind for kind in FLAGS.kinds if kind not in TPUS]
    if unknown:
        raise ValueError(f"--kinds takes {', '.join(TPUS)}, got {', '.join(unknown)}")
    rows: list[Row] = []
    for name in FLAGS.targets:
        given = {field: getattr(FLAGS, field) for field in _FIELDS}
        target = get_target(name)
        given["context"] = clamped(FLAGS.context, target)
        setting = Setting(target=target, nodes=60, depth=7, top_k=10, **{**given, "split_head": bool(FLAGS.split_head)})
        with launch.status(name):
            rows += [{"target": name, **smallest(setting, kind), "commit": git_commit()} for kind in FLAGS.kinds]
    if FLAGS.output:
        path = local(FLAGS.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    head = {True: "split", False: "replicated", None: "split where the bound on drafting says so"}[FLAGS.split_head]
    print(f"{FLAGS.dtype}, batch {FLAGS.batch}, up to {FLAGS.context} slots; {FLAGS.method}, head {head}\n")
    print(table(rows))


def smallest(setting: Setting, kind: str) -> Row:
    """The smallest slice of a kind that holds a setting; `topology` is None where none does."""
    row = {name: getattr(setting, name) for name in _FIELDS}
    row |= {"kind": kind, "reserve": FLAGS.reserve, "topology": None, "devices": None, "memory": None}
    for layout in LAYOUTS[kind].names:
        devices = math.prod(map(int, layout.split("x")))
        split = is_split(setting, kind, layout) if FLAGS.split_head is None else FLAGS.split_head
        memory = held(dataclasses.replace(setting, split_head=split), devices)
        if sum(memory.values()) <= TPUS[kind].hbm - FLAGS.reserve * GIB:
            return {**row, "split_head": split, "topology": f"{kind}:{layout}", "devices": devices, "memory": memory}
    return row


def _mesh(devices: int) -> AbstractMesh:
    return AbstractMesh((1, devices), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def is_split(setting: Setting, kind: str, layout: str) -> bool:
    """Whether the bound on drafting splits the head of a setting over all chips of a slice."""
    sizes = tuple(map(int, layout.split("x")))
    short = dataclasses.replace(setting, target=dataclasses.replace(setting.target, num_layers=1))
    return placement_of(short, _mesh(math.prod(sizes)), TPUS[kind], links_of(sizes)).split


@functools.cache
def held(setting: Setting, devices: int) -> dict[str, int]:
    """Bytes of each of `devices` over which the weights are split, as `memory_of` counts them."""
    mesh = _mesh(devices)

    def short(num_layers: int) -> dict[str, int]:
        target = dataclasses.replace(setting.target, num_layers=num_layers)
        return memory_of(make_shapes(dataclasses.replace(setting, target=target), mesh))

    one, two = short(1), short(2)
    return {name: one[name] + (setting.target.num_layers - 1) * (two[name] - one[name]) for name in one}


def table(rows: list[Row]) -> str:
    """A line for each target, a column for each kind."""
    targets, kinds = (list(dict.fromkeys(row[name] for row in rows)) for name in ("target", "kind"))
    by_cell = {(row["target"], row["kind"]): row for row in rows}
    header = ["target", *(f"{kind}, {TPUS[kind].hbm / GIB:.0f} GiB" for kind in kinds)]
    return markdown_table(header, [[target, *(_cell(by_cell[target, kind]) for kind in kinds)] for target in targets])


def _cell(row: Row) -> str:
    """Layout: GiB of weights + head + both caches; a dash where no slice is large enough."""
    if not row["memory"]:
        return "-"
    memory = row["memory"]
    caches = memory["target_cache"] + memory["head_cache"]
    parts = (memory["target_weights"], memory["head_weights"], caches)
    return f"{row['topology'].partition(':')[2]}: " + " + ".join(f"{part / GIB:.2f}" for part in parts)


if __name__ == "__main__":
    launch.run(main, FLAGS)
