"""Sampling as a deterministic choice: argmax of masked logits plus temperature times keyed noise.

A sample from softmax(z / T) is argmax(z + T g) with standard Gumbel noise g (the Gumbel-max trick, Maddison et al.,
arXiv 1411.0030, section 2). The noise is keyed by (seed, sequence, position) and by nothing else, so the token at a
position does not depend on who drafted, on the tree, or on the neighbours in the batch (DESIGN 2). T = 0 is the same
formula. Knows neither trees nor drafters.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from eagle_jax.kernels.keyed_bits import keyed_bits
from eagle_jax.platforms import platform
from eagle_jax.types import NO_TOKEN, Penalties, Sampling

TARGET_STREAM = 0
"""Noise of the target's choices, and of drafters that share it."""
DRAFT_STREAM = 1
"""Noise of a drafter that draws for itself (verification rule `residual`)."""
ACCEPT_STREAM = 2
"""Uniforms of the rule `residual`."""

ROWS_AXIS = "data"
"""Mesh axis over which the rows of a batch are sharded (`eagle_jax.sharding`)."""


class SamplingOptions(TypedDict, total=False):
    """The keywords of `make_sampling`, for functions that pass them on: `**sampling: Unpack[SamplingOptions]`."""

    temperature: float | Sequence[float]
    top_k: int | Sequence[int]
    top_p: float | Sequence[float]
    min_p: float | Sequence[float]
    repetition_penalty: float | Sequence[float]
    presence_penalty: float | Sequence[float]
    seed: int | Sequence[int]
    sequence: Sequence[int] | None
    stop_ids: Sequence[int]
    max_new_tokens: int | Sequence[int]


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How the answers of a measurement are sampled, the same for every row; values as `make_sampling` takes them."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    max_new_tokens: int = 128
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0

    def __post_init__(self) -> None:
        make_sampling(1, **self.options())  # refuses values out of range

    def options(self, **more: Any) -> SamplingOptions:
        """As keywords of `make_sampling` and of all that pass them on; `more` is what differs from row to row."""
        options: Any = {**dataclasses.asdict(self), **more}
        return options

    def __str__(self) -> str:
        parts = [f"T = {self.temperature:g}"]
        parts += [f"top-k {self.top_k}"] if self.top_k else []
        parts += [f"top-p {self.top_p:g}"] if self.top_p < 1 else []
        parts += [f"min-p {self.min_p:g}"] if self.min_p > 0 else []
        parts += [f"repetition penalty {self.repetition_penalty:g}"] if self.repetition_penalty != 1 else []
        parts += [f"presence penalty {self.presence_penalty:g}"] if self.presence_penalty else []
        return ", ".join(parts)


class _Range(NamedTuple):
    """The type of a setting and its values, both ends included."""

    dtype: type
    low: float
    high: float
    above: bool = False  # without `low` itself


_RANGES = {
    "temperature": _Range(np.float32, 0, 1e4),
    "top_k": _Range(np.int32, 0, 2**31 - 1),
    "top_p": _Range(np.float32, 0, 1, above=True),
    "min_p": _Range(np.float32, 0, 1),
    "repetition_penalty": _Range(np.float32, 0, 1e4, above=True),
    "presence_penalty": _Range(np.float32, -1e4, 1e4),
    "seed": _Range(np.uint32, 0, 2**32 - 1),
    "sequence": _Range(np.uint32, 0, 2**32 - 1),
    "max_new_tokens": _Range(np.int32, 1, 2**31 - 1),
}


