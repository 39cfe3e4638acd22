"""Host memory while a sharded checkpoint is loaded: a synthetic one of a published shape, on one device and on a mesh.

    JAX_NUM_CPU_DEVICES=8 python -m experiments.bench.loading --target_config=qwen3-0.6b

The weights are random and stored in a temporary folder. Memory is the anonymous memory of the process (RssAnon of
Linux), polled while loading; pages of the checkpoint in the system's page cache are not counted. On a CPU the weights
stay in host memory, which is the devices' memory too.
"""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import tempfile
import time

import jax
import numpy as np
from absl import flags
from safetensors.numpy import save_file

from configs.targets.shapes import TARGETS, get_target
from eagle_jax.checkpoint import hf
from eagle_jax.checkpoint.assemble import DTYPES
from eagle_jax.checkpoint.names import TensorSpec, target_tensors
from eagle_jax.checkpoint.save_target import config_to_hf
from eagle_jax.evaluation.summary import markdown_table
from eagle_jax.models.config import ModelConfig
from eagle_jax.sharding import make_mesh, target_shardings
from eagle_jax.types import Params
from experiments.cli import launch

PAUSE = 0.001
"""Seconds between two polls."""

LOADED: list[Params] = []
"""References to loaded weights, so that they stay in memory."""

FLAGS = flags.FlagValues()
flags.DEFINE_enum("target_config", "qwen3-0.6b", [*TARGETS], "shape of the target", flag_values=FLAGS)
flags.DEFINE_integer("num_layers", None, "layers of the target; left out, all", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_enum("stored", "bfloat16", [*DTYPES], "type of the weights on disk", flag_values=FLAGS)
flags.DEFINE_list("dtypes", ["bfloat16", "float32"], "types to load them as", flag_values=FLAGS)
flags.DEFINE_integer("shards", 8, "files of the checkpoint", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("mesh", "1x8", "DATAxMODEL, the devices to split the weights over", flag_values=FLAGS)


def main() -> None:
    """Write, load in every way, print."""
    unknown = [dtype for dtype in FLAGS.dtypes if dtype not in DTYPES]
    if unknown or not FLAGS.dtypes:
        raise ValueError(f"--dtypes takes {', '.join(DTYPES)}, got {', '.join(unknown) or 'none'}")
    held(os.getpid())  # raises on other systems than Linux
    make_mesh(*launch.mesh_sizes(FLAGS.mesh))  # raises where devices are missing
    config = get_target(FLAGS.target_config)
    config = dataclasses.replace(config, num_layers=FLAGS.num_layers or config.num_layers)
    ways = [(dtype, mesh) for dtype in FLAGS.dtypes for mesh in ("1x1", FLAGS.mesh)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        with launch.status(f"Writing {FLAGS.target_config} in {FLAGS.shards} files"):
            write_checkpoint(pathlib.Path(folder), config, FLAGS.stored, FLAGS.shards)
        with launch.status("Loading") as progress:
            for done, (dtype, mesh) in enumerate(ways):
                rows.append([mesh, dtype, *measure(folder, dtype, mesh)])
                progress(done + 1, len(ways))
    header = ["mesh", "as", "weights, MiB", "stays, MiB", "peak beyond, MiB", "largest tensor, MiB", "seconds"]
    print(f"{FLAGS.target_config}, stored as {FLAGS.stored} in {FLAGS.shards} files; jax {jax.__version__}\n")
    print(markdown_table(header, rows))


def write_checkpoint(folder: pathlib.Path, config: ModelConfig, dtype: str, shards: int) -> None:
    """A Hugging Face directory with random weights, its tensors spread over files of about one size."""
    specs, numbers = target_tensors(config), np.random.default_rng(0)
    sizes, files = [0] * shards, {}
    for name in sorted(specs, key=lambda name: -_size(specs[name])):
        shard = sizes.index(min(sizes))
        sizes[shard] += _size(specs[name])
        files[name] = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
    for file in sorted(set(files.values())):
        tensors = {
            name: numbers.random(specs[name].stored_shape, np.float32).astype(DTYPES[dtype])
            for name in specs
            if files[name] == file
        }
        save_file(tensors, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (folder / "config.json").write_text(json.dumps(config_to_hf(config, dtype)))


def _size(spec: TensorSpec) -> int:
    return int(np.prod(spec.stored_shape))


def measure(folder: str, dtype: str, mesh: str) -> list[float]:
    """Size of the weights, memory that stays, peak beyond it, and the largest tensor, in MiB; seconds.

    Loads in a process of its own, as memory freed by one load would be reused by the next; polled from this process, as
    a thread beside the loader would wait while that one holds the interpreter lock.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        loader = pool.apply(os.getpid)
        loading, peak = pool.apply_async(load, (folder, dtype, mesh)), 0
        while not loading.ready():
            peak = max(peak, held(loader))
            loading.wait(PAUSE)
        sizes, before, spent = loading.get()
        stays = held(loader)
    return [*(n / 2**20 for n in (sum(sizes), stays - before, max(0, peak - stays), max(sizes))), spent]


def load(folder: str, dtype: str, mesh: str) -> tuple[list[int], int, float]:
    """Load the weights and hold them; returns the bytes of each, the memory before, and seconds."""
    config = hf.load_config(folder)
    shardings = target_shardings(make_mesh(*launch.mesh_sizes(mesh)), config)
    before, started = held(os.getpid()), time.perf_counter()
    params = jax.block_until_ready(hf.load_params(folder, config, dtype=dtype, shardings=shardings))
    LOADED.append(params)
    return [leaf.nbytes for leaf in jax.tree.leaves(params)], before, time.perf_counter() - started


def held(process: int) -> int:
    """Anonymous memory of a process in bytes.

    Raises:
      ValueError: a system without RssAnon.
    """
    status = pathlib.Path(f"/proc/{process}/status")
    match = re.search(r"RssAnon:\s+(\d+) kB", status.read_text() if status.exists() else "")
    if match is None:
        raise ValueError(f"memory is read from RssAnon in {status}, which this system does not have")
    return int(match[1]) * 1024


if __name__ == "__main__":
    launch.run(main, FLAGS)
