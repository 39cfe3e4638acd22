"""Tau of drafts on answers that plain decoding wrote once: `replay` in batches of one size, one program for all.

`decode_plain` has plain decoding answer, `record_answers` reads the answers once more and stores the target's outputs
along them, `accept` measures one drafter.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.continuous import write_all
from eagle_jax.drafters import Drafter, make_vanilla
from eagle_jax.evaluation import runner
from eagle_jax.evaluation.metrics import n_alpha
from eagle_jax.evaluation.recording import Recording, record
from eagle_jax.evaluation.replay import replay, texts_of
from eagle_jax.generator import Generator, cache_slots
from eagle_jax.types import Params, Target

LONGEST_DRAFT = 31
"""Levels of a draft for which a recording has room."""


def decode_plain(
    model: LoadedModel, target: Target, prompts: Sequence[list[int]], *, batch: int, max_new_tokens: int, **law: Any
) -> list[list[int]]:
    """The answers of plain decoding; the sequence id of a prompt is its index.

    Args:
      model: weights and stop ids.
      target: the same as functions.
      prompts: token ids.
      batch: answers written together.
      max_new_tokens: longest answer.
      **law: temperature, seed and whatever else decides the text (`make_sampling`).
    """
    capacity = runner.slots(target, prompts, make_vanilla(), max_new_tokens)
    writer = Generator(target, model.params, make_vanilla(), capacity=capacity)
    law |= {"stop_ids": model.stop_ids, "max_new_tokens": max_new_tokens}
    return write_all(writer, prompts, batch=batch, sequence=range(len(prompts)), **law).tokens


def record_answers(
    model: LoadedModel, target: Target, prompts: Sequence[list[int]], answers: Sequence[list[int]], *, batch: int
) -> list[Recording]:
    """What the target says along the answers, a recording a batch, for drafts of up to `LONGEST_DRAFT` levels.

    Args:
      model, target: as for `decode_plain`.
      prompts, answers: what was asked and what `decode_plain` gave.
      batch: answers that are played back together.
    """
    said = []
    for rows in _batches(len(prompts), batch):
        texts = [prompts[row] for row in rows], [answers[row] for row in rows]
        ends = np.array([len(prompt) + len(answer) for prompt, answer in zip(*texts, strict=True)], np.int32)
        capacity = cache_slots(int(ends.max()), LONGEST_DRAFT, target.max_positions)
        said.append(record(target, model.params, jnp.asarray(texts_of(*texts, capacity)), jnp.asarray(ends)))
    return said


def accept(
    model: LoadedModel,
    target: Target,
    drafter: Drafter,
    params: Params,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    said: Sequence[Recording] = (),
    *,
    batch: int,
    share_noise: bool,
    **law: Any,
) -> dict[str, Any]:
    """What a drafter would have needed: tokens, the first of each answer included, rounds, tau, accepted and n_alpha.

    Args:
      model, target: as for `decode_plain`.
      drafter, params: the method.
      prompts, answers: what was asked and what `decode_plain` gave.
      said: of `record_answers` with the same batch; not looked at for deeper drafts.
      batch: answers played back together.
      share_noise: the drafter drafts with the target's noise.
      **law: as for `decode_plain`, max_new_tokens included.
    """
    tokens = rounds = 0
    accepted = np.zeros(drafter.most_accepted + 1, np.int64)
    for number, rows in enumerate(_batches(len(prompts), batch)):
        found = replay(
            target,
            model.params,
            drafter,
            params,
            [prompts[row] for row in rows],
            [answers[row] for row in rows],
            share_noise=share_noise,
            recording=said[number] if said and drafter.max_depth <= LONGEST_DRAFT else None,
            sequence=rows,
            stop_ids=model.stop_ids,
            **law,
        )
        for place in range(len(set(rows))):
            tokens += len(found.tokens[place])
            rounds += found.rounds[place]
            accepted += found.accepted[place]
    return {
        "tokens": tokens,
        "rounds": rounds,
        "tau": (tokens - len(prompts)) / rounds if rounds else None,  # the first of each answer comes from its prompt
        "accepted": accepted.tolist(),
        "n_alpha": n_alpha(accepted),
    }


def _batches(count: int, size: int) -> Iterator[list[int]]:
    """Indices of the rows that go together; the last batch is filled up with its first row."""
    for start in range(0, count, size):
        rows = list(range(start, min(start + size, count)))
        yield rows + rows[:1] * (size - len(rows))
