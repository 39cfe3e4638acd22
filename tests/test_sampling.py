"""The masks of sampling against sorting, the keyed noise against its contract and distribution, checks on arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eagle_jax import sampling as fast
from eagle_jax.types import NO_TOKEN, Sampling
from tests.compilations import AS_SHIPPED
from tests.reference import sampling as slow

VOCAB = 33
ROWS = 64
WARP = jax.jit(fast.warp, static_argnames="top_k_first")
CHOOSE = jax.jit(fast.choose)
GUMBEL = jax.jit(fast.gumbel, static_argnames=("vocab_size", "stream"))


def random_logits(rng: np.random.Generator, kind: str) -> np.ndarray:
    """f32[ROWS, V]; `ties` are multiples of a half, zeros of both signs among them."""
    logits = rng.normal(size=(ROWS, VOCAB)) * 3
    if kind == "ties":
        logits = np.where(rng.random(logits.shape) < 0.1, -0.0, np.round(logits * 2) / 2)
    if kind == "masked":
        logits[rng.random(logits.shape) < 0.4] = -np.inf
        logits[:, 0] = 0.0
    return logits.astype(np.float32)


def between_steps(rng: np.random.Generator, logits: np.ndarray, temperature: float) -> float:
    """A top_p well inside a step of the cumulative distribution, so that rounding does not decide the last token."""
    probs = np.sort(slow.softmax(logits, temperature))[::-1]
    wide = np.flatnonzero(probs > 1e-3)
    step = int(rng.choice(wide))
    return float(probs[:step].sum() + probs[step] * rng.uniform(0.2, 0.8))


def between_probabilities(rng: np.random.Generator, logits: np.ndarray, temperature: float) -> float:
    """A min_p well between the shares of two tokens, or above all but the largest, where there is room for it."""
    probs = slow.softmax(logits, temperature)
    shares = np.unique(np.append(probs[probs > 0] / probs.max(), 1e-6))
    shares = shares[shares >= 1e-6]
    room = np.flatnonzero(shares[1:] > 1.01 * shares[:-1])
    if not room.size:
        return 0.0
    step = int(rng.choice(room))
    return float(np.sqrt(shares[step] * shares[step + 1]))


@pytest.mark.parametrize("kind", ["smooth", "ties", "masked"])
@pytest.mark.parametrize("top_k_first", [True, False])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), temperatures=st.sampled_from([(1e-3, 0.05), (0.3, 3.0), (20.0, 1e3)]))
def test_warp_against_sorting(kind: str, top_k_first: bool, seed: int, temperatures: tuple[float, float]) -> None:
    rng = np.random.default_rng(seed)
    logits = random_logits(rng, kind)
    temperature = np.where(rng.random(ROWS) < 0.1, 0.0, rng.uniform(*temperatures, ROWS)).astype(np.float32)
    top_k = rng.choice([0, 1, 2, 5, VOCAB, VOCAB + 1, 10**6], ROWS)
    top_p = np.ones(ROWS, np.float32)
    for row in range(ROWS):
        # Where top-p comes second it sees what top-k left over.
        seen = slow.warp(logits[row], temperature[row], int(top_k[row]), 1.0) if top_k_first else logits[row]
        if temperature[row] > 0 and rng.random() < 0.7:
            top_p[row] = between_steps(rng, seen, temperature[row])
    min_p = np.zeros(ROWS, np.float32)
    for row in range(ROWS):
        if temperature[row] > 0 and rng.random() < 0.5:
            min_p[row] = between_probabilities(rng, logits[row], temperature[row])
    sampling = fast.make_sampling(ROWS, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    actual = np.asarray(WARP(logits, sampling, top_k_first=top_k_first))
    wanted = [slow.warp(logits[r], temperature[r], int(top_k[r]), top_p[r], top_k_first, min_p[r]) for r in range(ROWS)]
    np.testing.assert_array_equal(actual, np.asarray(wanted, np.float32))


def test_top_p_at_its_ends() -> None:
    """1 keeps everything, tokens without any mass included; the smallest keeps the most probable token and its ties."""
    logits = np.array([[0.0, 3.0, 3.0, -200.0]] * 2, np.float32)
    tiny = float(np.finfo(np.float32).tiny)
    actual = np.asarray(WARP(logits, fast.make_sampling(2, temperature=1.0, top_p=[1.0, tiny])))
    assert np.isfinite(actual).tolist() == [[True] * 4, [False, True, True, False]]


def test_top_p_keeps_ties_with_the_last_one() -> None:
    """Of four equal tokens none comes before the others, so half the mass keeps all four."""
    actual = np.asarray(WARP(np.zeros((1, 4), np.float32), fast.make_sampling(1, temperature=1.0, top_p=0.5)))
    assert np.isfinite(actual).all()


def test_min_p_at_its_ends() -> None:
    """0 keeps everything, tokens without any mass included; 1 keeps the most probable token and its ties."""
    logits = np.array([[0.0, 3.0, 3.0, -200.0]] * 3, np.float32)
    actual = np.asarray(WARP(logits, fast.make_sampling(3, temperature=1.0, min_p=[0.0, 1.0, 0.04])))
    assert np.isfinite(actual).tolist() == [[True] * 4, [False, True, True, False], [True, True, True, False]]


def test_min_p_is_of_the_temperature() -> None:
    """A token e times less probable at T = 1 passes at T = 2 with the same min_p."""
    logits = np.array([[0.0, 1.0]] * 3, np.float32)
    actual = np.asarray(WARP(logits, fast.make_sampling(3, temperature=[1.0, 2.0, 0.0], min_p=0.5)))
    assert np.isfinite(actual).tolist() == [[False, True], [True, True], [True, True]]


def test_masks_take_any_number_of_nodes() -> None:
    """[B, N, V] is masked node by node, each with the settings of its row."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 5, VOCAB)).astype(np.float32)
    masks: dict[str, Any] = {"top_k": [4, 0, 2], "top_p": [1.0, 0.6, 0.1], "min_p": [0.2, 0.0, 0.5]}
    sampling = fast.make_sampling(3, temperature=[1.0, 0.5, 0.0], **masks)
    actual = np.asarray(WARP(logits, sampling))
    for node in range(5):
        np.testing.assert_array_equal(actual[:, node], WARP(logits[:, node], sampling))
    np.testing.assert_array_equal(actual[2], logits[2])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_choose_is_the_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = random_logits(rng, "smooth")
    noise = rng.gumbel(size=logits.shape).astype(np.float32)
    temperature = np.float32(rng.choice([0, 0.3, 1, 5], ROWS))
    top_k = rng.choice([0, 3], ROWS)
    sampling = fast.make_sampling(ROWS, temperature=temperature, top_k=top_k)
    actual = np.asarray(CHOOSE(logits, noise, sampling)).tolist()
    assert actual == [slow.choose(logits[r], noise[r], temperature[r], int(top_k[r]), 1.0) for r in range(ROWS)]