def make_sampling(
    batch: int,
    *,
    temperature: float | Sequence[float] = 0.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    repetition_penalty: float | Sequence[float] = 1.0,
    presence_penalty: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
    sequence: Sequence[int] | None = None,
    stop_ids: Sequence[int] = (),
    max_new_tokens: int | Sequence[int] = 128,
) -> Sampling:
    """Build a checked `Sampling` of numpy arrays, without touching a device; a single value serves every row.

    Args:
      batch: number of rows B.
      temperature: >= 0; 0 is greedy.
      top_k: sample from the k most probable tokens only; 0 from all.
      top_p: in (0, 1]; sample only from the most probable tokens, as many as reach this probability at `temperature`.
      min_p: in [0, 1]; sample only from tokens at least this many times as probable as the most probable one.
      repetition_penalty: > 0, on tokens of prompt and answer; 1 is off (`eagle_jax.penalties`).
      presence_penalty: on tokens of the answer; 0 is off.
      seed: seed of the noise, in [0, 2**32).
      sequence: stable id of each request, in [0, 2**32); its row number where left out.
      stop_ids: tokens that end an answer (and belong to it).
      max_new_tokens: >= 1, the first token counts.

    Raises:
      ValueError: a value out of range, or a list whose length is not the batch size.
      TypeError: something else than numbers, or a fraction where an integer is needed.
    """
    for stop_id in stop_ids:
        if stop_id < 0:
            raise ValueError(f"stop_ids must be token ids of at least 0, got {stop_id}")
    stops = np.asarray(list(stop_ids) or [NO_TOKEN], np.int32)
    all_stops: Any = np.tile(stops, (batch, 1))
    repetition = _rows("repetition_penalty", repetition_penalty, batch)
    presence = _rows("presence_penalty", presence_penalty, batch)
    return Sampling(
        temperature=_rows("temperature", temperature, batch),
        top_k=_rows("top_k", top_k, batch),
        top_p=_rows("top_p", top_p, batch),
        min_p=_rows("min_p", min_p, batch),
        seed=_rows("seed", seed, batch),
        sequence=_rows("sequence", range(batch) if sequence is None else list(sequence), batch),
        stop_ids=all_stops,
        max_new_tokens=_rows("max_new_tokens", max_new_tokens, batch),
        penalties=Penalties(repetition, presence) if (repetition != 1).any() or presence.any() else None,
    )


def _rows(name: str, value: object, batch: int) -> Any:
    """A setting of `_RANGES` for each row of a batch; errors as `make_sampling`."""
    allowed, array = _RANGES[name], np.asarray(value)
    kinds, kind = ("iuf", "numbers") if allowed.dtype is np.float32 else ("iu", "integers")
    if array.size and array.dtype.kind not in kinds:
        raise TypeError(f"{name} takes {kind}, got {value!r:.60}")
    if array.ndim and array.shape != (batch,):
        raise ValueError(f"{name} has {array.size} values for {batch} rows")
    bad = ~(((array > allowed.low) if allowed.above else (array >= allowed.low)) & (array <= allowed.high))
    if bad.any():  # NaN is bad too
        between = "above {} and at most {}" if allowed.above else "between {} and {}"
        raise ValueError(f"{name} must be {between.format(allowed.low, allowed.high)}, got {array[bad].flat[0]}")
    return np.broadcast_to(array, (batch,)).astype(allowed.dtype)


def _keys(sampling: Sampling, positions: jax.Array, stream: int) -> jax.Array:
    """Keys [B, P] for positions i32[B, P]."""

    def one(seed: jax.Array, sequence: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), sequence), position)
        return key if stream == TARGET_STREAM else jax.random.fold_in(key, stream)

    return jax.vmap(jax.vmap(one, (None, None, 0)))(sampling.seed, sampling.sequence, positions)


def gumbel(sampling: Sampling, positions: jax.Array, vocab_size: int, stream: int = TARGET_STREAM) -> jax.Array:
    """Standard Gumbel noise f32[B, P, V] for the tokens at `positions` i32[B, P].

    Drawn as -log(-log1p(-u)) from 32-bit u, so that the upper tail, where the winners are, keeps its resolution.
    """
    bits = keyed_bits(_keys(sampling, positions, stream), vocab_size)
    below = (bits.astype(jnp.float32) + 0.5) * jnp.float32(2**-32)
    return -jnp.log(-jnp.log1p(-jnp.minimum(below, jnp.float32(1 - 2**-24))))


