"""Giving up: an answer for which drafting costs more time than it saves is finished by plain decoding.

The text does not depend on the drafter, so plain decoding may take over between any two rounds. What a round of each
kind costs is measured when a batch of a new shape comes; then tau so far is compared with the ratio of the two, first
after a few rounds, then after twice as many, and so on. Rounds, and with them tau, depend on the clock; tokens do not.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Unpack

import jax.numpy as jnp

from eagle_jax import sharding
from eagle_jax.decode import DecodeState
from eagle_jax.drafters.vanilla import make_vanilla
from eagle_jax.generator import ALL_ROUNDS, Generation, Generator, read_generation, timed
from eagle_jax.sampling import SamplingOptions
from eagle_jax.types import NO_TOKEN, Sampling

FIRST_COMPARISON = 8
"""Rounds after which tau is compared for the first time."""

DOUBT = 0.5
"""Tokens by which tau of one round is doubted, of n rounds this over the root of n: chance is to end no drafts."""

TIMED_ROUNDS = (1, 3, 3, 3)
"""Rounds of each call by which the cost of a round is measured; the first call does not count."""


@dataclasses.dataclass(frozen=True, eq=False)
class GivingUp(Generator):
    """A `Generator` that stops drafting where it does not pay; arguments as there.

    Raises:
      ValueError: a rule under which plain decoding would go on with another text, or a mesh of several processes, whose
        clocks differ.
    """

    _break_evens: dict[tuple[int, int, bool], float] = dataclasses.field(default_factory=dict, init=False, repr=False)
    """By rows, slots, and whether any row is sampled."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule != "match":
            raise ValueError(f"giving up needs the rule 'match': under {self.rule!r} plain decoding has another text")
        if self.mesh is not None and self.mesh.is_multi_process:
            raise ValueError("giving up follows a clock, and the clocks of the processes of this mesh differ")

    @functools.cached_property
    def plain(self) -> Generator:
        """Plain decoding by the same target, for states whose drafter's part is ()."""
        return Generator(self.target, self.target_params, make_vanilla(), share_noise=self.share_noise, mesh=self.mesh)

    def stream(
        self, prompts: Sequence[Sequence[int]], *, rounds_per_call: int = 8, **sampling: Unpack[SamplingOptions]
    ) -> Iterator[Generation]:
        """As `Generator.stream`."""
        if rounds_per_call < 1:
            raise ValueError(f"rounds_per_call must be at least 1, got {rounds_per_call}")
        settings = self.check(prompts, **sampling)
        break_even = self.break_even(prompts, settings)
        state, prefill_seconds = timed(self.start, prompts, settings)
        writer: Generator = self
        comparison = FIRST_COMPARISON
        decode_seconds = 0.0
        while True:
            generation = read_generation(state, prefill_seconds, decode_seconds, gave_up=writer is self.plain)
            yield generation
            if generation.complete:
                return
            rounds = max(generation.rounds)
            if rounds >= comparison:
                comparison *= 2
                doubt = DOUBT / math.sqrt(sum(generation.rounds))
                if generation.tau + doubt < break_even:
                    writer, comparison = self.plain, ALL_ROUNDS
                    state = dataclasses.replace(state, drafter=())
            state, seconds = timed(writer.advance, state, settings, min(rounds_per_call, comparison - rounds))
            decode_seconds += seconds

    def warm_up(self, prompts: Sequence[Sequence[int]], **sampling: Unpack[SamplingOptions]) -> float:
        """As `Generator.warm_up`; plain rounds too, and what both cost."""
        compiling = super().warm_up(prompts, **sampling)
        self.break_even(prompts, self.check(prompts, **sampling))
        return compiling

    def break_even(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> float:
        """Tokens that a round must write not to lose time, measured when a batch of this shape first comes.

        Rounds of both kinds are timed one right after the other: a machine that slows down later slows both. Greedy
        rounds draw no noise. NaN for answers that are too short to tell, until longer ones come.
        """
        slots = self.slots([len(prompt) for prompt in prompts], sampling)
        shape = len(prompts), slots, bool((sampling.temperature > 0).any())
        if math.isnan(self._break_evens.get(shape, math.nan)):
            endless = dataclasses.replace(sampling, stop_ids=jnp.full_like(sampling.stop_ids, NO_TOKEN))
            plain = dataclasses.replace(self.start(prompts, endless), drafter=())
            plain_seconds = _round_seconds(self.plain, plain, endless)
            drafted_seconds = _round_seconds(self, self.start(prompts, endless), endless)
            self._break_evens[shape] = drafted_seconds / plain_seconds
        return self._break_evens[shape]


def _round_seconds(writer: Generator, state: DecodeState, sampling: Sampling) -> float:
    """Median over a few calls; NaN for answers that end before."""
    seconds, before = [], 0
    for rounds in TIMED_ROUNDS:
        state, spent = timed(writer.advance, state, sampling, rounds)
        done = int(sharding.to_host(state.rounds).max())
        if done > before:
            seconds.append(spent / (done - before))
        before = done
    return statistics.median(seconds[1:]) if len(seconds) > 1 else math.nan