def test_ties_go_to_the_lower_id() -> None:
    logits = jnp.asarray([[0.0, 2.0, 2.0, 1.0]])
    assert fast.choose(logits, jnp.zeros((1, 4)), fast.make_sampling(1)).tolist() == [1]


class TestKeyedNoise:
    """Noise is a function of (seed, sequence, position), of nothing else, and of all three."""

    sampling = fast.make_sampling(4, seed=[7, 7, 8, 7], sequence=[3, 4, 3, 3])
    positions = jnp.asarray([[10, 11, 12]] * 4)

    def test_equal_keys_give_equal_noise(self) -> None:
        noise = np.asarray(GUMBEL(self.sampling, self.positions, 50))
        np.testing.assert_array_equal(noise[0], noise[3])

    def test_each_part_of_the_key_counts(self) -> None:
        noise = np.asarray(GUMBEL(self.sampling, self.positions, 50))
        different = [noise[0, 0], noise[0, 1], noise[1, 0], noise[2, 0]]
        different.append(np.asarray(GUMBEL(self.sampling, self.positions, 50, stream=fast.DRAFT_STREAM))[0, 0])
        for i, one in enumerate(different):
            for other in different[:i]:
                assert (one != other).all()

    def test_batch_row_and_shape_do_not_count(self) -> None:
        gumbel = jax.jit(fast.gumbel, static_argnums=2, compiler_options=AS_SHIPPED)
        noise = np.asarray(gumbel(self.sampling, self.positions, 50))
        alone = fast.make_sampling(1, seed=8, sequence=[3], temperature=0.7, top_k=5, stop_ids=(1, 2))
        for column, position in enumerate([10, 11, 12]):
            single = np.asarray(gumbel(alone, jnp.asarray([[position]]), 50))
            np.testing.assert_array_equal(single[0, 0], noise[2, column])

    def test_seed_and_sequence_are_not_interchangeable(self) -> None:
        swapped = fast.make_sampling(2, seed=[3, 4], sequence=[4, 3])
        noise = np.asarray(GUMBEL(swapped, jnp.asarray([[9], [9]]), 50))
        assert (noise[0] != noise[1]).all()

    def test_large_keys(self) -> None:
        most = 2**32 - 1
        noise = np.asarray(GUMBEL(fast.make_sampling(1, seed=most, sequence=[most]), jnp.asarray([[2**31 - 1]]), 50))
        assert np.isfinite(noise).all()

    def test_uniforms_have_their_own_stream(self) -> None:
        uniforms = np.asarray(jax.jit(fast.uniform, static_argnums=2)(self.sampling, self.positions, 2000))
        assert (uniforms >= 0).all()
        assert (uniforms < 1).all()
        assert stats.kstest(uniforms.ravel(), "uniform").pvalue > 0.01
        noise = np.asarray(GUMBEL(self.sampling, self.positions, 2000))
        assert abs(stats.spearmanr(uniforms[0].ravel(), noise[0].ravel()).statistic) < 0.05


