"""The decoding loop: guess, check, commit, until every row has ended. One compiled program for all of it.

`prefill` reads the prompts chunk by chunk and chooses the first token; `decode` runs up to `max_rounds` rounds in a
`lax.while_loop` with donated state, so streaming is the same program called with few rounds at a time. Knows the
protocols of target and drafter, no method by name.

    state -> propose -> DraftTree -> target pass -> verify -> commit -> observe -> state
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.typing import DTypeLike

from eagle_jax import sampling as noises
from eagle_jax import verify
from eagle_jax.cache import append, commit, count_after, with_reach
from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.logprobs import Logprobs, no_logprobs, record
from eagle_jax.penalties import penalise, penalise_text
from eagle_jax.sharding import Split, keep_rows
from eagle_jax.tree import ancestors, tree_pass
from eagle_jax.types import NO_TOKEN, DraftTree, KVCache, Params, Sampling, Target, Verdict

Rule = Literal["match", "residual"]


@struct.dataclass
class Models:
    """Who writes and who guesses, with their weights: the part of a decoder that no round changes.

    Target and drafter are functions, so they belong to the structure of this pytree: a program is compiled for each
    pair of them, and the weights are its arguments.
    """

    target: Target = struct.field(pytree_node=False)
    drafter: Drafter = struct.field(pytree_node=False)
    target_params: Params
    drafter_params: Params = ()  # () for a method without weights


@struct.dataclass(kw_only=True)
class DecodeState:
    """Everything that a round changes. The newest token of row b is text[b, cache.length[b]]."""

    cache: KVCache  # of the target
    drafter: DrafterState
    text: jax.Array  # i32[B, S], prompt and answer
    prompt_length: jax.Array  # i32[B]
    done: jax.Array  # bool[B]
    rounds: jax.Array  # i32[B], target passes made for the row after its prompt
    accepted: jax.Array  # i32[B, most_accepted + 1], rounds in which exactly that many drafted tokens were accepted
    logprobs: Logprobs | None = None  # of the answers, where they are wanted

    @property
    def num_new(self) -> jax.Array:
        """i32[B], tokens written after the prompt, the newest one included."""
        return self.cache.length + 1 - self.prompt_length


def keep_state(state: DecodeState, split: Split | None) -> DecodeState:
    """Inside a program: pin the placement of a state, so that all programs take and return it alike on a mesh.

    Without a mesh nothing happens. `split` None leaves to the compiler whether caches are sharded by head.
    """
    if split is None:
        return keep_rows(state)
    drafter = keep_rows(state.drafter, split=split.drafter)
    return dataclasses.replace(keep_rows(dataclasses.replace(state, drafter=()), split=split.target), drafter=drafter)


def check_rule(drafter: Drafter, rule: Rule, share_noise: bool) -> None:
    """Refuse pairs of drafting and verification whose text would not follow the target's distribution (DESIGN 2).

    Raises:
      ValueError: an unknown rule, the p/q rule with shared noise, or a drafter with `own_noise` without that rule.
    """
    if rule not in ("match", "residual"):
        raise ValueError(f"verification rule must be match or residual, got {rule!r}")
    if rule == "residual" and share_noise:
        raise ValueError(f"rule 'residual' needs a draft of its own randomness: {drafter.name} with share_noise=True")
    if rule == "match" and drafter.own_noise:
        raise ValueError(f"{drafter.name} draws children with noise of its own: the rule must be residual, got 'match'")


def _ends(token: jax.Array, sampling: Sampling) -> jax.Array:
    """Whether tokens i32[B, T] are stop ids: bool[B, T]."""
    return (token[:, :, None] == sampling.stop_ids[:, None, :]).any(-1)


def empty_state(
    target: Target,
    drafter: Drafter,
    text: jax.Array,
    prompt_length: jax.Array,
    dtype: DTypeLike,
    num_logprobs: int | None = None,
) -> DecodeState:
    """Rows that have read nothing of their prompts yet; `dtype` is that of caches, the rest as for `prefill`."""
    batch, capacity = text.shape
    return DecodeState(
        cache=target.init_cache(batch, capacity, dtype),
        drafter=drafter.init(batch, capacity, dtype),
        text=text,
        prompt_length=prompt_length,
        done=jnp.zeros(batch, bool),
        rounds=jnp.zeros(batch, jnp.int32),
        accepted=jnp.zeros((batch, drafter.most_accepted + 1), jnp.int32),
        logprobs=None if num_logprobs is None else no_logprobs(batch, capacity, num_logprobs),
    )


@functools.partial(jax.jit, static_argnames=("chunk", "split", "num_logprobs", "reach"))
def prefill(
    models: Models,
    text: jax.Array,
    prompt_length: jax.Array,
    sampling: Sampling,
    *,
    chunk: int = 64,
    split: Split | None = None,
    num_logprobs: int | None = None,
    reach: int | None = None,
) -> DecodeState:
    """Read the prompts and choose the first new token of every row.

    Args:
      models: target, drafter and their weights.
      text: i32[B, S], prompts from index 0 on; S is the capacity of all caches.
      prompt_length: i32[B], at least 1 each.
      sampling: one entry a row.
      chunk: tokens read per pass; a longer prompt means more passes of the same program.
      split: which caches are sharded by head on a mesh (`keep_state`); None lets the compiler decide.
      num_logprobs: keep the log-probabilities of answers, and of this many most probable tokens beside each token.
      reach: slots that passes read, at least the longest prompt; None is all.
    """
    target, drafter = models.target, models.drafter
    batch, capacity = text.shape
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((chunk, chunk), bool)), (batch, chunk, chunk))
    path = jnp.broadcast_to(jnp.arange(chunk), (batch, chunk))
    rows = jnp.arange(batch)
    first_noise = noises.noise_at(sampling, prompt_length[:, None], target.vocab_size)

    def read(index: jax.Array, state: DecodeState) -> DecodeState:
        positions = index * chunk + path
        count = jnp.clip(prompt_length - index * chunk, 0, chunk)
        tokens = jnp.take_along_axis(state.text, positions, axis=1, mode="clip")
        output = target.forward(models.target_params, tokens, positions, state.cache, causal)
        last = output.hidden[rows, jnp.maximum(count - 1, 0)]
        cache = commit(state.cache, output.keys, output.values, path, count_after(count, last[:, 0] > -jnp.inf))
        complete = (count > 0) & (cache.length == prompt_length)

        def first_token() -> tuple[jax.Array, Logprobs | None]:
            logits = target.unembed(models.target_params, last[:, None])
            scores = _scores(logits, sampling, state, prompt_length)
            token = noises.choose_at(scores, first_noise, jnp.zeros((batch, 1), jnp.int32), sampling)
            if state.logprobs is None:
                return token[:, 0], None
            return token[:, 0], record(state.logprobs, logits, token, prompt_length, complete.astype(jnp.int32))

        token, logprobs = lax.cond(complete.any(), first_token, lambda: (jnp.zeros(batch, jnp.int32), state.logprobs))
        new_text = state.text.at[rows, jnp.where(complete, prompt_length, capacity)].set(token, mode="drop")
        seen = Observation(text=new_text, length=state.cache.length, output=output, path=path, count=count)
        return dataclasses.replace(
            state,
            cache=cache,
            text=new_text,
            logprobs=logprobs,
            drafter=drafter.observe(models.drafter_params, models.target_params, state.drafter, seen),
        )

    dtype = target.activation_dtype(models.target_params)
    empty = empty_state(target, drafter, text, prompt_length, dtype, num_logprobs)
    with jax.named_scope("prefill"):
        empty = with_reach(keep_state(empty, split), reach)
        state = with_reach(lax.fori_loop(0, (prompt_length.max() + chunk - 1) // chunk, read, empty), None)
    first = jnp.take_along_axis(state.text, prompt_length[:, None], axis=1)
    done = _ends(first, sampling)[:, 0] | (sampling.max_new_tokens <= 1)
    return keep_state(dataclasses.replace(state, done=done), split)


def _scores(
    logits: jax.Array,
    sampling: Sampling,
    state: DecodeState,
    length: jax.Array,
    tree: DraftTree | None = None,
    nodes: Sequence[int] = (),
) -> jax.Array:
    """Penalised logits f32[B, N, V] after the first `length` tokens of a text, or after nodes of the tree below it."""
    if sampling.penalties is None:
        return logits
    before = sampling.penalties, state.text, state.prompt_length, length
    if tree is None:
        return penalise_text(logits[:, 0], *before)[:, None]
    return penalise(logits, *before, tree.tokens, ancestors(tree.parents, tree.max_depth)[:, np.array(nodes)])


def _with_path(
    logprobs: Logprobs | None,
    logits: jax.Array,
    nodes: Sequence[int],
    verdict: Verdict,
    written: jax.Array,
    start: jax.Array,
    count: jax.Array,
) -> Logprobs | None:
    """`logprobs`, if any, with those of `written` i32[B, P], each from the logits f32[B, len(nodes), V] before it."""
    if logprobs is None:
        return None
    place = np.zeros(max(nodes) + 1, np.int32)
    place[np.array(nodes)] = np.arange(len(nodes))  # those of a path are all there
    before = jnp.asarray(place)[jnp.maximum(verdict.path, 0)]
    return record(logprobs, jnp.take_along_axis(logits, before[:, :, None], axis=1), written, start, count)


class Scored(NamedTuple):
    """A draft tree and what the target says about it: all that a check reads."""

    tree: DraftTree
    depth: jax.Array  # i32[B, N], of each node
    nodes: Sequence[int]  # those with logits
    logits: jax.Array  # f32[B, len(nodes), V], of the target, penalised
    noise: jax.Array  # f32[B, P, V], of the target, by depth: its choice after a node is at noise[:, depth]
    length: jax.Array  # i32[B], position of the root


Check = Callable[[Params, Scored, Sampling, Rule, bool], tuple[Verdict, jax.Array]]
"""(target_params, scored tree, sampling, rule, share_noise) -> the verdict, and the target's choice i32[B, N] after
each node as the drafter observes it. A program is compiled for each check."""


def check_by_target(
    target_params: Params, scored: Scored, sampling: Sampling, rule: Rule, share_noise: bool
) -> tuple[Verdict, jax.Array]:
    """The check of decoding: by the target's logits, under the rule.

    The target's choice depends on its noise, and a drafter may reuse it as a guess at the same positions. Without
    shared noise it observes the most probable tokens, so that no noise leaks.
    """
    del target_params
    tree, depth, nodes = scored.tree, scored.depth, np.array(scored.nodes)

    def at_nodes(tokens: jax.Array) -> jax.Array:
        return tokens if len(nodes) == depth.shape[1] else jnp.full_like(depth, NO_TOKEN).at[:, nodes].set(tokens)

    choice = at_nodes(noises.choose_at(scored.logits, scored.noise, depth[:, nodes], sampling))
    observed = choice if share_noise else at_nodes(noises.first_largest(scored.logits))
    if rule == "match":
        return verify.match(tree, choice), observed
    uniforms = noises.uniform(sampling, scored.length[:, None], tree.tokens.shape[1])[:, 0]
    at_node = jnp.take_along_axis(scored.noise, depth[:, :, None], axis=1)
    return verify.residual(tree, scored.logits, sampling, uniforms, at_node), observed


def _to_commit(
    tree: DraftTree, verdict: Verdict, state: DecodeState, sampling: Sampling
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What of the verdict goes into the text.

    Returns:
      The tokens after the root i32[B, P]; how many of them are committed i32[B], up to the stop id or the token limit,
      none in rows that are done; and whether the row ends with them bool[B].
    """
    steps = jnp.arange(tree.max_depth + 1)[None, :]
    below_root = jnp.maximum(jnp.roll(verdict.path, -1, axis=1), 0)
    on_path = jnp.take_along_axis(tree.tokens, below_root, axis=1)
    written = jnp.where(steps == verdict.num_accepted[:, None], verdict.next_token[:, None], on_path)
    stops = _ends(written, sampling) & (steps <= verdict.num_accepted[:, None])
    until_stop = jnp.where(stops.any(-1), stops.argmax(-1) + 1, tree.max_depth + 2)
    room = sampling.max_new_tokens - state.num_new
    count = jnp.minimum(jnp.minimum(verdict.num_accepted + 1, until_stop), room).astype(jnp.int32)
    return written, jnp.where(state.done, 0, count), (count == room) | (count == until_stop)


