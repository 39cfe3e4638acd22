"""The decoding loop at its edges: where rounds, answers and caches end, rows beside each other, misuse."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.decode import Models, decode, prefill
from eagle_jax.drafters import make_chain, make_prompt_lookup, make_vanilla
from eagle_jax.drafters.base import Drafter
from eagle_jax.generator import Generation, Generator
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import bigram_target, tiny_transformer
from eagle_jax.types import Params, Target
from tests.drafts import make_oracle
from tests.reference.decode import decode as plain


def small_target(seed: int = 0) -> tuple[Target, Params]:
    """One layer, for what the loop does is the same for all, and compiling takes most of the time here."""
    _, target, params = tiny_transformer(seed, num_layers=1)
    return target, params


PROMPTS = [[5], [1, 2, 3], list(range(3, 20)), [7] * 33]
LONGEST = 40
CAPACITY = 33 + LONGEST + 4 + 1  # not one slot more than the longest answer to the longest prompt needs


@functools.cache
def _answers(temperature: float) -> list[list[int]]:
    """What each prompt is answered with, by plain decoding."""
    target, params = small_target()
    knobs = {"temperature": temperature, "max_new_tokens": LONGEST}
    return [plain(target, params, prompt, sequence=row, **knobs) for row, prompt in enumerate(PROMPTS)]


def _with_oracle(
    reach: Sequence[int],
    *,
    temperature: float = 1.0,
    capacity: int = CAPACITY,
    stop_ids: Sequence[int] = (64,) * 4,
    **sampling: Any,
) -> Generation:
    """All prompts in one batch, drafted by an oracle that is right for `reach` tokens per round in each row.

    Where no stop ids are given there are still four, of no token, so that all tests share one program.
    """
    target, params = small_target()
    text = np.zeros((len(PROMPTS), CAPACITY), np.int32)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, _answers(temperature), strict=True)):
        text[row, : len(prompt) + LONGEST] = [*prompt, *answer]
    oracle = make_oracle(64, 4, width=2, unused=1)
    generator = Generator(
        target, params, oracle, (jnp.asarray(text), jnp.asarray(reach)), capacity=capacity, prefill_chunk=16
    )
    return generator.generate(PROMPTS, temperature=temperature, stop_ids=stop_ids, **sampling)


def _cut(answer: Sequence[int], limit: int, stop_ids: Sequence[int] = ()) -> list[int]:
    """The answer up to its first stop id, at most `limit` tokens."""
    ends = [place + 1 for place, token in enumerate(answer) if token in stop_ids]
    return list(answer[: min([limit, *ends])])


class TestEdges:
    """With an oracle as drafter it is known beforehand where each round ends."""

    @pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
    def test_each_row_at_its_own_pace(self, temperature: float) -> None:
        """Rows that accept 0, 1, 3 and 4 tokens per round, side by side: right tokens, and exactly so many rounds."""
        reach = [0, 1, 3, 4]
        found = _with_oracle(reach, temperature=temperature, max_new_tokens=21)
        assert found.tokens == [_cut(answer, 21) for answer in _answers(temperature)]
        assert found.rounds == [20, 10, 5, 4]
        for accepted, tokens, rounds in zip(found.accepted.tolist(), reach, found.rounds, strict=True):
            assert accepted == [rounds if count == tokens else 0 for count in range(5)]
        assert found.complete

    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 7, 11])
    def test_token_limit_at_every_place_of_a_round(self, limit: int) -> None:
        """A round would bring 5 tokens; the limit falls on each of them, and exactly on the last one at 6 and 11."""
        found = _with_oracle([4] * 4, max_new_tokens=limit)
        assert found.tokens == [_cut(answer, limit) for answer in _answers(1.0)]
        assert found.rounds == [-(-(limit - 1) // 5)] * 4

    def test_other_limits_in_each_row(self) -> None:
        limits = [1, 9, 2, 30]
        found = _with_oracle([4, 2, 0, 3], max_new_tokens=limits)
        answers = _answers(1.0)
        assert found.tokens == [_cut(answer, limit) for answer, limit in zip(answers, limits, strict=True)]

    @pytest.mark.parametrize("place", range(8))
    def test_stop_id_at_every_place_of_a_path(self, place: int) -> None:
        """First token, inside an accepted path, bonus: the stop id is in the answer and nothing after it."""
        answers = _answers(1.0)
        stop_ids = [answer[place] for answer in answers]
        found = _with_oracle([4] * 4, stop_ids=stop_ids, max_new_tokens=30)
        assert found.tokens == [_cut(answer, 30, stop_ids) for answer in answers]
        assert any(len(tokens) == place + 1 for tokens in found.tokens)
        assert found.complete

    def test_stop_id_beyond_the_limit_does_not_count(self) -> None:
        answers = _answers(1.0)
        found = _with_oracle([4] * 4, stop_ids=[answers[0][4]], max_new_tokens=3)
        assert found.tokens == [_cut(answer, 3, [answers[0][4]]) for answer in answers]

    def test_finished_rows_change_nothing(self) -> None:
        """A row that ended early keeps its counters while the others run on."""
        found = _with_oracle([4, 0, 4, 0], max_new_tokens=[6, 30, 1, 4])
        assert found.rounds == [1, 29, 0, 3]
        assert found.accepted.sum(1).tolist() == found.rounds

    def test_tau(self) -> None:
        """(Written - first) / rounds."""
        assert _with_oracle([4] * 4, max_new_tokens=21).tau == 5.0
        assert _with_oracle([0] * 4, max_new_tokens=21).tau == 1.0
        assert np.isnan(_with_oracle([0] * 4, max_new_tokens=1).tau)

    @pytest.mark.parametrize("reach", [4, 3])
    def test_end_of_the_cache(self, reach: int) -> None:
        """The longest answer goes up to where the cache ends; with one slot less it is refused."""
        found = _with_oracle([reach] * 4, max_new_tokens=LONGEST)
        assert found.tokens == _answers(1.0)
        with pytest.raises(ValueError, match=rf"{CAPACITY}.*{CAPACITY - 1}"):
            _with_oracle([reach] * 4, max_new_tokens=LONGEST, capacity=CAPACITY - 1)

    def test_cache_holds_the_text(self) -> None:
        """With the bigram target the committed tokens and their positions can be read back: all but the newest."""
        target, params = bigram_target(16)
        oracle = make_oracle(16, 3, 2)
        prompts = [[1], [4, 2, 9, 9, 3]]
        text, written = np.zeros((2, 2, 40), np.int32)
        for row, prompt in enumerate(prompts):
            answer = plain(target, params, prompt, sequence=row, temperature=1.0, max_new_tokens=14)
            text[row, : len(prompt) + 14] = [*prompt, *answer]
            written[row, : len(prompt)] = prompt
        sampling = make_sampling(2, temperature=1.0, max_new_tokens=[14, 11])
        drafts = (jnp.asarray(text), jnp.asarray([3, 2]))
        models = Models(target, oracle, params, drafts)
        state = prefill(models, jnp.asarray(written), jnp.asarray([1, 5]), sampling, chunk=4)
        state = decode(models, state, sampling, 100)
        assert state.cache.length.tolist() == [1 + 13, 5 + 10]
        for row, length in enumerate([14, 15]):
            np.testing.assert_array_equal(state.cache.keys[0][row, :length, 0, 0], text[row, :length])
            np.testing.assert_array_equal(state.cache.values[0][row, :length, 0, 0], np.arange(length))


class TestSampling:
    KNOBS = (
        [(0.0, 0, 1.0, 0.0), (0.3, 0, 1.0, 0.0), (1.0, 5, 1.0, 0.0), (1.5, 0, 0.8, 0.0)],
        [(1.0, 6, 0.7, 0.02), (2.0, 0, 1.0, 0.2), (0.0, 3, 0.5, 0.5), (1e-4, 0, 1.0, 0.0)],
    )

    @pytest.mark.parametrize("knobs", KNOBS)
    @pytest.mark.parametrize("make", [make_vanilla, make_prompt_lookup])
    def test_each_row_with_its_own_settings(
        self, make: Callable[[], Drafter], knobs: list[tuple[float, int, float, float]]
    ) -> None:
        """Temperature, top-k, top-p, min-p, seed and sequence of a row are its own."""
        target, params = small_target()
        temperature, top_k, top_p, min_p = (list(column) for column in zip(*knobs, strict=True))
        prompt, seeds, sequence = [9, 8, 7, 9, 8], [1, 2, 3, 4], [60, 50, 40, 30]
        generator = Generator(target, params, make(), capacity=CAPACITY, prefill_chunk=16)
        rows: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "seed": seeds,
        }
        found = generator.generate([prompt] * 4, **rows, sequence=sequence, max_new_tokens=24)
        for row in range(4):
            own = {name: values[row] for name, values in rows.items()}
            wanted = plain(target, params, prompt, **own, sequence=sequence[row], max_new_tokens=24)
            assert found.tokens[row] == wanted

    def test_eight_rows_give_the_tokens_of_each_alone(self) -> None:
        """In float32, token for token, with the chain's own caches in the batch too."""
        target, params = small_target()
        drafter = make_chain(target, 3)
        draft_params = jax.tree.map(lambda w: w * 1.05, params)
        rng = np.random.default_rng(0)
        prompts = [rng.integers(64, size=n).tolist() for n in (1, 30, 2, 16, 17, 5, 11, 23)]
        generator = Generator(target, params, drafter, draft_params, capacity=CAPACITY, prefill_chunk=16)
        heat = [0.0, 1.0] * 4
        together = generator.generate(prompts, temperature=heat, max_new_tokens=32)
        for row, prompt in enumerate(prompts):
            alone = generator.generate([prompt], temperature=heat[row], sequence=[row], max_new_tokens=32)
            assert together.tokens[row] == alone.tokens[0]
            assert together.rounds[row] == alone.rounds[0]

    def test_prompts_longer_than_a_chunk(self) -> None:
        """33 tokens read one or 33 at a time give the same answer."""
        target, params = small_target()
        wanted = [list(answer[:8]) for answer in _answers(1.0)]
        for chunk in (1, 33):
            generator = Generator(target, params, make_vanilla(), capacity=CAPACITY, prefill_chunk=chunk)
            assert generator.generate(PROMPTS, temperature=1.0, max_new_tokens=8).tokens == wanted

    @pytest.mark.parametrize("rounds_per_call", [1, 3])
    def test_streaming_gives_the_same_text(self, rounds_per_call: int) -> None:
        target, params = small_target()
        generator = Generator(target, params, make_prompt_lookup(), capacity=CAPACITY, prefill_chunk=16)
        whole = generator.generate(PROMPTS, max_new_tokens=20)
        parts = list(generator.stream(PROMPTS, rounds_per_call=rounds_per_call, max_new_tokens=20))
        assert parts[-1].tokens == whole.tokens
        assert parts[-1].rounds == whole.rounds
        assert [len(row) for row in parts[0].tokens] == [1] * 4
        for before, after in pairwise(parts):
            assert all(new[: len(old)] == old for old, new in zip(before.tokens, after.tokens, strict=True))
            assert all(new - old <= rounds_per_call for old, new in zip(before.rounds, after.rounds, strict=True))


