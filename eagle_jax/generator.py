"""Prompts in, answers out: the two compiled programs of `decode`, called with lists of token ids.

The only file of the core that runs on the host: it checks prompts and sizes, pads prompts into one array, times the two
programs apart, and turns arrays back into lists. Knows no file, no tokenizer and no drafting method by name.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from eagle_jax import sharding
from eagle_jax.cache import reach_of
from eagle_jax.decode import DecodeState, Models, Rule, check_rule, decode, prefill, slots_of_rounds
from eagle_jax.drafters.base import Drafter
from eagle_jax.kernels.packed import is_packed, pack
from eagle_jax.logprobs import AnswerLogprobs, of_answer
from eagle_jax.platforms import platform
from eagle_jax.sampling import SamplingOptions, make_sampling
from eagle_jax.types import Params, Sampling, Target

ALL_ROUNDS = 2**31 - 1
"""A number of rounds that no generation reaches."""

SURE_ROUNDS = 64
"""On a GPU, a call of at most so many rounds runs all of them unless answers end before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generation:
    """Answers of one batch and what they cost, complete or so far."""

    tokens: list[list[int]]  # per row, the stop id included where one ended the answer
    rounds: list[int]  # per row, target passes after the prompt
    accepted: np.ndarray  # i32[B, P], per row: rounds in which exactly that many drafted tokens were accepted
    prefill_seconds: float
    decode_seconds: float
    complete: bool
    gave_up: bool = False  # drafting did not pay, so that the last rounds were plain ones
    logprobs: list[AnswerLogprobs] | None = None  # per row, where the generator keeps them

    @property
    def num_tokens(self) -> int:
        """Tokens written, all rows together."""
        return sum(map(len, self.tokens))

    @property
    def tau(self) -> float:
        """Tokens per round, bonus included: (written - the first of each row) / rounds; NaN without a round."""
        rounds = sum(self.rounds)
        return (self.num_tokens - len(self.tokens)) / rounds if rounds else float("nan")


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A target and a drafter, ready to write; `dataclasses.replace` makes another one with the same weights.

    Args:
      target: the model, as pure functions.
      target_params: its weights.
      drafter: the drafting method.
      drafter_params: its weights, () where it has none.
      rule: `match`, or `residual` where the drafter allows it (`verify`).
      share_noise: the drafter drafts with the target's own noise.
      capacity: slots of all caches; None takes the next power of two that a batch needs, 512 at least.
      prefill_chunk: prompt tokens read per pass; None takes what `default_chunk` recommends.
      logprobs: keep the log-probability that the target gave each token of an answer (before temperature, top-k and
        top-p), and those of this many most probable tokens in its place; None keeps none.
      mesh: decode on these devices, rows sharded over its axis `data`. Weights that are on it already stay as they are,
        all others are replicated: `load_target(..., mesh=mesh)` splits a target over `model`. Without a mesh, on a CPU,
        weights are packed for the kernel (`kernels.packed`), once for all generators that share them.

    Raises:
      ValueError: a rule under which the text would not follow the target's distribution; no weights for a drafter that
        needs some, or those of another model.
    """

    target: Target = dataclasses.field(repr=False)
    target_params: Params = dataclasses.field(repr=False)
    drafter: Drafter
    drafter_params: Params = dataclasses.field(default=(), repr=False)
    _: dataclasses.KW_ONLY
    rule: Rule = "match"
    share_noise: bool = True
    capacity: int | None = None
    prefill_chunk: int | None = None
    logprobs: int | None = None
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        check_rule(self.drafter, self.rule, self.share_noise)
        if self.drafter.needs and not jax.tree.leaves(self.drafter_params):
            needs = f"{self.drafter.name} needs {self.drafter.needs}"
            raise ValueError(f"{needs}: Generator(target, target_params, drafter, weights)")
        self.target.check(self.target_params)
        self.drafter.check(self.drafter_params)
        if self.prefill_chunk is not None and self.prefill_chunk < 1:
            raise ValueError(f"prefill_chunk must be at least 1, got {self.prefill_chunk}")
        if self.logprobs is not None and not 0 <= self.logprobs <= self.target.vocab_size:
            raise ValueError(f"logprobs must be between 0 and {self.target.vocab_size}, got {self.logprobs}")
        for name in ("target_params", "drafter_params"):  # both are placed already in a generator that was replaced
            weights = getattr(self, name)
            placed = pack(weights) if self.mesh is None else sharding.place_weights(self.mesh, weights)
            object.__setattr__(self, name, placed)

    def stream(
        self, prompts: Sequence[Sequence[int]], *, rounds_per_call: int = 8, **sampling: Unpack[SamplingOptions]
    ) -> Iterator[Generation]:
        """Yield the answers so far after the prompt and then after every `rounds_per_call` rounds.

        Args:
          prompts: token ids of each row; together they are one batch.
          rounds_per_call: rounds run on the device before the next answers are yielded, at most.
          **sampling: as `sampling.make_sampling` takes it.

        Raises:
          ValueError: no or an empty prompt, a token outside the vocabulary, a text longer than the model's context or
            the capacity, a sampling value out of range, or a batch that does not divide over the mesh.
          TypeError: text, or one prompt, where a list of prompts of token ids belongs.
        """
        if rounds_per_call < 1:
            raise ValueError(f"rounds_per_call must be at least 1, got {rounds_per_call}")
        settings = self.check(prompts, **sampling)
        state, prefill_seconds = timed(self.start, prompts, settings)
        decode_seconds = 0.0
        while True:
            generation = read_generation(state, prefill_seconds, decode_seconds)
            yield generation
            if generation.complete:
                return
            state, seconds = timed(self.advance, state, settings, rounds_per_call)
            decode_seconds += seconds

    def generate(self, prompts: Sequence[Sequence[int]], **sampling: Unpack[SamplingOptions]) -> Generation:
        """The complete answers, on a CPU by one call of the decode program; arguments and errors as `stream`."""
        *_, last = self.stream(prompts, rounds_per_call=ALL_ROUNDS, **sampling)
        return last

    def warm_up(self, prompts: Sequence[Sequence[int]], **sampling: Unpack[SamplingOptions]) -> float:
        """Compile all programs for a batch of this shape by running a few rounds; the seconds it took."""
        started = time.perf_counter()
        settings = self.check(prompts, **sampling)
        state = self.start(prompts, settings)
        capacity = state.text.shape[1]
        first = max(map(len, prompts)) + slots_of_rounds(self.drafter)
        last = first + int(np.max(settings.max_new_tokens))
        powers = (1 << bits for bits in range(last.bit_length()))
        slots = (first, *(size + 1 for size in powers if first <= size < last))  # where another reach begins
        for reach in dict.fromkeys(self._reach(needed, capacity) for needed in slots):  # None alone but on a GPU
            state = self._run(state, settings, 1, 1, reach)
        jax.block_until_ready(state)
        return time.perf_counter() - started

    def check(self, prompts: Sequence[Sequence[int]], **sampling: Unpack[SamplingOptions]) -> Sampling:
        """Refuse what is no batch of prompts, or no sampling of one; the sampling of each row. Errors as `stream`."""
        check_prompts(prompts, self.target.vocab_size)
        return make_sampling(len(prompts), **sampling)

    def start(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> DecodeState:
        """Read prompts that passed `check` and choose the first token of each.

        Raises:
          ValueError: a text that does not fit (`slots`), or a batch that does not divide over the mesh.
        """
        capacity = self.slots([len(prompt) for prompt in prompts], sampling)
        text, lengths, sampling = self._on_mesh((*pad_prompts(prompts, capacity), sampling))
        with sharding.active(self.mesh):
            chunk = min(self.chunk, capacity)
            return prefill(
                self.models,
                text,
                lengths,
                sampling,
                chunk=chunk,
                split=self.split,
                num_logprobs=self.logprobs,
                reach=self._reach(max(map(len, prompts)), capacity),
            )

    def advance(self, state: DecodeState, sampling: Sampling, max_rounds: int, min_live: int = 1) -> DecodeState:
        """Run rounds as `decode` does; `state` is used up.

        On a GPU, more than `SURE_ROUNDS` may end early: the program reads a fixed number of cache slots, and the next
        call takes one that reads more.
        """
        capacity = state.text.shape[1]
        if platform() != "gpu":
            return self._run(state, sampling, max_rounds, min_live, None)
        longest = int(np.where(sharding.to_host(state.done), 0, sharding.to_host(state.cache.length)).max())
        rounds = max_rounds if max_rounds <= SURE_ROUNDS else 1
        reach = self._reach(longest + slots_of_rounds(self.drafter, rounds), capacity)
        return self._run(state, sampling, max_rounds, min_live, reach)

    def finish(self, state: DecodeState, sampling: Sampling) -> DecodeState:
        """Run rounds until all rows are done; `state` is used up."""
        while not sharding.to_host(state.done).all():
            state = self.advance(state, sampling, ALL_ROUNDS)
        return state

    def _reach(self, needed: int, capacity: int) -> int | None:
        """As `reach_of` where programs are compiled by it."""
        return reach_of(needed, capacity) if platform() == "gpu" else None

    def _run(
        self, state: DecodeState, sampling: Sampling, max_rounds: int, min_live: int, reach: int | None
    ) -> DecodeState:
        with sharding.active(self.mesh):
            return decode(
                self.models,
                state,
                self._on_mesh(sampling),
                max_rounds,
                min_live,
                rule=self.rule,
                share_noise=self.share_noise,
                split=self.split,
                reach=reach,
            )

    @property
    def models(self) -> Models:
        """What the programs of `decode` take."""
        return Models(self.target, self.drafter, self.target_params, self.drafter_params)

    @functools.cached_property
    def chunk(self) -> int:
        """Prompt tokens read per pass."""
        return self.prefill_chunk or default_chunk(platform(), is_packed(self.target_params))

    @functools.cached_property
    def split(self) -> sharding.Split | None:
        """Which caches are sharded by head, as the weights are; None without a mesh."""
        return None if self.mesh is None else sharding.split_of(self.target_params, self.drafter_params)

    def _on_mesh(self, rows: Any) -> Any:
        return rows if self.mesh is None else sharding.place_rows(self.mesh, rows)

    def slots(self, lengths: Sequence[int], sampling: Sampling) -> int:
        """Cache slots for prompts of these lengths and their longest answers.

        Raises:
          ValueError: a text longer than the model's context or the capacity.
        """
        longest = int((np.array(lengths, np.int64) + np.asarray(sampling.max_new_tokens)).max())
        if longest > self.target.max_positions:
            raise ValueError(
                f"prompt and new tokens come to {longest}, the model's context is {self.target.max_positions}"
            )
        needed = longest + self.drafter.max_depth + 1
        capacity = self.capacity or cache_slots(longest, self.drafter.max_depth, self.target.max_positions)
        if needed > capacity:
            raise ValueError(f"prompt, new tokens and draft need {needed} cache slots, the capacity is {capacity}")
        return capacity


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Refuse what is no list of token ids for each row.

    Args:
      prompts: token ids, one list for each row.
      vocab_size: of the model that reads them.

    Raises:
      ValueError: no or an empty prompt, or a token outside the vocabulary.
      TypeError: text, or one prompt, where a list of prompts of token ids belongs; ids that are not integers.
    """
    given: Sequence[Any] = prompts
    if any(isinstance(prompt, str | int | np.integer) for prompt in given):
        raise TypeError(
            f"prompts are lists of token ids, one for each row, got {prompts!r:.60}; "
            "text becomes ids by the tokenizer's chat or encode"
        )
    if not len(prompts) or not all(map(len, prompts)):
        raise ValueError(f"every prompt needs at least 1 token, got lengths {[len(prompt) for prompt in prompts]}")
    for prompt in given:
        ids = np.asarray(prompt)
        if not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"token ids must be integers, got {prompts!r:.60}")
        outside = ids[(ids < 0) | (ids >= vocab_size)]
        if outside.size:
            raise ValueError(f"token id {outside[0]} is outside the vocabulary of {vocab_size}")


