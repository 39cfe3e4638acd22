r"""Ouroboros: a small draft model that drafts by phrases, and phrases after its draft (Zhao et al., arXiv 2402.13720).

Nothing is trained. A pool stores which phrases followed a token, and is used twice in a round:

    root -- d1 -- d2 -- d3 -- d4 -- d5 -- d6 --+-- p1 -- p2 -- p3 -- p4
            '------- the draft's own ------'   +-- q1 -- q2 -- q3 -- q4       phrases that followed d6 before
                                               '-- r1 -- r2 -- r3 -- r4

  * d1, d2, ... are the draft model's own choices, computed in fewer passes: a pass reads the newest token and phrases
    that followed it before, and accepts what agrees with the model's own choices (`verify.match`);
  * the phrases after the last of them are verified by the target together with the chain.

Phrases come from the text, prompt included, and from verification: the target's choices after the first rejected token
of the draft. They last as long as the request. Differences from the paper's code: it carries the pool over to the next
request, which the state of a drafter cannot; it fills the pool from verification and from a window of lookahead
decoding run by the draft model, not from the text; its draft may be longer than requested, and its first pass tries
phrases too. A batch drafts here until its last row has a complete chain, rows that have ended included.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.typing import DTypeLike

from eagle_jax import verify
from eagle_jax.cache import commit
from eagle_jax.drafters.base import Drafter, Observation, Size
from eagle_jax.drafters.draft_model import read_prompt, read_tokens
from eagle_jax.drafters.ngram_pool import NgramPool, check_pool, empty_pool, insert, newest, text_ngrams, with_branches
from eagle_jax.sampling import first_largest
from eagle_jax.tree import chain_tree, root_of, tree_pass
from eagle_jax.types import NO_PARENT, DraftTree, KVCache, Params, Target

SIZES = (
    Size("num_drafted", "tokens that the draft model drafts"),
    Size("phrases", "phrases after the last of them"),
    Size("phrase_length", "tokens of a phrase"),
    Size("draft_phrases", "phrases that a pass of the draft model tries", least=0),
)


@struct.dataclass
class OuroborosState:
    """The draft model's cache, and the phrases."""

    cache: KVCache
    pool: NgramPool


class Chain(NamedTuple):
    """The draft model's own tokens drafted so far."""

    cache: KVCache  # holds the rows of root and chain but for the newest token
    tokens: jax.Array  # i32[B, n]
    log_values: jax.Array  # f32[B, n], running sums of log-confidence
    known: jax.Array  # i32[B], how many of them are known
    passes: jax.Array  # i32[], of the draft model so far


