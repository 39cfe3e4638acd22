r"""Ouroboros: a small draft model that drafts by phrases, and phrases behind its draft (Zhao et al., arXiv 2402.13720).

Nothing is trained. A pool remembers which phrases followed a token, and serves twice in a round:

    root -- d1 -- d2 -- d3 -- d4 -- d5 -- d6 --+-- p1 -- p2 -- p3 -- p4
            '------- the draft's own ------'   +-- q1 -- q2 -- q3 -- q4       phrases that followed d6 before
                                               '-- r1 -- r2 -- r3 -- r4

  * d1, d2, ... are what the draft model chooses token by token, found in fewer passes: a pass reads the newest token
    and phrases that followed it before, and keeps what agrees with the model's own choices (`verify.match`);
  * the phrases behind the last of them are checked by the target together with the chain.

Phrases come from the text, prompt included, and from the check: behind the first rejected token, what the target makes
of the rest of the draft. They last as long as the request; the paper keeps them for the next one, which is beyond the
state of a drafter. There the pool is fed by the check and by a window of lookahead decoding that the draft model runs,
not by the text; a draft may be longer than asked for, and its first pass tries phrases too. A batch drafts here until
its last row has a whole chain, rows that have ended included.
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
from eagle_jax.tree import ancestors, chain_tree, root_of
from eagle_jax.types import NO_PARENT, DraftTree, KVCache, Params, Target

SIZES = (
    Size("num_drafted", "tokens that the draft model drafts"),
    Size("phrases", "phrases after the last of them"),
    Size("phrase_length", "tokens of a phrase"),
    Size("draft_phrases", "phrases that a pass of the draft model tries", least=0),
)


@struct.dataclass
class OuroborosState:
    """What the draft model has read, and what followed what."""

    cache: KVCache
    pool: NgramPool


class Chain(NamedTuple):
    """The draft model's own tokens, as far as they are known."""

    cache: KVCache  # holds the rows of root and chain but for the newest token
    tokens: jax.Array  # i32[B, n]
    log_values: jax.Array  # f32[B, n], running sums of log-confidence
    known: jax.Array  # i32[B], how many of them are known
    passes: jax.Array  # i32[], of the draft model so far


def choose_drafts(draft: Target, params: Params, hidden: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The draft model's tokens i32[...] behind states [..., E], with noise f32[..., V], and their log-confidence."""
    scores = draft.unembed(params, hidden) + noise
    return first_largest(scores), jax.nn.log_softmax(scores).max(-1)


def extend(draft: Target, params: Params, chain: Chain, pool: NgramPool, noise: jax.Array, phrases: int) -> Chain:
    """One draft pass over the newest token and `phrases` phrases behind it: up to a phrase and one token more.

    `noise` f32[B, P, V] as for `Drafter.propose`. A chain that is full stays as it is.
    """
    batch, room = chain.tokens.shape
    rows, end = jnp.arange(batch)[:, None], chain.known[:, None]
    root = jnp.take_along_axis(chain.tokens, end - 1, axis=1)[:, 0]
    alone = chain_tree(root, jnp.zeros((batch, 0), jnp.int32), jnp.zeros_like(root), jnp.zeros((batch, 0)))
    tree = with_branches(alone, *newest(pool, root, phrases), base=0, depth=0)
    seen = ancestors(tree.parents, tree.max_depth)
    depth = seen.sum(-1, dtype=jnp.int32) - 1
    output = draft.forward(params, tree.tokens, chain.cache.length[:, None] + depth, chain.cache, seen)
    at_node = jnp.take_along_axis(noise, (end + depth)[:, :, None], axis=1)
    choice, confidence = choose_drafts(draft, params, output.hidden, at_node)
    verdict = verify.match(tree, choice)
    count = jnp.minimum(verdict.num_accepted + 1, room - chain.known)
    steps = jnp.arange(tree.max_depth + 1)[None, :]
    on_path = jnp.maximum(verdict.path, 0)  # the choices behind these nodes are the next tokens of the chain
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

    The rest as `Drafter.propose` has it; `phrases` are tried in each pass behind the first.
    """
    # The target may have accepted a phrase behind the chain: tokens that the draft model has not read, and neither the
    # last one of the chain. They are read with the root; what is read once more stays the same.
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
    """N-grams of what the target put in place of the draft's rejected end, down each branch of the tree.

    The choices behind the nodes of a path are what the target makes of that path. They count from the first one on that
    differs from the draft, which is the next root; up to there they are the text.

    Args:
      tree: root, chain of `num_drafted` tokens and branches, as `make_ouroboros` puts them together.
      choice: i32[B, N], the target's token behind each node.
      accepted: i32[B], drafted tokens that were accepted.
      num_drafted: length of the chain.

    Returns:
      i32[B, I, D + 1] and bool[B, I]: for each start in the chain one n-gram, or one a branch where it reaches beyond
      the chain. Those of the first branch come last, as the newest.
    """
    batch, nodes = choice.shape
    length = tree.max_depth - num_drafted
    leaves = np.arange(num_drafted + length, nodes, length)
    found = tree.parents[:, leaves] != NO_PARENT  # distinct phrases end in nodes of their own
    branch = [jnp.broadcast_to(leaves, found.shape)]
    for _ in range(length - 1):  # upwards, as a phrase may begin in the slots of another
        branch.append(jnp.take_along_axis(tree.parents, jnp.maximum(branch[-1], 0), axis=1))
    behind_branch = choice[jnp.arange(batch)[:, None, None], jnp.stack(branch[::-1], axis=-1)]  # [B, K, D]
    behind_chain = jnp.broadcast_to(choice[:, None, : num_drafted + 1], (*found.shape, num_drafted + 1))
    refined = jnp.concatenate([behind_chain, behind_branch], axis=-1)
    starts = np.arange(num_drafted + 1)
    ngrams = refined[:, :, starts[:, None] + np.arange(length + 1)]  # [B, K, starts, D + 1]
    beyond = (starts + length > num_drafted)[None, None, :]
    first = (np.arange(len(leaves)) == 0)[None, :, None]
    valid = jnp.where(beyond, found[:, :, None], first) & (starts[None, :] >= accepted[:, None])[:, None, :]
    ngrams, valid = ngrams[:, ::-1].swapaxes(1, 2), valid[:, ::-1].swapaxes(1, 2)
    return ngrams.reshape(batch, -1, length + 1), valid.reshape(batch, -1)


def learn(
    draft: Target, params: Params, state: OuroborosState, observation: Observation, num_drafted: int
) -> OuroborosState:
    """Read the prompt, or put what a round found into the pool; the text's own phrases either way."""
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
    """Chain of the draft model's tokens with phrases behind it; its weights are the drafter's params.

    Args:
      draft: a model with the target's vocabulary.
      num_drafted: tokens of the chain.
      phrases: branches behind its last token, the newest phrases that followed that token.
      phrase_length: their tokens.
      draft_phrases: phrases that a draft pass tries; 0 drafts token by token. The authors try all of a token, up to 15.
      pool_size: n-grams that a row remembers; a round brings as many as it writes tokens, and up to
        phrases * (num_drafted + 1) from the check. The authors' pool has no bound. All other defaults are those that
        they run Spec-Bench with.

    Raises:
      ValueError: sizes that no tree or pool has.
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
        found = newest(state.pool, chain.tokens[:, -1], phrases)
        tree = with_branches(tree, *found, base=num_drafted, depth=num_drafted)
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
