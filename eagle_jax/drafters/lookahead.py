r"""Lookahead decoding: Jacobi iteration on a window of guesses yields n-grams to draft (Fu et al., arXiv 2402.02057).

No draft model. After the newest token comes a window of W columns and L - 1 rows. A target pass computes the token
after each column; the rows move up by one, and these tokens become the last row. A column with its new token is an
n-gram of L tokens for the pool, and n-grams that start with the newest token are guessed. Window and guesses are one
tree, in which nodes of the window are computed but may not be accepted. With L = 4 and W = 3, (r, c) being row r and
column c:

     guesses    (0,0) ------ (0,1) ------ (0,2)     (0,0) is the root; row 0 is a chain, and each of its nodes starts a
        |      /  |            |            |       column. Node r * W + c is (r, c). The target's tokens after the
        +-----+ (1,0)        (1,1)        (1,2)     last row are new; then (r + 1, c) becomes (r, c), and the new root
                  |            |            |       takes the place of (0,0).
                (2,0)        (2,1)        (2,2)

New tokens are the target's own choices, its noise included where that is shared. Differences from the published code:
it fills the window greedily and leaves end tokens out; it fills the first window row by row, while here it starts with
tokens of the prompt, and n-grams enter the pool once all tokens of their phrase are the target's. Columns are not
dropped when guesses are accepted, which is that code's default too.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from eagle_jax.drafters.base import Drafter, Observation, Size
from eagle_jax.drafters.ngram_pool import NgramPool, check_pool, empty_pool, insert, newest, text_ngrams, with_branches
from eagle_jax.tree import root_of
from eagle_jax.types import DraftTree, Params

SIZES = (
    Size("level", "tokens of an n-gram"),
    Size("window", "columns of the window"),
    Size("guesses", "n-grams tried in a round"),
    Size("pool_from_prompt", "n-grams of the prompt join the pool", least=0),
)


@struct.dataclass
class LookaheadState:
    """The window and the memory of each row."""

    window: jax.Array  # i32[B, L - 1, W]; the root takes the place of entry (0, 0)
    chosen_rows: jax.Array  # i32[B], how many of its last rows the target has chosen
    pool: NgramPool


def empty_state(batch: int, level: int, window: int, pool_size: int) -> LookaheadState:
    """The state before the prompt."""
    return LookaheadState(
        window=jnp.zeros((batch, level - 1, window), jnp.int32),
        chosen_rows=jnp.zeros(batch, jnp.int32),
        pool=empty_pool(batch, pool_size, level - 1),
    )


def tree_of(state: LookaheadState, root: jax.Array, guesses: int) -> DraftTree:
    """Window and guesses below `root` i32[B]."""
    batch, rows, width = state.window.shape
    nodes = np.arange(rows * width, dtype=np.int32)
    above = np.where(nodes < width, nodes - 1, nodes - width)  # NO_PARENT for the root
    window = DraftTree(
        tokens=state.window.at[:, 0, 0].set(root).reshape(batch, -1),
        parents=jnp.broadcast_to(above, (batch, rows * width)),
        candidate=jnp.broadcast_to(nodes == 0, (batch, rows * width)),
        log_values=jnp.zeros((batch, rows * width)),
        max_depth=rows + width - 2,
    )
    return with_branches(window, *newest(state.pool, root, guesses), base=0, depth=0)


def drawn(observation: Observation, fractions: np.ndarray) -> jax.Array:
    """A first window i32[B, L - 1, W]: the tokens at these `fractions` f32[L - 1, W] of the prompt read so far."""
    read = (observation.length + observation.count)[:, None]
    places = jnp.minimum((fractions.reshape(1, -1) * read).astype(jnp.int32), read - 1)
    tokens = jnp.take_along_axis(observation.text, jnp.maximum(places, 0), axis=1)
    return tokens.reshape(-1, *fractions.shape)


def advance(state: LookaheadState, root: jax.Array, choice: jax.Array, live: jax.Array) -> LookaheadState:
    """Move the rows of the window up after a round, in the rows of the batch that are `live` bool[B].

    Args:
      state: the window that was computed.
      root: i32[B], the token before the window.
      choice: i32[B, N], the target's token after each node.
      live: all other rows stay unchanged.
    """
    batch, rows, width = state.window.shape
    new = choice[:, None, (rows - 1) * width : rows * width]  # after the last row
    columns = jnp.concatenate([state.window.at[:, 0, 0].set(root), new], axis=1)  # [B, L, W]
    valid = live & (state.chosen_rows >= rows - 1)  # row 0 gives the keys, the others must be the target's
    return LookaheadState(
        window=jnp.where(live[:, None, None], columns[:, 1:], state.window),
        chosen_rows=jnp.minimum(state.chosen_rows + live, rows),
        pool=insert(state.pool, columns.swapaxes(1, 2), jnp.broadcast_to(valid[:, None], (batch, width))),
    )


def _check_sizes(level: int, window: int, guesses: int, pool_size: int) -> None:
    if level < 3 or window < 1 or guesses < 1:
        raise ValueError(
            f"lookahead needs level 3 and a window and guesses of 1 at least, got {level}, {window} and {guesses}"
        )
    check_pool(pool_size)


@functools.cache
def make_lookahead(
    level: int = 5,
    window: int = 7,
    guesses: int = 7,
    *,
    pool_from_prompt: bool = False,
    pool_size: int = 4096,
) -> Drafter:
    """Window and guesses in one tree of (level - 1) * (window + guesses) nodes; default sizes from Spec-Bench.

    Args:
      level: L, tokens of an n-gram; a guess brings up to L - 1.
      window: W, columns of the window.
      guesses: G, n-grams tried in a round, the newest ones that start with the root.
      pool_from_prompt: the n-grams of the prompt, and of the answer as it is written, join the pool too: an option of
        the published code, off in Spec-Bench.
      pool_size: n-grams stored per row; a round inserts W, and with `pool_from_prompt` one per token written.

    Raises:
      ValueError: a size too small.
    """
    _check_sizes(level, window, guesses, pool_size)
    fractions = np.random.default_rng(0).random((level - 1, window)).astype(np.float32)

    def propose(
        params: Params,
        target_params: Params,
        state: LookaheadState,
        text: jax.Array,
        length: jax.Array,
        noise: jax.Array,
    ) -> tuple[DraftTree, LookaheadState]:
        del params, target_params, noise
        return tree_of(state, root_of(text, length), guesses), state

    def observe(
        params: Params, target_params: Params, state: LookaheadState, observation: Observation
    ) -> LookaheadState:
        del params, target_params
        live = observation.count > 0
        if observation.tree is None or observation.choice is None:
            first = jnp.where(live[:, None, None], drawn(observation, fractions), state.window)
            state = dataclasses.replace(state, window=first)
        else:
            state = advance(state, observation.tree.tokens[:, 0], observation.choice, live)
        if pool_from_prompt:
            state = dataclasses.replace(state, pool=insert(state.pool, *text_ngrams(observation, level)))
        return state

    return Drafter(
        name="lookahead",
        nodes=(level - 1) * (window + guesses),
        max_depth=max(level + window - 3, level - 1),  # end of the window's last column, end of a guess
        init=lambda batch, capacity, dtype: empty_state(batch, level, window, pool_size),
        propose=propose,
        observe=observe,
        top_k=guesses,
        deepest=level - 1,
        learns_from_refused=True,
        unread=tuple(range(1, (level - 2) * window)),  # the window but for the root and its last row
    )