def _round_noise(
    models: Models, length: jax.Array, sampling: Sampling, rule: Rule, share_noise: bool
) -> tuple[jax.Array, jax.Array]:
    """Noise f32[B, P, V] of the target by depth below the roots at `length` i32[B], and what the drafter gets."""
    drafter, vocab_size = models.drafter, models.target.vocab_size
    positions = length[:, None] + 1 + jnp.arange(drafter.max_depth + 1)[None, :]
    noise = noises.noise_at(sampling, positions, vocab_size)
    if rule == "residual" and drafter.draws:
        if drafter.own_noise:  # keyed by the root, which is another one in every round
            positions = length[:, None] * drafter.own_noise + jnp.arange(drafter.own_noise)[None, :]
        return noise, noises.noise_at(sampling, positions, vocab_size, noises.DRAFT_STREAM)
    return noise, noise if share_noise else jnp.zeros_like(noise)


def one_round(
    models: Models,
    state: DecodeState,
    sampling: Sampling,
    *,
    rule: Rule = "match",
    share_noise: bool = True,
    check: Check = check_by_target,
) -> DecodeState:
    """Guess, check and commit once; rows that are done do not change. Arguments as for `decode`."""
    target, drafter = models.target, models.drafter
    length = state.cache.length
    with jax.named_scope("noise"):
        noise, draft_noise = _round_noise(models, length, sampling, rule, share_noise)
    with jax.named_scope("draft"):
        tree, drafter_state = drafter.propose(
            models.drafter_params,
            models.target_params,
            state.drafter,
            state.text,
            length,
            sampling.temperature[:, None, None] * draft_noise,
        )
        if not drafter.draws:  # the children were not drawn from its logits
            tree = dataclasses.replace(tree, draft_logits=None)
    with jax.named_scope("target"):
        output, depth = tree_pass(target, models.target_params, tree, state.cache)
        nodes = [node for node in range(drafter.nodes) if rule == "residual" or node not in drafter.unread]
        hidden = output.hidden if len(nodes) == drafter.nodes else output.hidden[:, np.array(nodes)]
        logits = target.unembed(models.target_params, hidden)
    with jax.named_scope("verify"):
        scores = _scores(logits, sampling, state, length, tree, nodes)
        scored = Scored(tree=tree, depth=depth, nodes=nodes, logits=scores, noise=noise, length=length)
        verdict, choice = check(models.target_params, scored, sampling, rule, share_noise)
        written, count, ended = _to_commit(tree, verdict, state, sampling)
    with jax.named_scope("commit"):
        cache = commit(state.cache, output.keys, output.values, verdict.path, count)
        text = append(state.text, written, length + 1, count)
        logprobs = _with_path(state.logprobs, logits, nodes, verdict, written, length + 1, count)
    with jax.named_scope("observe"):
        observation = Observation(
            text=text, length=length, output=output, path=verdict.path, count=count, tree=tree, choice=choice
        )
        drafter_state = drafter.observe(models.drafter_params, models.target_params, drafter_state, observation)
    counts = jnp.arange(state.accepted.shape[1])[None, :]  # more than the depths where another drafter began the answer
    return dataclasses.replace(
        state,
        cache=cache,
        drafter=drafter_state,
        text=text,
        logprobs=logprobs,
        done=state.done | ended,
        rounds=state.rounds + ~state.done,
        accepted=state.accepted + ((counts == verdict.num_accepted[:, None]) & ~state.done[:, None]),
    )