def choose_drafts(draft: Target, params: Params, hidden: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The draft model's tokens i32[...] after states [..., E], with noise f32[..., V], and their log-confidence."""
    scores = draft.unembed(params, hidden) + noise
    return first_largest(scores), jax.nn.log_softmax(scores).max(-1)


def extend(draft: Target, params: Params, chain: Chain, pool: NgramPool, noise: jax.Array, phrases: int) -> Chain:
    """One draft pass over the newest token and `phrases` phrases after it: adds up to a phrase and one token.

    `noise` f32[B, P, V] as for `Drafter.propose`. A chain that is full stays as it is.
    """
    batch, room = chain.tokens.shape
    rows, end = jnp.arange(batch)[:, None], chain.known[:, None]
    root = jnp.take_along_axis(chain.tokens, end - 1, axis=1)[:, 0]
    alone = chain_tree(root, jnp.zeros((batch, 0), jnp.int32), jnp.zeros_like(root), jnp.zeros((batch, 0)))
    tree = with_branches(alone, *newest(pool, root, phrases), base=0, depth=0)
    output, depth = tree_pass(draft, params, tree, chain.cache)
    at_node = jnp.take_along_axis(noise, (end + depth)[:, :, None], axis=1)
    choice, confidence = choose_drafts(draft, params, output.hidden, at_node)
    verdict = verify.match(tree, choice)
    count = jnp.minimum(verdict.num_accepted + 1, room - chain.known)
    steps = jnp.arange(tree.max_depth + 1)[None, :]
    on_path = jnp.maximum(verdict.path, 0)  # the choices after these nodes are the next tokens of the chain
    slots = jnp.where(steps < count[:, None], end + steps, room)
    summed = jnp.cumsum(jnp.take_along_axis(confidence, on_path, axis=1), axis=1)
    log_values = jnp.take_along_axis(chain.log_values, end - 1, axis=1) + summed
    return Chain(
        cache=commit(chain.cache, output.keys, output.values, verdict.path, count),
        tokens=chain.tokens.at[rows, slots].set(jnp.take_along_axis(choice, on_path, axis=1), mode="drop"),
        log_values=chain.log_values.at[rows, slots].set(log_values, mode="drop"),
        known=chain.known + count,
        passes=chain.passes + 1,
    )


def draft_chain(
    draft: Target,
    params: Params,
    state: OuroborosState,
    text: jax.Array,
    length: jax.Array,
    noise: jax.Array,
    *,
    num_drafted: int,
    phrases: int,
) -> Chain:
    """The draft model's next `num_drafted` tokens of every row, in as few passes as its phrases allow.

    Other arguments as in `Drafter.propose`; `phrases` are tried in each pass after the first.
    """
    # The target may have accepted a phrase after the chain. The draft model has not read its tokens, nor the last token
    # of the chain. They are fed with the root; feeding a token again writes the same entry.
    unread = state.pool.phrases.shape[2] + 1
    start = jnp.maximum(length - unread, 0)
    fed = start[:, None] + jnp.arange(unread + 1)[None, :]
    first, cache = read_tokens(
        draft,
        params,
        dataclasses.replace(state.cache, length=start),
        jnp.take_along_axis(text, fed, axis=1, mode="clip"),
        length + 1 - start,
        noise[:, 0],
    )
    batch = text.shape[0]
    chain = Chain(
        cache=cache,
        tokens=jnp.zeros((batch, num_drafted), jnp.int32).at[:, 0].set(first.token),
        log_values=jnp.zeros((batch, num_drafted)).at[:, 0].set(first.log_value),
        known=jnp.ones(batch, jnp.int32),
        passes=jnp.int32(1),
    )
    return lax.while_loop(
        lambda chain: (chain.known < num_drafted).any(),
        lambda chain: extend(draft, params, chain, state.pool, noise, phrases),
        chain,
    )


def recycled(tree: DraftTree, choice: jax.Array, accepted: jax.Array, num_drafted: int) -> tuple[jax.Array, jax.Array]:
    """N-grams of the target's choices after rejected nodes, down each branch of the tree.

    Along a path the target's choices are a refined version of it. They are used from the first one that differs from
    the draft, which is the next root; the ones before are in the text already.

    Args:
      tree: root, chain of `num_drafted` tokens and branches, as `make_ouroboros` puts them together.
      choice: i32[B, N], the target's token after each node.
      accepted: i32[B], drafted tokens that were accepted.
      num_drafted: length of the chain.

    Returns:
      i32[B, I, D + 1] and bool[B, I], which are valid: for each start in the chain one n-gram, or one per branch where
      it extends past the chain. Those of the first branch come last, as the newest.
    """
    batch, nodes = choice.shape
    length = tree.max_depth - num_drafted
    leaves = np.arange(num_drafted + length, nodes, length)
    used = tree.parents[:, leaves] != NO_PARENT  # distinct phrases end in nodes of their own
    branch = [jnp.broadcast_to(leaves, used.shape)]
    for _ in range(length - 1):  # upwards, as a phrase may begin in the slots of another
        branch.append(jnp.take_along_axis(tree.parents, jnp.maximum(branch[-1], 0), axis=1))
    after_branch = choice[jnp.arange(batch)[:, None, None], jnp.stack(branch[::-1], axis=-1)]  # [B, K, D]
    after_chain = jnp.broadcast_to(choice[:, None, : num_drafted + 1], (*used.shape, num_drafted + 1))
    refined = jnp.concatenate([after_chain, after_branch], axis=-1)
    starts = np.arange(num_drafted + 1)
    ngrams = refined[:, :, starts[:, None] + np.arange(length + 1)]  # [B, K, starts, D + 1]
    beyond = (starts + length > num_drafted)[None, None, :]
    first = (np.arange(len(leaves)) == 0)[None, :, None]
    valid = jnp.where(beyond, used[:, :, None], first) & (starts[None, :] >= accepted[:, None])[:, None, :]
    ngrams, valid = ngrams[:, ::-1].swapaxes(1, 2), valid[:, ::-1].swapaxes(1, 2)
    return ngrams.reshape(batch, -1, length + 1), valid.reshape(batch, -1)


def learn(
    draft: Target, params: Params, state: OuroborosState, observation: Observation, num_drafted: int
) -> OuroborosState:
    """Prefill the draft model, or insert the n-grams of a round into the pool; the text's own phrases either way."""
    cache, pool = state.cache, state.pool
    if observation.tree is None or observation.choice is None:
        cache = read_prompt(draft, params, cache, observation)
    else:
        accepted = observation.count - 1
        ngrams, valid = recycled(observation.tree, observation.choice, accepted, num_drafted)
        pool = insert(pool, ngrams, valid & (observation.count > 0)[:, None])
    pool = insert(pool, *text_ngrams(observation, pool.phrases.shape[2] + 1))
    return OuroborosState(cache=cache, pool=pool)


def _check_sizes(num_drafted: int, phrases: int, phrase_length: int, draft_phrases: int, pool_size: int) -> None:
    if num_drafted < 1 or phrases < 1 or phrase_length < 1 or draft_phrases < 0:
        raise ValueError(
            "ouroboros needs 1 drafted token, 1 phrase of 1 token and 0 draft phrases at least, "
            f"got {num_drafted}, {phrases} of {phrase_length} and {draft_phrases}"
        )
    check_pool(pool_size)


@functools.cache
def make_ouroboros(
    draft: Target,
    num_drafted: int = 6,
    *,
    phrases: int = 3,
    phrase_length: int = 4,
    draft_phrases: int = 3,
    pool_size: int = 4096,
) -> Drafter:
    """Chain of the draft model's tokens with phrases after it; its weights are the drafter's params.

    Args:
      draft: a model with the target's vocabulary.
      num_drafted: tokens of the chain.
      phrases: branches after its last token, the newest phrases that followed that token.
      phrase_length: tokens of a phrase.
      draft_phrases: phrases that a draft pass tries; 0 drafts token by token. The authors try all of a token, up to 15.
      pool_size: n-grams stored per row; a round inserts one per token written, and up to phrases * (num_drafted + 1)
        from verification. The authors' pool is unbounded. All other defaults are theirs for Spec-Bench.

    Raises:
      ValueError: a size too small.
    """
    _check_sizes(num_drafted, phrases, phrase_length, draft_phrases, pool_size)

    def init(batch: int, capacity: int, dtype: DTypeLike) -> OuroborosState:
        cache = draft.init_cache(batch, capacity, dtype)
        return OuroborosState(cache=cache, pool=empty_pool(batch, pool_size, phrase_length))

    def propose(
        params: Params,
        target_params: Params,
        state: OuroborosState,
        text: jax.Array,
        length: jax.Array,
        noise: jax.Array,
    ) -> tuple[DraftTree, OuroborosState]:
        del target_params
        chain = draft_chain(draft, params, state, text, length, noise, num_drafted=num_drafted, phrases=draft_phrases)
        tree = chain_tree(root_of(text, length), chain.tokens, chain.known, chain.log_values)
        branches, valid = newest(state.pool, chain.tokens[:, -1], phrases)
        tree = with_branches(tree, branches, valid, base=num_drafted, depth=num_drafted)
        return tree, dataclasses.replace(state, cache=chain.cache)

    def observe(
        params: Params, target_params: Params, state: OuroborosState, observation: Observation
    ) -> OuroborosState:
        del target_params
        return learn(draft, params, state, observation, num_drafted)

    return Drafter(
        name="ouroboros",
        nodes=1 + num_drafted + phrases * phrase_length,
        max_depth=num_drafted + phrase_length,
        init=init,
        propose=propose,
        observe=observe,
        top_k=phrases,
        needs="the weights of its draft model",
        check=draft.check,
        learns_from_refused=True,
    )
