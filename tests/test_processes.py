"""Two processes with four devices each are one mesh: both read the same answers from it, those of one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from eagle_jax.drafters import make_prompt_lookup
from eagle_jax.generate import Generator
from eagle_jax.sharding import make_mesh, place, target_shardings
from eagle_jax.testing import tiny_transformer

ROOT = Path(__file__).parents[1]
PROMPTS = [[5], [1, 2, 3, 1, 2], [*range(3, 20)], [9, 9]]
LAW: dict[str, Any] = {"temperature": [0.0, 1.0] * 2, "max_new_tokens": [12, 12, 12, 5]}


def answers(spread: bool) -> dict[str, Any]:
    """From the tiny target on one device, or on all devices of all processes."""
    config, target, params = tiny_transformer(num_layers=1)
    mesh = make_mesh(4, 2) if spread else None
    if mesh is not None:
        params = place(params, target_shardings(mesh, config))
    generator = Generator(target, params, make_prompt_lookup(3), capacity=64, prefill_chunk=16, mesh=mesh)
    written = generator.generate(PROMPTS, **LAW)
    return {"tokens": written.tokens, "rounds": written.rounds, "accepted": written.accepted.tolist()}


def join(process: int, port: int) -> None:
    """What each of the processes runs."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    assert (len(jax.devices()), len(jax.local_devices())) == (8, 4)
    print(json.dumps(answers(spread=True)))


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_processes() -> None:
    port = free_port()
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"from tests.test_processes import join; join({process}, {port})"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        ended = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    assert [json.loads(output.splitlines()[-1]) for output, _ in ended] == [answers(spread=False)] * 2
