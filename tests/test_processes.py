"""Two processes with four devices each are one mesh: both read the same answers from it, those of one device."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

from eagle_jax.checkpoint.draft_vocabulary import with_draft_vocabulary
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.pretrained import load_pretrained_head, load_target
from eagle_jax.continuous import write_all
from eagle_jax.drafters import make_eagle2, make_prompt_lookup
from eagle_jax.generator import Generation, Generator
from eagle_jax.models.draft_head import make_head
from eagle_jax.models.transformer import make_target
from eagle_jax.sharding import make_mesh
from tests.compilations import count_compilations
from tests.experiments.conftest import write_model
from tests.processes import run_two

PROMPTS = [[5], [1, 2, 3, 1, 2], [*range(3, 20)], [9, 9], [7] * 33, [4, 6, 4], [8]]
LAW: dict[str, Any] = {
    "temperature": [0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0],
    "max_new_tokens": [12, 12, 12, 5, 9, 1, 7],
}


def write_files(folder: Path) -> None:
    """A target, and a head that drafts from rows of the target's LM head."""
    from tests.checkpoint.heads import random_head  # computes, which no process may before it has joined

    model = load_target(str(write_model(folder / "model", vocab_size=264)))
    config, params = random_head("eagle3", model.config)
    params = with_draft_vocabulary(params, model.config, model.params, range(264), 40)
    save_head(folder / "head", config, params, model.config, frozen_lm_head=True, token_ranks=range(264))


def answers(folder: Path, spread: bool) -> dict[str, Any]:
    """From one device, or from all devices of all processes, the head split too: one batch, and rows that refill."""
    mesh = make_mesh(4, 2) if spread else None
    model = load_target(str(folder / "model"), mesh=mesh)
    target = make_target(model.config)
    options = {"capacity": 64, "prefill_chunk": 16, "mesh": mesh}
    generator = Generator(target, model.params, make_prompt_lookup(3), **options)
    four = {name: values[:4] for name, values in LAW.items()}
    together = generator.generate(PROMPTS[:4], **four)

    config, weights = load_pretrained_head(str(folder / "head"), model, split=spread)
    drafter = make_eagle2(make_head(config, target), 6, 1, 3)
    generator = Generator(target, model.params, drafter, weights, **options)
    refilled = write_all(generator, PROMPTS, batch=4, **LAW)
    with count_compilations() as compiled:
        again = write_all(generator, PROMPTS[::-1], batch=4, **LAW)
    assert compiled == []
    return {"together": shown(together), "refilled": shown(refilled), "again": shown(again)}


def shown(actual: Generation) -> dict[str, Any]:
    return {"tokens": actual.tokens, "rounds": actual.rounds, "accepted": actual.accepted.tolist()}


def join(process: int, port: int, folder: str) -> None:
    """What each of the processes runs."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    assert (len(jax.devices()), len(jax.local_devices())) == (8, 4)
    print(json.dumps(answers(Path(folder), spread=True)))


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    write_files(tmp_path)
    ended = run_two(__name__, str(tmp_path))
    assert [json.loads(lines[-1]) for lines in ended] == [answers(tmp_path, spread=False)] * 2
