"""Prompts in, answers out: the two compiled programs of `decode` behind lists of token ids.

The only file of the core that runs on the host: it checks sizes, pads prompts into one array, times the two programs
apart, and turns arrays back into lists. Knows no file, no tokenizer and no drafting method by name.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from eagle_jax import sharding
from eagle_jax.decode import DecodeState, Models, Rule, check_rule, decode, prefill
from eagle_jax.drafters.base import Drafter
from eagle_jax.kernels.packed import is_packed, pack
from eagle_jax.prompts import check_prompts, pad_prompts
from eagle_jax.sampling import make_sampling
from eagle_jax.types import Params, Sampling, Target

ALL_ROUNDS = 2**31 - 1
"""A number of rounds that no generation reaches."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """Answers of one batch and what they cost, complete or so far."""

    tokens: list[list[int]]  # per row, the stop id included where one ended the answer
    rounds: list[int]  # per row, target passes behind the prompt
    accepted: np.ndarray  # i32[B, P], per row: rounds in which exactly that many drafted tokens were accepted
    prefill_seconds: float
    decode_seconds: float
    complete: bool
    gave_up: bool = False  # drafting did not pay, so that the last rounds were plain ones

    @property
    def num_tokens(self) -> int:
        """Tokens written, all rows together."""
        return sum(map(len, self.tokens))

    @property
    def tau(self) -> float:
        """Tokens per round, bonus included: (written - the first of each row) / rounds; NaN without a round."""
        rounds = sum(self.rounds)
        return (self.num_tokens - len(self.tokens)) / rounds if rounds else float("nan")


class Generator:
    """A target and a drafter, ready to write.

    Args:
      target: the model, as pure functions.
      target_params: its weights.
      drafter: the drafting method.
      drafter_params: its weights, () where it has none.
      rule: `match`, or `residual` where the drafter allows it (`verify`).
      share_noise: the drafter drafts with the target's own noise.
      capacity: slots of all caches; None takes the next power of two that a batch needs, 512 at least.
      prefill_chunk: prompt tokens read per pass; None takes what `default_chunk` says.
      mesh: decode on these devices, rows dealt out over its axis `data`. Weights that lie on it stay as they are, all
        others go to every device: `load_target(..., mesh=mesh)` splits a target over `model`. Without a mesh, on a CPU,
        weights are packed for the kernel (`kernels.packed`), once for all generators that share them.

    Raises:
      ValueError: a rule under which the text would not follow the target's distribution; no weights for a drafter that
        needs some, or those of another model.
    """

    def __init__(
        self,
        target: Target,
        target_params: Params,
        drafter: Drafter,
        drafter_params: Params = (),
        *,
        rule: Rule = "match",
        share_noise: bool = True,
        capacity: int | None = None,
        prefill_chunk: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        check_rule(drafter, rule, share_noise)
        if drafter.needs and not jax.tree.leaves(drafter_params):
            raise ValueError(
                f"{drafter.name} needs {drafter.needs}: Generator(target, target_params, drafter, weights)"
            )
        target.check(target_params)
        drafter.check(drafter_params)
        if prefill_chunk is not None and prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be at least 1, got {prefill_chunk}")
        if mesh is None:
            target_params, drafter_params = pack(target_params), pack(drafter_params)
        else:
            target_params, drafter_params = sharding.place_weights(mesh, (target_params, drafter_params))
        self.target, self.target_params = target, target_params
        self.drafter, self.drafter_params = drafter, drafter_params
        self.mesh = mesh
        self.rule: Rule = rule
        self.share_noise = share_noise
        self.capacity = capacity
        self.prefill_chunk = prefill_chunk or default_chunk(jax.default_backend(), is_packed(target_params))

    def stream(
        self, prompts: Sequence[Sequence[int]], *, rounds_per_call: int = 8, **sampling: Any
    ) -> Iterator[Generation]:
        """Yield the answers so far after the prompt and then after every `rounds_per_call` rounds.

        Args:
          prompts: token ids of each row; together they are one batch.
          rounds_per_call: rounds run on the device between two looks.
          **sampling: as `sampling.make_sampling` takes it.

        Raises:
          ValueError: no or an empty prompt, a token outside the vocabulary, a text longer than the model's context or
            the capacity, a sampling value out of range, or a batch that does not divide over the mesh.
          TypeError: text, or one prompt, where a list of prompts of token ids belongs.
        """
        if rounds_per_call < 1:
            raise ValueError(f"rounds_per_call must be at least 1, got {rounds_per_call}")
        settings = make_sampling(len(prompts), **sampling)
        state, prefill_seconds = timed(self.start, prompts, settings)
        decode_seconds = 0.0
        while True:
            generation = read_generation(state, prefill_seconds, decode_seconds)
            yield generation
            if generation.complete:
                return
            state, seconds = timed(self.advance, self.drafter, state, settings, rounds_per_call)
            decode_seconds += seconds

    def generate(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> Generation:
        """The complete answers, written in one call of the decode program; arguments and errors as `stream`."""
        *_, last = self.stream(prompts, rounds_per_call=ALL_ROUNDS, **sampling)
        return last

    def warm_up(self, prompts: Sequence[Sequence[int]], **sampling: Any) -> float:
        """Compile all programs for a batch of this shape by running a few rounds; the seconds it took."""
        started = time.perf_counter()
        settings = make_sampling(len(prompts), **sampling)
        jax.block_until_ready(self.advance(self.drafter, self.start(prompts, settings), settings, 1))
        return time.perf_counter() - started

    def start(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> DecodeState:
        """Read the prompts and choose the first token of each; errors as `stream`."""
        text, lengths, sampling = self._on_mesh((*pad_prompts(prompts, self.slots(prompts, sampling)), sampling))
        with sharding.active(self.mesh):
            chunk = min(self.prefill_chunk, text.shape[1])
            return prefill(self.models, text, lengths, sampling, chunk=chunk, split=self.split)

    def advance(
        self, drafter: Drafter, state: DecodeState, sampling: Sampling, max_rounds: int, min_live: int = 1
    ) -> DecodeState:
        """Run rounds of `drafter`, which may be plain decoding, as `decode` does; `state` is used up."""
        models = self.models
        if drafter is not self.drafter:
            models = dataclasses.replace(models, drafter=drafter, drafter_params=())
        with sharding.active(self.mesh):
            return decode(
                models,
                state,
                self._on_mesh(sampling),
                max_rounds,
                min_live,
                rule=self.rule,
                share_noise=self.share_noise,
                split=self.split,
            )

    @property
    def models(self) -> Models:
        """What the programs of `decode` take."""
        return Models(self.target, self.drafter, self.target_params, self.drafter_params)

    @functools.cached_property
    def split(self) -> sharding.Split | None:
        """Whose caches are split by head, as the weights are; None without a mesh."""
        return None if self.mesh is None else sharding.split_of(self.target_params, self.drafter_params)

    def _on_mesh(self, rows: Any) -> Any:
        return rows if self.mesh is None else sharding.place_rows(self.mesh, rows)

    def slots(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> int:
        """Cache slots for these prompts and their longest answers; errors as `stream`."""
        check_prompts(prompts, self.target.vocab_size)
        lengths = np.array([len(prompt) for prompt in prompts], np.int64)
        longest = int((lengths + np.asarray(sampling.max_new_tokens)).max())
        if longest > self.target.max_positions:
            raise ValueError(
                f"prompt and new tokens come to {longest}, the model's context is {self.target.max_positions}"
            )
        needed = longest + self.drafter.max_depth + 1
        capacity = self.capacity or cache_slots(longest, self.drafter.max_depth, self.target.max_positions)
        if needed > capacity:
            raise ValueError(f"prompt, new tokens and draft need {needed} cache slots, the capacity is {capacity}")
        return capacity


def default_chunk(platform: str, packed: bool = False) -> int:
    """Prompt tokens read per pass on devices of a platform, as jax names it.

    On accelerators more cost little more. By the CPU kernel time is proportional to the tokens from a dozen on, one
    block of it: chunks of two blocks lose little at the end of a prompt. By XLA on a CPU larger chunks are cheaper.
    """
    if platform != "cpu":
        return 256
    return 24 if packed else 64


def cache_slots(longest: int, max_depth: int, max_positions: int) -> int:
    """Slots S of all caches for texts of `longest` tokens and a draft of `max_depth` levels behind them.

    A power of two, so that few sizes are compiled, but no more than the model's context of `max_positions` needs.
    """
    needed, most = (tokens + max_depth + 1 for tokens in (longest, max_positions))
    return max(512, min(1 << (needed - 1).bit_length(), -(-most // 256) * 256))


def read_generation(
    state: DecodeState, prefill_seconds: float = 0.0, decode_seconds: float = 0.0, gave_up: bool = False
) -> Generation:
    """Bring the answers of a state to the host."""
    text, start, num_new, rounds, accepted, done = (
        sharding.to_host(x)
        for x in (state.text, state.prompt_length, state.num_new, state.rounds, state.accepted, state.done)
    )
    return Generation(
        tokens=[row[begin : begin + count].tolist() for row, begin, count in zip(text, start, num_new, strict=True)],
        rounds=rounds.tolist(),
        accepted=accepted,
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        complete=bool(done.all()),
        gave_up=gave_up,
    )


def timed(step: Callable[..., DecodeState], *arguments: Any) -> tuple[DecodeState, float]:
    """The state after a step, waited for, and the seconds it took."""
    started = time.perf_counter()
    state = jax.block_until_ready(step(*arguments))
    return state, time.perf_counter() - started