class TestMisuse:
    def test_it_is_named(self) -> None:
        target, params = small_target()
        generator = Generator(target, params, make_vanilla(), capacity=CAPACITY)
        for prompts, words in [([], "at least 1"), ([[1], []], "at least 1"), ([[64]], "64"), ([[-1]], "-1")]:
            with pytest.raises(ValueError, match=words):
                generator.generate(prompts, max_new_tokens=4)
        generator = dataclasses.replace(generator, capacity=None)
        with pytest.raises(ValueError, match=rf"601.*{target.max_positions}"):
            generator.generate([[1]], max_new_tokens=600)
        with pytest.raises(ValueError, match="residual"):
            Generator(target, params, make_vanilla(), rule="residual")
        with pytest.raises(ValueError, match="nonsense"):
            Generator(target, params, make_vanilla(), rule="nonsense")


@pytest.mark.parametrize("share_noise", [True, False])
def test_a_drafter_learns_the_noise_where_it_is_shared(share_noise: bool) -> None:
    """After the last round: the token that was written, or the most probable one."""
    rows = 64
    target, params = bigram_target(8)
    spy = make_vanilla()._replace(
        init=lambda batch, *_: jnp.zeros((batch, 1), jnp.int32),
        observe=lambda _, __, state, seen: state if seen.choice is None else seen.choice,
    )
    sampling = make_sampling(rows, temperature=1.0, max_new_tokens=3)
    models = Models(target, spy, params)
    state = prefill(models, jnp.zeros((rows, 8), jnp.int32), jnp.ones(rows, jnp.int32), sampling)
    state = decode(models, state, sampling, 4, share_noise=share_noise)
    text = np.asarray(state.text)
    probable = np.asarray(params["table"]).argmax(-1)[text[:, 2]]
    assert (text[:, 3] != probable).any()
    np.testing.assert_array_equal(np.asarray(state.drafter)[:, 0], text[:, 3] if share_noise else probable)


def test_noise_of_its_own_is_drawn_with_once() -> None:
    """Every vector that a drafter with `own_noise` gets is another one: beside each other, in all rounds and rows."""
    target, params = bigram_target(8)
    plain = make_vanilla()

    def propose(*arguments: Any) -> Any:
        tree, _ = plain.propose(*arguments)
        state, length, noise = arguments[2], arguments[4], arguments[5]
        return tree, state.at[jnp.arange(2), length].set(noise)

    spy = plain._replace(
        init=lambda batch, capacity, _: jnp.zeros((batch, capacity, 3, 8)),
        propose=propose,
        observe=lambda _, __, state, ___: state,
        draws=True,
        own_noise=3,
    )
    sampling = make_sampling(2, temperature=1.0, max_new_tokens=7)
    models = Models(target, spy, params)
    state = prefill(models, jnp.ones((2, 16), jnp.int32), jnp.asarray([2, 3]), sampling, chunk=4)
    seen = np.asarray(decode(models, state, sampling, 10, rule="residual", share_noise=False).drafter)
    used = seen[np.abs(seen).sum((2, 3)) > 0].reshape(-1, 8)
    assert used.shape == (2 * 6 * 3, 8)
    assert len(np.unique(used, axis=0)) == len(used)
