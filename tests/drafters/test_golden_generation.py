"""Greedy generations of the official loop, round by round: the same drafts, acceptances and text."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.decode import Models, one_round, prefill
from eagle_jax.drafters.base import Drafter, DrafterState, Observation
from eagle_jax.drafters.eagle1 import make_eagle1
from eagle_jax.drafters.eagle2 import make_eagle2
from eagle_jax.sampling import make_sampling
from eagle_jax.tree import depths
from eagle_jax.types import DraftTree, Params
from tests import golden

CAPACITY = 128
FILES = sorted(str(path.relative_to(golden.GOLDEN)) for path in golden.GOLDEN.glob("seed*/generate/*.npz"))
TREES = [file for file in FILES if "_eos_" not in file]


@functools.cache  # one object, and so one program, for the files of all seeds
def showing_its_tree(drafter: Drafter) -> Drafter:
    """The same drafter; after a round its state is a pair, with the tree that was checked."""

    def init(batch: int, capacity: int, dtype: Any) -> tuple[DrafterState, None]:
        return drafter.init(batch, capacity, dtype), None

    def propose(params: Params, target_params: Params, state: DrafterState, *rest: jax.Array) -> Any:
        tree, inner = drafter.propose(params, target_params, state[0], *rest)
        return tree, (inner, None)

    def observe(params: Params, target_params: Params, state: DrafterState, observation: Observation) -> Any:
        return drafter.observe(params, target_params, state[0], observation), observation.tree

    return drafter._replace(init=init, propose=propose, observe=observe)


READ = jax.jit(functools.partial(prefill, chunk=16), compiler_options=golden.QUICK)
ROUND = jax.jit(one_round, compiler_options=golden.QUICK)


class Writing:
    """A generation with the settings of a file."""

    def __init__(self, file: str, **knobs: object) -> None:
        self.wanted = golden.results(file)
        folder, _, name = file.rpartition("/")
        kind, *rest = name.removesuffix(".npz").split("_")
        head, params = golden.head(f"{folder}/{kind}_head")
        _, target, target_params = golden.target(golden.seed_of(file))
        drafter = make_eagle1(head) if rest[0] == "static" else make_eagle2(head, *map(int, rest[-3:]))
        prompt = self.wanted["prompt_ids"]
        text = jnp.asarray(np.pad(prompt, ((0, 0), (0, CAPACITY - prompt.shape[1]))), jnp.int32)
        sampling = make_sampling(1, max_new_tokens=CAPACITY, **knobs)
        any_tree = showing_its_tree(make_eagle2(head, 2, 0, 1))  # reading does not depend on it: one program for all
        reader = Models(target, any_tree, target_params, params)
        state = READ(reader, text, jnp.asarray([prompt.shape[1]]), sampling)
        self.state = state.replace(accepted=jnp.zeros((1, drafter.max_depth + 1), jnp.int32))
        models = dataclasses.replace(reader, drafter=showing_its_tree(drafter))
        self.go_on = lambda state: ROUND(models, state, sampling)

    def round(self) -> tuple[DraftTree, int]:
        """The tree of the next round, and how many of its tokens were accepted."""
        before = np.asarray(self.state.accepted[0])
        state = self.go_on(self.state)
        inner, tree = state.drafter
        self.state = state.replace(drafter=(inner, None))
        (length,) = np.flatnonzero(np.asarray(state.accepted[0]) - before)
        return tree, int(length)

    def text(self) -> list[int]:
        """Prompt and answer, the newest token included."""
        return self.state.text[0, : int(self.state.cache.length[0]) + 1].tolist()


@pytest.mark.parametrize("file", TREES)
def test_rounds(file: str) -> None:
    writing = Writing(file)
    wanted = writing.wanted
    for index, length in enumerate(wanted["accept_lengths"]):
        assert writing.state.cache.length[0] == wanted["length_before"][index]
        tree, accepted = writing.round()
        assert tree.tokens[0].tolist() == wanted["draft_tokens"][index].tolist()
        assert accepted == length
        assert writing.text()[-1] == wanted["bonus_tokens"][index]
        if "parents" in wanted:
            assert tree.parents[0].tolist() == wanted["parents"][index].tolist()
            assert depths(tree.parents, tree.max_depth)[0].tolist() == wanted["depths"][index].tolist()
            np.testing.assert_allclose(tree.log_values[0, 1:], wanted["node_scores"][index], atol=1e-3, rtol=0)
        else:
            check_draft_logits(tree, wanted["top_tokens"][index], wanted["top_logits"][index])
    output = wanted["output_ids"][0].tolist()
    assert writing.text()[:-1] == output  # the official loop leaves the last bonus out
    assert wanted["plain_greedy_ids"][0, : len(output)].tolist() == output
    assert len(wanted["accept_lengths"]) > 3


def check_draft_logits(tree: DraftTree, tokens: np.ndarray, logits: np.ndarray) -> None:
    """Best ten [11, 10] after the root and the inner nodes."""
    inner = sorted(set(tree.parents[0].tolist()) - {-1})
    actual = np.asarray(tree.draft_logits[0])[inner]
    np.testing.assert_allclose(np.take_along_axis(actual, tokens, axis=1), logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("file", [file for file in FILES if "_eos_" in file])
def test_end_of_text(file: str) -> None:
    """The same rounds and text up to the end.

    The official loop returns what its last round wrote after the end, and searches for the end only among tokens that
    the target has read: where a bonus token ends the text, it goes on for one round.
    """
    stop = int(golden.results(file)["eos_token_id"])
    writing = Writing(file, stop_ids=[stop])
    lengths = []
    while not writing.state.done[0]:
        lengths.append(writing.round()[1])
    prompt, output = writing.wanted["prompt_ids"].shape[1], writing.wanted["output_ids"][0].tolist()
    end = output.index(stop, prompt)
    assert writing.text() == output[: end + 1]
    wanted = writing.wanted["accept_lengths"].tolist()
    newest = prompt + sum(length + 1 for length in wanted[:-1])  # in the official loop, before its last round
    assert lengths == (wanted[:-1] if end == newest else wanted)


def test_all_files_are_there() -> None:
    assert len(FILES) == 3 * 7 + 2