@pytest.fixture(scope="module")
def draws() -> np.ndarray:
    """Two million values of the noise, from 2000 positions of 20 sequences."""
    sampling = fast.make_sampling(20, seed=5)
    positions = jnp.broadcast_to(jnp.arange(2000), (20, 2000))
    return np.asarray(GUMBEL(sampling, positions, 50))


class TestGumbelLaw:
    def test_bulk(self, draws: np.ndarray) -> None:
        """One value a key, so that the keys themselves are put to the test."""
        assert stats.kstest(draws[:, :, 0].ravel(), stats.gumbel_r.cdf).pvalue > 0.01
        assert stats.kstest(draws[0].ravel(), stats.gumbel_r.cdf).pvalue > 0.01

    @pytest.mark.parametrize("rarity", [1e-3, 1e-4, 1e-5])
    def test_upper_tail(self, draws: np.ndarray, rarity: float) -> None:
        """The winners live here: as many values as there should be, spread as they should be."""
        tail = draws[draws > stats.gumbel_r.isf(rarity)]
        assert stats.binomtest(len(tail), draws.size, rarity).pvalue > 0.01
        assert stats.kstest(stats.gumbel_r.sf(tail) / rarity, "uniform").pvalue > 0.01

    def test_lower_tail(self, draws: np.ndarray) -> None:
        tail = draws[draws < stats.gumbel_r.ppf(1e-3)]
        assert stats.binomtest(len(tail), draws.size, 1e-3).pvalue > 0.01

    def test_upper_tail_is_not_a_grid(self, draws: np.ndarray) -> None:
        """Uniforms with 24 bits would repeat themselves among two million draws: the largest are all different."""
        largest = np.sort(draws.ravel())[-2000:]
        assert len(np.unique(largest)) == 2000

    def test_neighbouring_keys_are_independent(self, draws: np.ndarray) -> None:
        for one, other in [(draws[:, :-1], draws[:, 1:]), (draws[:-1], draws[1:]), (draws[..., :-1], draws[..., 1:])]:
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.003


class TestMakeSampling:
    def test_one_value_serves_every_row(self) -> None:
        sampling = fast.make_sampling(3, temperature=0.5, top_k=4, top_p=0.9, seed=2, stop_ids=(5, 6), max_new_tokens=7)
        expected: dict[str, Any] = {
            "temperature": 0.5,
            "top_k": 4,
            "top_p": np.float32(0.9),
            "seed": 2,
            "max_new_tokens": 7,
        }
        for name, value in expected.items():
            assert getattr(sampling, name).tolist() == [value] * 3
        assert sampling.sequence.tolist() == [0, 1, 2]
        assert sampling.stop_ids.tolist() == [[5, 6]] * 3

    def test_no_stop_id_matches_no_token(self) -> None:
        assert fast.make_sampling(2).stop_ids.tolist() == [[NO_TOKEN]] * 2

    def test_other_values_have_the_same_shape(self) -> None:
        def shapes(sampling: Sampling) -> list[tuple[Any, Any]]:
            return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(sampling)]

        plain, other = (
            fast.make_sampling(2),
            fast.make_sampling(2, temperature=[0, 1.5], top_k=3, top_p=0.5, min_p=0.1, seed=[1, 2]),
        )
        assert shapes(plain) == shapes(other)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"temperature": -0.1}, ["temperature", "-0.1"]),
            ({"temperature": float("nan")}, ["temperature", "nan"]),
            ({"temperature": [1.0, 2.0]}, ["temperature", "2", "3"]),
            ({"top_k": -1}, ["top_k", "-1"]),
            ({"top_p": 0.0}, ["top_p", "0"]),
            ({"top_p": 1.01}, ["top_p", "1.01"]),
            ({"min_p": -0.1}, ["min_p", "-0.1", "0 and 1"]),
            ({"min_p": [0.0, 0.5, 1.5]}, ["min_p", "1.5", "0 and 1"]),
            ({"min_p": float("nan")}, ["min_p", "nan"]),
            ({"seed": -1}, ["seed", "-1"]),
            ({"seed": 2**32}, ["seed", str(2**32)]),
            ({"sequence": [0, 1]}, ["sequence", "2", "3"]),
            ({"sequence": [0, 1, -5]}, ["sequence", "-5"]),
            ({"stop_ids": (3, -1)}, ["stop_ids", "-1"]),
            ({"max_new_tokens": 0}, ["max_new_tokens", "0"]),
        ],
    )
    def test_misuse_is_named(self, arguments: dict[str, Any], words: list[str]) -> None:
        with pytest.raises(ValueError, match=words[0]) as error:
            fast.make_sampling(3, **arguments)
        for word in words:
            assert word in str(error.value)
