"""Ouroboros: the draft model's own chain in fewer passes, phrases after it, phrases from verification."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.decode import DecodeState, Models, decode, prefill
from eagle_jax.drafters import make_chain
from eagle_jax.drafters.base import Drafter, Observation
from eagle_jax.drafters.ngram_pool import NgramPool, empty_pool, insert, newest
from eagle_jax.drafters.ouroboros import Chain, OuroborosState, draft_chain, make_ouroboros, recycled
from eagle_jax.generator import Generator
from eagle_jax.sampling import make_sampling
from eagle_jax.testing import bigram_target, tiny_transformer
from eagle_jax.types import DraftTree, TargetOutput
from tests.drafts import with_noise
from tests.golden import QUICK
from tests.reference import ngram_pool as slow
from tests.reference import ouroboros as twin

CAPACITY = 96
BATCH = 3
VOCAB = 6
NOTHING = TargetOutput(hidden=jnp.zeros(()), taps=jnp.zeros(()), keys=(), values=())
_, TARGET, PARAMS = tiny_transformer(vocab_size=40, num_layers=1)
look_up = jax.jit(functools.partial(newest, number=5), compiler_options=QUICK)
PROMPTS = [[5], [1, 2, 3, 1, 2], [*range(3, 20)], [7] * 33]


@functools.cache
def ouroboros(num_drafted: int = 5, **knobs: int) -> Drafter:
    return make_ouroboros(TARGET, num_drafted, **{"phrases": 2, "phrase_length": 3, "pool_size": 64, **knobs})


@functools.cache
def started(drafter: Drafter, temperature: float) -> DecodeState:
    """The prompts, read."""
    text = np.zeros((len(PROMPTS), CAPACITY), np.int32)
    for row, prompt in enumerate(PROMPTS):
        text[row, : len(prompt)] = prompt
    lengths = jnp.asarray([len(prompt) for prompt in PROMPTS])
    sampling = make_sampling(len(PROMPTS), temperature=temperature, max_new_tokens=60)
    return prefill(Models(TARGET, drafter, PARAMS, with_noise(PARAMS)), jnp.asarray(text), lengths, sampling, chunk=16)


class TestChain:
    """The chain is the draft model's own, whatever the phrases."""

    @staticmethod
    def drafted(num_drafted: int, phrases: int, pool: NgramPool, prompts: np.ndarray, noise: jax.Array) -> Chain:
        """After prompts i32[B, S] of the bigram model, the last token of each the root."""
        target, params = bigram_target(VOCAB)
        length = jnp.full(BATCH, prompts.shape[1] - 1)
        state = OuroborosState(cache=target.init_cache(BATCH, CAPACITY), pool=pool)
        run = functools.partial(draft_chain, target, num_drafted=num_drafted, phrases=phrases)
        return jax.jit(run, compiler_options=QUICK)(params, state, jnp.asarray(prompts), length, noise)

    @pytest.mark.parametrize("num_drafted", [1, 2, 7])
    @pytest.mark.parametrize("phrases", [0, 1, 3])
    def test_tokens_and_passes(self, num_drafted: int, phrases: int) -> None:
        """As token by token, in the passes that the phrases allow; the pool holds right and wrong ones."""
        _, params = bigram_target(VOCAB)
        rng = np.random.default_rng(num_drafted)
        noise = np.zeros((BATCH, num_drafted + 4, VOCAB), np.float32)
        noise[1] = rng.gumbel(size=noise[1].shape)
        prompts = rng.integers(VOCAB, size=(BATCH, 6))

        def model(row: int, path: tuple[int, ...]) -> int:
            newest_token = path[-1] if path else prompts[row, -1]
            return int((np.asarray(params["table"])[newest_token] + noise[row, len(path)]).argmax())

        wanted, pool, pools = [], empty_pool(BATCH, 64, 3), [slow.Pool(64) for _ in range(BATCH)]
        for row in range(BATCH):
            tokens, _ = twin.draft(functools.partial(model, row), pools[row], num_drafted + 4, 0)
            for start in range(len(tokens) - 3):
                ngram = np.array(tokens[start : start + 4])
                ngram[3] += rng.integers(2)  # wrong at its end, at times
                pools[row].insert([ngram, [*ngram[:2], *rng.integers(VOCAB, size=2)]])
            wanted.append(twin.draft(functools.partial(model, row), pools[row], num_drafted, phrases))
            ngrams = jnp.zeros((BATCH, 64, 4), jnp.int32).at[row, : len(pools[row].ngrams)].set(pools[row].ngrams)
            pool = insert(pool, ngrams, jnp.zeros((BATCH, 64), bool).at[row, : len(pools[row].ngrams)].set(True))
        actual = self.drafted(num_drafted, phrases, pool, prompts, jnp.asarray(noise))
        assert actual.tokens.tolist() == [tokens for tokens, _ in wanted]
        assert actual.known.tolist() == [num_drafted] * BATCH
        assert actual.passes == max(passes for _, passes in wanted)
        if phrases == 0:
            assert actual.passes == num_drafted
        elif num_drafted == 7:
            assert actual.passes < num_drafted

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_what_was_accepted_behind_the_chain_is_read(self, temperature: float) -> None:
        """After rounds that ended in phrases the model drafts what a chain drafts that has read the text itself."""
        drafter, chain = ouroboros(), make_chain(TARGET, 5)
        sampling = make_sampling(len(PROMPTS), temperature=temperature, max_new_tokens=60)
        beyond = 0
        for rounds in (3, 7, 12):
            # `decode` takes its state away, and `started` keeps it.
            start = jax.tree.map(jnp.copy, started(drafter, temperature))
            models = Models(TARGET, drafter, PARAMS, with_noise(PARAMS))
            written = decode(models, start, sampling, rounds)
            beyond = int(written.accepted[:, 6:].sum())
            length = written.cache.length
            read = prefill(dataclasses.replace(models, drafter=chain), written.text, length, sampling, chunk=16)
            noise = jnp.asarray(np.random.default_rng(0).gumbel(size=(len(PROMPTS), 9, 40)), jnp.float32)
            arguments = with_noise(PARAMS), PARAMS
            actual, _ = jax.jit(drafter.propose)(*arguments, written.drafter, written.text, length, temperature * noise)
            wanted, _ = jax.jit(chain.propose, compiler_options=QUICK)(
                *arguments, read.drafter, written.text, length, temperature * noise
            )
            np.testing.assert_array_equal(actual.tokens[:, :6], wanted.tokens)
            np.testing.assert_allclose(actual.log_values[:, :6], wanted.log_values, atol=1e-4)
        assert beyond > 0