def slots_of_rounds(drafter: Drafter, rounds: int = 1) -> int:
    """Slots after its text that a row needs at most for so many rounds, all nodes of the last tree included."""
    return rounds * (drafter.max_depth + 1)


@functools.partial(
    jax.jit, static_argnames=("rule", "share_noise", "check", "split", "reach"), donate_argnames=("state",)
)
def decode(
    models: Models,
    state: DecodeState,
    sampling: Sampling,
    max_rounds: jax.Array | int,
    min_live: jax.Array | int = 1,
    *,
    rule: Rule = "match",
    share_noise: bool = True,
    check: Check = check_by_target,
    split: Split | None = None,
    reach: int | None = None,
) -> DecodeState:
    """Run rounds while at least `min_live` rows are not done, at most `max_rounds` of them (run-time numbers).

    With a `reach` they end earlier, where the next one could need more slots.

    Args:
      models: target, drafter and their weights.
      state: of `prefill` or of the call before; it is used up.
      sampling: one entry a row.
      max_rounds, min_live: when to stop.
      rule: `match`, or `residual` where the drafter allows it (`verify`).
      share_noise: the drafter drafts with the target's own noise.
      check: how a tree is checked. Only texts that are known already have another check than the target's
        (`evaluation.teacher_forced`).
      split: as for `prefill`.
      reach: slots that passes read; None is all.

    Raises:
      ValueError: a rule under which the text would not follow the target's distribution.
    """
    check_rule(models.drafter, rule, share_noise)

    def unfinished(carry: tuple[jax.Array, DecodeState]) -> jax.Array:
        rounds, state = carry
        longest = jnp.where(state.done, 0, state.cache.length).max()
        fits = reach is None or longest + slots_of_rounds(models.drafter) <= reach
        return (rounds < max_rounds) & ((~state.done).sum() >= min_live) & fits

    def advance(carry: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
        state = keep_state(carry[1], split)  # here too: else XLA may split what a loop carries
        state = one_round(models, state, sampling, rule=rule, share_noise=share_noise, check=check)
        return carry[0] + 1, keep_state(state, split)

    start = jnp.int32(0), with_reach(state, reach)
    return with_reach(lax.while_loop(unfinished, advance, start)[1], None)