def noise_at(sampling: Sampling, positions: jax.Array, vocab_size: int, stream: int = TARGET_STREAM) -> jax.Array:
    """`gumbel` f32[B, P, V], but zeros, which cost nothing, while every row is greedy.

    A GPU draws it in less time than its host needs to read whether it should, and temperature 0 leaves nothing of it.
    """
    if platform() == "gpu":
        return gumbel(sampling, positions, vocab_size, stream)
    return lax.cond(
        any_sampled(sampling),
        lambda: gumbel(sampling, positions, vocab_size, stream),
        lambda: jnp.zeros((*positions.shape, vocab_size), jnp.float32),
    )


def uniform(sampling: Sampling, positions: jax.Array, count: int) -> jax.Array:
    """Uniforms f32[B, P, count] in [0, 1), independent of all noise above."""
    keys = _keys(sampling, positions, ACCEPT_STREAM)
    return jax.vmap(jax.vmap(lambda key: jax.random.uniform(key, (count,))))(keys)


def _sortable(x: jax.Array) -> jax.Array:
    """f32 -> i32 with the same order, so that bisection gives an exact threshold."""
    bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.int32)  # -0 and 0 are a tie
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _largest_threshold(ranks: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Largest integer t i32[..., 1] for which `enough(ranks >= t)` bool[..., 1] still holds; no sort over V."""
    low = ranks.min(-1, keepdims=True)  # every entry passes, so `enough` holds
    high = ranks.max(-1, keepdims=True)

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        # Upper middle without overflow: the two ends may be 2**32 apart.
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        holds = enough(ranks >= middle)
        return jnp.where(holds, middle, low), jnp.where(holds, high, middle - 1)

    low, _ = lax.fori_loop(0, 32, halve, (low, high))
    return low


def _per_row(values: jax.Array, like: jax.Array) -> jax.Array:
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def keep_top_k(logits: jax.Array, top_k: jax.Array) -> jax.Array:
    """Put -inf below the k-th largest of logits [B, ..., V]; top_k i32[B], 0 is off; ties with the k-th stay."""
    wanted = _per_row(top_k, logits)
    ranks = _sortable(logits)
    threshold = _largest_threshold(ranks, lambda passing: passing.sum(-1, keepdims=True) >= wanted)
    return jnp.where((wanted == 0) | (ranks >= threshold), logits, -jnp.inf)


def keep_top_p(logits: jax.Array, top_p: jax.Array, temperature: jax.Array) -> jax.Array:
    """Put -inf outside the nucleus of softmax(logits / temperature) (Holtzman et al., arXiv 1904.09751, section 3.1).

    The nucleus is the smallest set of most probable tokens whose mass reaches `top_p` f32[B]; ties with its last
    member stay. 1 is off.
    """
    wanted = _per_row(top_p, logits)
    weights = jnp.exp((logits - logits.max(-1, keepdims=True)) / jnp.maximum(_per_row(temperature, logits), 1e-6))
    goal = wanted * weights.sum(-1, keepdims=True)
    ranks = _sortable(logits)
    threshold = _largest_threshold(ranks, lambda passing: jnp.where(passing, weights, 0).sum(-1, keepdims=True) >= goal)
    return jnp.where((wanted >= 1) | (ranks >= threshold), logits, -jnp.inf)


def keep_min_p(logits: jax.Array, min_p: jax.Array, temperature: jax.Array) -> jax.Array:
    """Put -inf where softmax(logits / temperature) is below `min_p` f32[B] times its largest; 0 is off.

    Source: Nguyen et al., arXiv 2407.01082, section 3.
    """
    wanted = _per_row(min_p, logits)
    lead = -_per_row(temperature, logits) * jnp.log(jnp.where(wanted > 0, wanted, 1.0))  # that the largest may have
    return jnp.where((wanted <= 0) | (logits >= logits.max(-1, keepdims=True) - lead), logits, -jnp.inf)


def warp(logits: jax.Array, sampling: Sampling, top_k_first: bool = True) -> jax.Array:
    """Logits f32[B, ..., V] with -inf where a mask excludes a token; untouched in rows at temperature 0.

    Top-k, then top-p, then min-p, as in `transformers`; top-p before top-k where `top_k_first` is false.
    """
    sampled = sampling.temperature > 0
    top_k = jnp.where(sampled, sampling.top_k, 0)
    top_p = jnp.where(sampled, sampling.top_p, 1.0)
    min_p = jnp.where(sampled, sampling.min_p, 0.0)

    def by_k(z: jax.Array) -> jax.Array:
        return lax.cond((top_k > 0).any(), lambda: keep_top_k(z, top_k), lambda: z)

    def by_p(z: jax.Array) -> jax.Array:
        return lax.cond((top_p < 1).any(), lambda: keep_top_p(z, top_p, sampling.temperature), lambda: z)

    masked = by_p(by_k(logits)) if top_k_first else by_k(by_p(logits))
    return lax.cond((min_p > 0).any(), lambda: keep_min_p(masked, min_p, sampling.temperature), lambda: masked)


def noisy_scores(logits: jax.Array, noise: jax.Array, sampling: Sampling) -> jax.Array:
    """mask(z) + T g, f32[B, ..., V]: the token chosen is its argmax."""
    return warp(logits, sampling) + _per_row(sampling.temperature, logits) * noise


def choose(logits: jax.Array, noise: jax.Array, sampling: Sampling) -> jax.Array:
    """The target's tokens i32[B, ...] for logits and noise f32[B, ..., V]; ties go to the lower id."""
    return first_largest(noisy_scores(logits, noise, sampling))


def choose_at(logits: jax.Array, noise: jax.Array, place: jax.Array, sampling: Sampling) -> jax.Array:
    """As `choose` with noise[b, place[b, n]] for logits[b, n]; skips noise and masks where no row has any.

    One branch of three, so that the host of a GPU reads one number (and three more for masks).

    Args:
      logits: f32[B, N, V].
      noise: f32[B, P, V].
      place: i32[B, N], indices into P.
      sampling: settings of each row.

    Returns:
      i32[B, N].
    """

    def at_nodes() -> jax.Array:
        return jnp.take_along_axis(noise, place[:, :, None], axis=1)

    def sampled() -> jax.Array:
        return first_largest(logits + _per_row(sampling.temperature, logits) * at_nodes())

    is_sampled = any_sampled(sampling)
    branch = is_sampled.astype(jnp.int32) + (is_sampled & any_masked(sampling))
    return lax.switch(branch, [lambda: first_largest(logits), sampled, lambda: choose(logits, at_nodes(), sampling)])


def any_sampled(sampling: Sampling) -> jax.Array:
    """Whether any row has a temperature above 0: bool[]."""
    return (sampling.temperature > 0).any()


def any_masked(sampling: Sampling) -> jax.Array:
    """Whether top-k, top-p or min-p excludes tokens of any row that is sampled: bool[]."""
    masked = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
    return ((sampling.temperature > 0) & masked).any()


def first_largest(scores: jax.Array) -> jax.Array:
    """Index i32[...] of the first of the largest of scores [..., V].

    `argmax` compares pairs of value and index one by one on a CPU; two passes of a plain maximum and minimum over the
    same numbers take a sixth of its time there.
    """
    places = lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 1)
    largest = scores.max(-1, keepdims=True)
    return jnp.where(scores == largest, places, scores.shape[-1] - 1).min(-1)


def top_k_rows(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`lax.top_k` of x [B, ..., n]; on a mesh each device sorts its own rows, where XLA would gather the batch."""
    top_k = functools.partial(lax.top_k, k=k)
    if jax.sharding.get_abstract_mesh().empty:
        return top_k(x)
    rows = PartitionSpec(ROWS_AXIS)
    return jax.shard_map(top_k, in_specs=rows, out_specs=rows, axis_names={ROWS_AXIS})(x)
