"""Chi-square tests: the text follows the target's distribution, and a wrong one would have been noticed.

All seeds are fixed, so a test passes always or never. A right implementation stays above P_RIGHT; each wrong variant,
made on purpose, falls below P_WRONG.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from eagle_jax import verify
from eagle_jax.decode import Models, Rule, decode, prefill
from eagle_jax.drafters import Drafter, make_chain, make_eagle1, make_eagle2, make_lookahead, make_prompt_lookup
from eagle_jax.drafters import head as heads
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import Head, HeadConfig, HeadParams, make_head
from eagle_jax.sampling import DRAFT_STREAM, choose, gumbel, make_sampling, uniform
from eagle_jax.testing import bigram_target
from eagle_jax.types import NO_PARENT, DraftTree, Params, Sampling
from tests.reference import sampling as slow

P_RIGHT = 1e-3
P_WRONG = 1e-9
ROWS = 20480
VOCAB = 8
TARGET, PARAMS = bigram_target(VOCAB)
TABLE = np.asarray(PARAMS["table"])
PROMPT = [TABLE[5].argmax(), 5, TABLE[5].argmax(), TABLE[TABLE[5].argmax()].argmax(), 5]
"""Likely pairs, so that copying from the prompt helps; it ends in 5."""
Knobs = tuple[float, int, float, float]
KNOBS: list[Knobs] = [
    (1.0, 0, 1.0, 0.0),
    (0.5, 0, 1.0, 0.0),
    (2.0, 5, 1.0, 0.0),
    (1.0, 0, 0.8, 0.0),
    (1.0, 6, 0.9, 0.0),
]
KNOBS += [(1.0, 0, 1.0, 0.2)]


def p_value(counts: np.ndarray, distribution: np.ndarray) -> float:
    """Of a chi-square test; cells where fewer than 5 are expected are joined. A token of no probability gives 0."""
    counts, expected = counts.ravel(), distribution.ravel() * counts.sum()
    if counts[expected == 0].any():
        return 0.0
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    used = expected > 0
    return float(stats.chisquare(counts[used], expected[used]).pvalue)


def joint_distribution(first: int, length: int, temperature: float, *masks: float) -> np.ndarray:
    """f64[V, ..., V]: distribution of the `length` tokens after `first` under the bigram target."""
    step = np.array([slow.distribution(row, temperature, *masks) for row in TABLE])
    joint = step[first]
    for _ in range(length - 1):
        joint = joint[..., None] * step
    return joint


def joint_counts(tokens: np.ndarray) -> np.ndarray:
    """How often each sequence occurs among the rows of i32[B, length]."""
    counts = np.zeros((VOCAB,) * tokens.shape[1], int)
    np.add.at(counts, tuple(tokens.T), 1)
    return counts


class TestKeyedSampling:
    """argmax(mask(z) + T g) is a sample of the masked softmax, whichever part of the key varies."""

    @staticmethod
    def draws(over: str, knobs: Knobs) -> np.ndarray:
        """Tokens i32[ROWS] after token 3, keyed by other sequences, seeds or positions."""
        keys: dict[str, Any] = {"seed": 1, "sequence": [2] * ROWS}
        positions = jnp.full((ROWS, 1), 7)
        if over == "position":
            positions = jnp.arange(ROWS)[:, None]
        else:
            keys[over] = range(ROWS)
        masks = dict(zip(("temperature", "top_k", "top_p", "min_p"), knobs, strict=True))
        sampling = make_sampling(ROWS, **masks, **keys)
        logits = jnp.broadcast_to(PARAMS["table"][3], (ROWS, 1, VOCAB))
        return np.asarray(jax.jit(choose)(logits, gumbel(sampling, positions, VOCAB), sampling))

    @pytest.mark.parametrize("over", ["sequence", "seed", "position"])
    @pytest.mark.parametrize("knobs", KNOBS)
    def test_distribution(self, over: str, knobs: Knobs) -> None:
        counts = joint_counts(self.draws(over, knobs))
        assert p_value(counts, joint_distribution(3, 1, *knobs)) > P_RIGHT
        others = [other for other in KNOBS if other != knobs]
        assert all(p_value(counts, joint_distribution(3, 1, *other)) < P_WRONG for other in others)

    def test_greedy(self) -> None:
        assert (self.draws("sequence", (0.0, 0, 1.0, 0.0)) == TABLE[3].argmax()).all()


def head_over(draft_seed: int) -> tuple[Head, HeadParams]:
    """A head that reads the embedding alone and says something like the target, but not the same."""
    layer = ModelConfig(
        vocab_size=VOCAB, width=VOCAB, mlp_width=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2,
        max_positions=64, norm_eps=1e-5, rope_theta=1e4,
    )  # fmt: skip
    head = make_head(HeadConfig(kind="eagle", layer=layer, feature_width=VOCAB), TARGET)
    weights = jax.tree.map(jnp.zeros_like, nn.unbox(head.init(jax.random.key(0))))
    weights["fc"]["kernel"] = jnp.eye(2 * VOCAB, VOCAB)
    tilt = 0.3 * np.random.default_rng(draft_seed).standard_normal((VOCAB, VOCAB))
    lm_head = jnp.asarray(np.eye(VOCAB) + tilt, jnp.float32)
    return head, HeadParams(weights=weights, lm_head=lm_head, target_ids=jnp.arange(VOCAB))


@functools.cache
def method(name: str) -> tuple[Drafter, Params]:
    """A drafter that is right at times."""
    head, head_params = head_over(1)
    _, other = bigram_target(VOCAB, seed=1)
    alike = {"table": PARAMS["table"] + 0.7 * other["table"]}
    return {
        "chain": (make_chain(TARGET, 2), alike),
        "prompt_lookup": (make_prompt_lookup(2), ()),
        "lookahead": (make_lookahead(3, 2, 2, pool_from_prompt=True, pool_size=16), ()),
        "static": (make_eagle1(head, ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (2, 0))), head_params),
        "static with a gap": (make_eagle1(head, ((0,), (2,), (0, 1), (2, 0))), head_params),
        "dynamic": (make_eagle2(head, 7, 1, 3), head_params),
        "dynamic, drawn": (make_eagle2(head, 4, 2, 2, draws=True), head_params),
    }[name]


def written(
    drafting: tuple[Drafter, Params], rule: Rule, share_noise: bool, sampling: Sampling
) -> tuple[np.ndarray, float]:
    """Four tokens after PROMPT, i32[ROWS, 4], and the share of rounds that accepted anything."""
    drafter, params = drafting
    size = len(PROMPT)
    text = np.zeros((ROWS, size + 4 + drafter.max_depth + 1), np.int32)
    text[:, :size] = PROMPT
    lengths = jnp.full(ROWS, size)
    models = Models(TARGET, drafter, PARAMS, params)
    state = prefill(models, jnp.asarray(text), lengths, sampling, chunk=4)
    state = decode(models, state, sampling, 10, rule=rule, share_noise=share_noise)
    accepted = np.asarray(state.accepted).sum(0)
    return np.asarray(state.text)[:, size : size + 4], accepted[1:].sum() / accepted.sum()


@pytest.mark.parametrize(
    ("name", "rule", "share_noise"),
    [
        ("chain", "match", True),
        ("chain", "residual", False),
        ("prompt_lookup", "residual", False),
        ("lookahead", "residual", False),
        ("static", "residual", False),
        ("static with a gap", "residual", False),
        ("dynamic", "match", True),
        ("dynamic", "residual", False),
        ("dynamic, drawn", "residual", False),
    ],
)
def test_decoder(name: str, rule: Rule, share_noise: bool) -> None:
    """The first three tokens jointly, and the second to fourth, with and without masks.

    Under `match` every drafter writes the same tokens (test_conformance), so two of them stand for all.
    """
    for temperature, top_k, top_p in [(1.0, 0, 1.0), (0.6, 5, 0.95)]:
        knobs = (temperature, top_k, top_p)
        sampling = make_sampling(ROWS, temperature=temperature, top_k=top_k, top_p=top_p, seed=11, max_new_tokens=4)
        tokens, accepted = written(method(name), rule, share_noise, sampling)
        assert p_value(joint_counts(tokens[:, :3]), joint_distribution(5, 3, *knobs)) > P_RIGHT
        assert p_value(joint_counts(tokens[:, 1:]), joint_distribution(5, 4, *knobs).sum(0)) > P_RIGHT
        assert accepted > 0.05


def test_a_drawn_child_that_stands_by_its_own_probability_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten candidates three are selected: then likely tokens stay in the tree more often than they were drawn."""
    right = heads.best_and_drawn

    def wrong(head: Head, params: HeadParams, target_params: Params, states: jax.Array, noise: jax.Array) -> Any:
        children = right(head, params, target_params, states, noise)
        confidence = jax.nn.log_softmax(head.logits(params, target_params, states))
        return children._replace(values=jnp.take_along_axis(confidence, children.tokens, axis=2))

    monkeypatch.setattr(heads, "best_and_drawn", wrong)
    head, head_params = head_over(1)
    drafter = make_eagle2.__wrapped__(head, 4, 2, 2, draws=True)  # made anew, so that it is traced anew
    sampling = make_sampling(ROWS, temperature=1.0, seed=11, max_new_tokens=4)
    tokens, _ = written((drafter, head_params), "residual", False, sampling)
    assert p_value(joint_counts(tokens[:, :3]), joint_distribution(5, 3, 1.0)) < P_WRONG


