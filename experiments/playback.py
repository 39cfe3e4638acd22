"""The rows of a sweep's point without its times: tau and n-alpha, played back on answers that were written once.

Points of a sweep mostly ask for the same answers, so plain decoding writes them for the first one alone, into a folder
that the others look into: each point may be measured in a process of its own.
"""

import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from eagle_jax.checkpoint.pretrained import LoadedModel, load_target
from eagle_jax.evaluation import runner
from eagle_jax.evaluation.played import accept, decode_plain, record_answers
from eagle_jax.evaluation.recording import Recording
from eagle_jax.evaluation.replay import check_playable
from eagle_jax.evaluation.summary import tree_size
from eagle_jax.evaluation.tasks import read_task
from eagle_jax.files import write_whole
from eagle_jax.journal import Record
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import git_commit, weights_digest
from experiments.cli import launch, methods
from experiments.cli.method_entries import build, read_entries

BATCH = 10
"""Answers written and played back together."""


def why_not(config: ConfigDict) -> str | None:
    """Why an evaluation cannot be played back, None where it can."""
    if config.turns != "first":
        return f"only first turns are played back, the config's turns are {config.turns!r}"
    for entry in config.methods:
        if entry.get("give_up"):
            return "give_up looks at the clock, and nothing is timed here"
        if entry.get("rule", "match") != "match":
            return f"the rule {entry['rule']!r} writes another text"
    return None


def playback(config: ConfigDict, data: str, kept: pathlib.Path) -> list[Record]:
    """One row for each method of an evaluation on a task at a temperature with a seed.

    Args:
      config: as `experiments.evaluate` takes it, checked, and `why_not` says None.
      data: directory with questions.
      kept: folder of answers; those that are there are not written once more.

    Raises:
      ValueError: a method that cannot be played back, or kept answers that the target does not write.
    """
    entries = read_entries(config.methods, config.dtype, config.temperatures)
    model = _model(config.target, config.dtype)
    target = make_target(model.config)
    contestants = build(entries, model)
    for one in contestants.values():
        check_playable(one.drafter)
    rows: list[Record] = []
    for temperature in config.temperatures:
        for seed in config.seeds:
            law = {"temperature": temperature, "seed": seed, "max_new_tokens": config.max_new_tokens}
            for task in config.tasks:
                asked = (config.target, config.dtype, data, task, config.num_prompts)
                prompts, answers, said = _answers(kept, *asked, *law.values())
                for entry in filter(lambda entry: entry.runs_at(temperature), entries):
                    one = contestants[entry.label]
                    with launch.status(f"{task}, T = {temperature:g}: {entry.label}"):
                        found = accept(
                            model, target, one.drafter, one.params, prompts, answers, said,
                            batch=BATCH, share_noise=one.share_noise, **law,
                        )  # fmt: skip
                    about: dict[str, Any] = {
                        "target": config.target,
                        "method": entry.method,
                        "label": entry.label,
                        "task": task,
                        **law,
                        "dtype": config.dtype,
                        "device": jax.devices()[0].device_kind,
                        "tree": tree_size(one.drafter, methods.children(entry.method, entry.settings)),
                        "rule": entry.rule,
                        "share_noise": entry.share_noise,
                        "prompts": len(prompts),
                    }
                    rows.append({**about, "turns": len(prompts), **found, "speedup": None, "commit": git_commit()})
    return rows


@functools.cache
def _model(name: str, dtype: str) -> LoadedModel:
    with launch.status(f"Loading {name}") as progress:
        return load_target(name, dtype, packed=True, progress=progress)


@functools.cache
def _answers(
    kept: pathlib.Path,
    name: str,
    dtype: str,
    data: str,
    task: str,
    num_prompts: int,
    temperature: float,
    seed: int,
    max_new_tokens: int,
) -> tuple[list[list[int]], list[list[int]], list[Recording]]:
    """Prompts, plain decoding's answers, and what the target says along them."""
    model = _model(name, dtype)
    target = make_target(model.config)
    prompts = [runner.prompt_ids(model, question) for question in read_task(data, task, num_prompts).values()]
    law: dict[str, Any] = {"temperature": temperature, "seed": seed, "max_new_tokens": max_new_tokens}
    about = json.dumps([name, weights_digest(model.params), dtype, prompts, law])
    file = kept / f"{task}-{temperature:g}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"
    with launch.status(f"{task}, T = {temperature:g}: plain decoding"):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(decode_plain(model, target, prompts, batch=BATCH, **law)))
        answers = json.loads(file.read_text(encoding="utf-8"))
        return prompts, answers, record_answers(model, target, prompts, answers, batch=BATCH)