@pytest.mark.parametrize(("num_drafted", "phrases", "length"), [(1, 1, 1), (2, 3, 4), (5, 2, 3), (4, 3, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_phrases_of_the_check(num_drafted: int, phrases: int, length: int, seed: int) -> None:
    """The n-grams that the twin finds path by path, in its order, and those of the text, none in a row that is done."""
    target, params = bigram_target(VOCAB)
    drafter = make_ouroboros(target, num_drafted, phrases=phrases, phrase_length=length, pool_size=100)
    rng = np.random.default_rng(seed)
    ngrams = jnp.asarray(rng.integers(3, size=(BATCH, 40, length + 1)), jnp.int32)
    state = drafter.init(BATCH, CAPACITY, "float32")
    state = state.replace(pool=insert(state.pool, ngrams, jnp.ones((BATCH, 40), bool)))
    text, before = jnp.asarray(rng.integers(3, size=(BATCH, CAPACITY))), jnp.asarray([4, 9, 20])
    noise = jnp.zeros((BATCH, drafter.max_depth + 1, VOCAB)).at[:, :, :3].set(9)  # the pool knows these alone
    tree, state = jax.jit(drafter.propose, compiler_options=QUICK)(params, params, state, text, before, noise)
    choice = rng.integers(VOCAB, size=(BATCH, drafter.nodes))
    accepted = rng.integers(num_drafted + length + 1, size=BATCH)
    count = np.where(np.arange(BATCH) == 1, 0, accepted + 1)
    seen = Observation(
        text=text,
        length=before,
        output=NOTHING,
        path=jnp.zeros((BATCH, drafter.max_depth + 1), jnp.int32),
        count=jnp.asarray(count),
        tree=tree,
        choice=jnp.asarray(choice),
    )
    after = jax.jit(drafter.observe, compiler_options=QUICK)(params, params, state, seen)
    for row in range(BATCH):
        tokens, parents, candidate = (np.asarray(x[row]) for x in (tree.tokens, tree.parents, tree.candidate))
        slow.check_tree(tokens, parents, candidate)
        nodes = np.flatnonzero(candidate)
        after_path = dict(zip(slow.paths(tokens, parents, nodes), choice[row, nodes].tolist(), strict=True))
        chain = tuple(tokens[1 : num_drafted + 1].tolist())
        pool = slow.Pool(100)
        pool.insert(np.asarray(ngrams[row]))
        hung = pool.newest(chain[-1], phrases)
        assert set(after_path) == {(), *slow.beginnings([chain]), *slow.beginnings(hung, chain)}
        if count[row]:
            pool.insert(twin.recycled(after_path.__getitem__, chain, hung, accepted[row], length))
            start = int(before[row]) + 1
            pool.insert(slow.text_ngrams(np.asarray(text[row]), start, start + count[row], length + 1))
        assert after.pool.count[row] == len(pool.ngrams)
        for key in range(VOCAB):
            actual, there = look_up(after.pool, jnp.full(BATCH, key))
            assert [tuple(one) for one in actual[row][there[row]].tolist()] == pool.newest(key, 5)


def test_recycled_n_grams_are_the_text_that_a_right_draft_would_have_met() -> None:
    """A chain 1 2 3 after 0, rejected at 1 for 7: then come 7 and what follows 2 and 3."""
    tree = DraftTree(
        tokens=jnp.asarray([[0, 1, 2, 3, 4, 5]]),
        parents=jnp.asarray([[-1, 0, 1, 2, 3, 4]]),
        candidate=jnp.ones((1, 6), bool),
        log_values=jnp.zeros((1, 6)),
        max_depth=5,
    )
    ngrams, valid = recycled(tree, jnp.asarray([[7, 2, 3, 8, 9, 6]]), jnp.asarray([0]), 3)
    assert ngrams[valid].tolist() == [[7, 2, 3], [2, 3, 8], [3, 8, 9], [8, 9, 6]]


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch", [1, 8])
def test_draft_that_is_the_target(batch: int, temperature: float) -> None:
    """The full chain is accepted in every round that is not cut off by the end."""
    rng = np.random.default_rng(batch)
    prompts = [rng.integers(40, size=n).tolist() for n in rng.integers(1, 30, batch)]
    full = Generator(TARGET, PARAMS, ouroboros(), PARAMS, capacity=CAPACITY, prefill_chunk=16)
    actual = full.generate(prompts, temperature=temperature, max_new_tokens=43)
    assert actual.accepted[:, :5].sum() == 0
    assert all(rounds <= 42 // 6 for rounds in actual.rounds)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_more_is_accepted_than_of_the_chain_where_the_text_repeats(temperature: float) -> None:
    """A target that counts in a circle; the draft knows all steps but one of twelve."""
    target, params = bigram_target(12)
    ahead = (jnp.arange(12) + 1) % 12
    params = {"table": params["table"] + 30 * jnp.eye(12)[ahead]}
    draft = {"table": params["table"].at[6].set(params["table"][0])}

    def tau(drafter: Drafter) -> float:
        generator = Generator(target, params, drafter, draft, capacity=128, prefill_chunk=16)
        actual: Any = generator.generate([[3]], temperature=temperature, max_new_tokens=73)
        assert actual.tokens[0] == [(4 + step) % 12 for step in range(73)]
        return actual.tau

    chain, phrases = tau(make_chain(target, 4)), tau(make_ouroboros(target, 4))
    assert phrases > chain + 1


@pytest.mark.parametrize(
    ("num_drafted", "knobs", "message"),
    [
        (0, {}, "got 0, 3 of 4 and 3"),
        (6, {"phrases": 0}, "got 6, 0 of 4 and 3"),
        (6, {"phrase_length": 0}, "got 6, 3 of 0 and 3"),
        (6, {"draft_phrases": -1}, "got 6, 3 of 4 and -1"),
        (6, {"pool_size": 0}, "at least 1 n-gram, got 0"),
    ],
)
def test_bad_sizes(num_drafted: int, knobs: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_ouroboros(TARGET, num_drafted, **knobs)