class TestResidualTree:
    """The p/q rule on one tree: three children drawn for the root without replacement, two for each of them."""

    PARENTS = (NO_PARENT, 0, 0, 0, 1, 1, 2, 2, 3, 3)
    DEPTHS = (0, 1, 1, 1, 2, 2, 2, 2, 2, 2)
    TEMPERATURE = 0.7
    SAMPLING = make_sampling(ROWS, temperature=TEMPERATURE, seed=4)

    def noise(self, stream: int = 0) -> jax.Array:
        """Gumbel noise f32[ROWS, 3, V] of the three positions that a round may write."""
        return gumbel(self.SAMPLING, jnp.broadcast_to(jnp.arange(1, 4), (ROWS, 3)), VOCAB, stream)

    def draft(self, noise: jax.Array) -> DraftTree:
        """Children by the largest draft logits plus T times `noise`."""
        logits = PARAMS["table"] + 0.7 * bigram_target(VOCAB, seed=2)[1]["table"]
        root = jnp.zeros((ROWS, 1), jnp.int32)
        _, first = jax.lax.top_k(logits[root[:, 0]] + self.TEMPERATURE * noise[:, 0], 3)
        _, second = jax.lax.top_k(logits[first] + self.TEMPERATURE * noise[:, 1:2], 2)
        tokens = jnp.concatenate([root, first, second.reshape(ROWS, 6)], axis=1)
        shape = tokens.shape
        return DraftTree(
            tokens=tokens,
            parents=jnp.broadcast_to(jnp.asarray(self.PARENTS), shape),
            candidate=jnp.ones(shape, bool),
            log_values=jnp.zeros(shape),
            draft_logits=logits[tokens],
            max_depth=2,
        )

    def p_value(self, tree: DraftTree, bonus_noise: jax.Array, uniforms: jax.Array | None = None) -> float:
        """Of the first two tokens jointly; where a round wrote one token, the second follows by plain sampling."""
        if uniforms is None:
            uniforms = uniform(self.SAMPLING, jnp.zeros((ROWS, 1), jnp.int32), len(self.PARENTS))[:, 0]
        logits = PARAMS["table"][tree.tokens]
        at_node = bonus_noise[:, jnp.asarray(self.DEPTHS)]
        # A function made anew is traced anew, so that a test may change what it calls.
        run = jax.jit(lambda *arguments: verify.residual(*arguments))
        verdict = run(tree, logits, self.SAMPLING, uniforms, at_node)
        rows = np.arange(ROWS)
        path, count, bonus = (np.asarray(x) for x in (verdict.path, verdict.num_accepted, verdict.next_token))
        drafted = np.asarray(tree.tokens)[rows[:, None], np.maximum(path, 0)]
        first = np.where(count > 0, drafted[:, 1], bonus)
        after = np.asarray(choose(PARAMS["table"][first], self.noise()[:, 1], self.SAMPLING))
        second = np.select([count > 1, count == 1], [drafted[:, 2], bonus], after)
        counts = joint_counts(np.stack([first, second], axis=1))
        return p_value(counts, joint_distribution(0, 2, self.TEMPERATURE))

    def test_distribution(self) -> None:
        assert self.p_value(self.draft(self.noise(DRAFT_STREAM)), self.noise()) > P_RIGHT

    @pytest.mark.parametrize("drawn", [False, True])
    def test_any_tree_is_exact_at_q_one(self, drawn: bool) -> None:
        """As long as it was made without the randomness of the walk."""
        noise = self.noise(DRAFT_STREAM) if drawn else jnp.zeros((ROWS, 3, VOCAB))
        assert self.p_value(self.draft(noise).replace(draft_logits=None), self.noise()) > P_RIGHT

    def test_a_tree_that_knows_the_noise_is_noticed(self) -> None:
        """At q = 1 too."""
        assert self.p_value(self.draft(self.noise()).replace(draft_logits=None), self.noise()) < P_WRONG

    def test_children_that_were_not_drawn_are_noticed(self) -> None:
        """A plain top-k is no sample of q, so p/q does not hold for it."""
        assert self.p_value(self.draft(jnp.zeros((ROWS, 3, VOCAB))), self.noise()) < P_WRONG

    def test_children_in_another_order_are_noticed(self) -> None:
        tree = self.draft(self.noise(DRAFT_STREAM))
        order = jnp.asarray([0, 3, 2, 1, 8, 9, 6, 7, 4, 5])
        mixed = tree.replace(tokens=tree.tokens[:, order], draft_logits=tree.draft_logits[:, order])
        assert self.p_value(mixed, self.noise()) < P_WRONG

    def test_another_draft_distribution_is_noticed(self) -> None:
        tree = self.draft(self.noise(DRAFT_STREAM))
        assert self.p_value(tree.replace(draft_logits=tree.draft_logits * 0.5), self.noise()) < P_WRONG

    def test_noise_of_the_draft_in_the_bonus_is_noticed(self) -> None:
        """Never mix shared noise with p/q rejection."""
        assert self.p_value(self.draft(self.noise()), self.noise()) < P_WRONG

    def test_a_bonus_at_another_temperature_is_noticed(self) -> None:
        assert self.p_value(self.draft(self.noise(DRAFT_STREAM)), self.noise() / self.TEMPERATURE) < P_WRONG

    def test_one_uniform_for_all_siblings_is_noticed(self) -> None:
        uniforms = uniform(self.SAMPLING, jnp.zeros((ROWS, 1), jnp.int32), 1)[:, 0]
        shared = jnp.broadcast_to(uniforms, (ROWS, len(self.PARENTS)))
        assert self.p_value(self.draft(self.noise(DRAFT_STREAM)), self.noise(), shared) < P_WRONG

    def test_a_residual_without_its_norm_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verify, "_normalise", lambda weights, otherwise: weights)
        assert self.p_value(self.draft(self.noise(DRAFT_STREAM)), self.noise()) < P_WRONG