def pad_prompts(prompts: Sequence[Sequence[int]], slots: int) -> tuple[jax.Array, jax.Array]:
    """Text i32[B, S] with S = `slots`, each prompt from index 0 on, and prompt lengths i32[B]."""
    text = np.zeros((len(prompts), slots), np.int32)
    for row, prompt in enumerate(prompts):
        text[row, : len(prompt)] = prompt
    return jnp.asarray(text), jnp.array([len(prompt) for prompt in prompts], jnp.int32)


def default_chunk(platform: str, packed: bool = False) -> int:
    """Prompt tokens read per pass on devices of a platform, as jax names it.

    On accelerators more cost little more. By the CPU kernel time is proportional to the tokens from a dozen on, one
    block of it: chunks of two blocks lose little at the end of a prompt. By XLA on a CPU larger chunks are cheaper.
    """
    if platform != "cpu":
        return 256
    return 24 if packed else 64


def cache_slots(longest: int, max_depth: int, max_positions: int) -> int:
    """Slots S of all caches for texts of `longest` tokens and a draft of `max_depth` levels after them.

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
    logprobs = jax.tree.map(sharding.to_host, state.logprobs)
    return Generation(
        tokens=[row[begin : begin + count].tolist() for row, begin, count in zip(text, start, num_new, strict=True)],
        rounds=rounds.tolist(),
        accepted=accepted,
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        complete=bool(done.all()),
        gave_up=gave_up,
        logprobs=logprobs
        and [of_answer(logprobs, row, *place) for row, place in enumerate(zip(start, num_new, strict=True))],
    )


def timed(step: Callable[..., DecodeState], *arguments: Any) -> tuple[DecodeState, float]:
    """The state after a step, waited for, and the seconds it took."""
    started = time.perf_counter()
    state = jax.block_until_ready(step(*arguments))
    return state, time.perf_counter() - started
