"""Draft vocabularies chosen when a head is loaded, and heads by name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from eagle_jax.checkpoint import pretrained
from eagle_jax.checkpoint.draft_vocabulary import RANKS_FILE, with_draft_vocabulary
from eagle_jax.checkpoint.heads import load_head, save_head
from eagle_jax.checkpoint.pretrained import LoadedModel, load_pretrained_head
from eagle_jax.models.config import ModelConfig
from eagle_jax.models.draft_head import HEAD_KINDS, HeadConfig, HeadParams, make_head
from eagle_jax.sharding import head_shardings, make_mesh, place, target_shardings
from eagle_jax.testing import ByteTokenizer, tiny_transformer
from eagle_jax.types import Params
from tests.checkpoint.heads import (
    CONFIG,
    DRAFT_VOCAB,
    PARAMS,
    TARGET,
    assert_tree_equal,
    edit_config,
    random_head,
    saved,
)
from tests.tolerance import assert_close

RANKS = np.random.default_rng(5).permutation(64)


def model(config: ModelConfig = CONFIG, params: Params = PARAMS, name: str = "tiny") -> LoadedModel:
    tokenizer: Any = ByteTokenizer()
    return LoadedModel(name, config, params, tokenizer)


def frozen(folder: Path, kind: str = "eagle3", size: int | None = 12, **options: Any) -> Path:
    """A saved head whose LM head is the target's rows of the most frequent tokens."""
    config, params = random_head(kind, CONFIG)
    params = params.replace(lm_head=None, target_ids=None)
    if size is not None:
        params = with_draft_vocabulary(params, CONFIG, PARAMS, RANKS, size)
    knobs = {"dtype": "float32", "frozen_lm_head": True, "token_ranks": RANKS, **options}
    save_head(folder, config, params, CONFIG, **knobs)
    return folder


def rows_of(params: HeadParams) -> set[int]:
    """Target tokens of the draft vocabulary, the rows being theirs."""
    ids = np.asarray(params.target_ids)
    assert ids.tolist() == sorted(ids.tolist())
    np.testing.assert_array_equal(params.lm_head, PARAMS["lm_head"][ids])
    return set(ids.tolist())


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_size_is_chosen_at_loading(kind: str, tmp_path: Path) -> None:
    folder = frozen(tmp_path / "head", kind)
    assert (folder / RANKS_FILE).is_file()
    assert load_head(folder, CONFIG)[1].lm_head is None
    for asked, size in ((None, 12), (1, 1), (20, 20)):
        _, params = load_pretrained_head(str(folder), model(), draft_vocab=asked)
        assert rows_of(params) == set(RANKS[:size].tolist())
    for whole in (0, 64):
        _, params = load_pretrained_head(str(folder), model(), draft_vocab=whole)
        assert params.lm_head is params.target_ids is None
    for size in (65, -1):
        with pytest.raises(
            ValueError, match=f"draft vocabulary of {size} tokens was requested, the ranking has 1 to 64"
        ):
            load_pretrained_head(str(folder), model(), draft_vocab=size)


def test_rows_give_the_logits_of_the_target(tmp_path: Path) -> None:
    config, params = load_pretrained_head(str(frozen(tmp_path / "head")), model())
    head = make_head(config, TARGET)
    states = jax.random.normal(jax.random.key(0), (1, 3, 32))
    whole = head.logits(params.replace(lm_head=None, target_ids=None), PARAMS, states)
    terms = 2 * CONFIG.width  # the norm and the LM head
    assert_close(head.logits(params, PARAMS, states), whole[:, :, params.target_ids], terms)


def test_no_recommended_size_is_the_whole_vocabulary(tmp_path: Path) -> None:
    _, params = load_pretrained_head(str(frozen(tmp_path / "head", size=None)), model())
    assert params.lm_head is params.target_ids is None


def test_tied_target(tmp_path: Path) -> None:
    config, _, params = tiny_transformer(num_layers=7, tie_embeddings=True)
    folder = frozen(tmp_path / "head")
    _, head = load_pretrained_head(str(folder), model(config, params))
    np.testing.assert_array_equal(head.lm_head, params["embed_tokens"][head.target_ids])


def test_weights_land_where_they_belong(tmp_path: Path) -> None:
    device = jax.devices()[2]
    target = model(params=jax.device_put(PARAMS, device))
    place = lambda _, value: jax.device_put(value, device)  # noqa: E731
    _, params = load_pretrained_head(str(frozen(tmp_path / "head")), target, "bfloat16", place=place)
    assert {leaf.device for leaf in jax.tree.leaves((params.weights, params.lm_head))} == {device}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params.weights)} == {"bfloat16"}


class TestOnAMesh:
    MESH = make_mesh(4, 2)

    def load(self, folder: Path, **options: Any) -> tuple[HeadConfig, HeadParams]:
        """For a target that lies on the mesh."""
        target = model(params=place(PARAMS, target_shardings(self.MESH, CONFIG)))
        return load_pretrained_head(str(folder), dataclasses.replace(target, mesh=self.MESH), **options)

    @pytest.mark.parametrize("split", [False, True])
    @pytest.mark.parametrize("make", [frozen, saved])
    def test_places(self, make: Callable[[Path], Path], split: bool, tmp_path: Path) -> None:
        """Whole on every device or split as the target is, with rows of the target and with an LM head of its own."""
        folder = make(tmp_path / "head")
        config, params = self.load(folder, split=split)
        wanted = head_shardings(self.MESH, make_head(config, TARGET), params, split=split)
        assert jax.tree.map(lambda leaf: leaf.sharding, params) == wanted
        assert params.lm_head.sharding.is_fully_replicated is not split
        assert_tree_equal((config, params), load_pretrained_head(str(folder), model()))

    def test_no_device_has_all_of_it_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder, put, places = frozen(tmp_path / "head"), jax.device_put, []

        def watched(value: Any, place: Any = None) -> Any:
            places.append(place)
            return put(value, place)

        self.load(folder)
        monkeypatch.setattr(jax, "device_put", watched)
        self.load(folder, split=True)
        assert places
        assert None not in places

    def test_another_mesh_than_the_targets(self, tmp_path: Path) -> None:
        _, params = load_pretrained_head(str(saved(tmp_path)), model(), mesh=self.MESH)
        assert {leaf.sharding.mesh for leaf in jax.tree.leaves(params)} == {self.MESH}

    def test_bad_places(self, tmp_path: Path) -> None:
        folder = str(saved(tmp_path))
        with pytest.raises(ValueError, match="either by `place` or on a mesh, got both"):
            load_pretrained_head(folder, model(), mesh=self.MESH, place=lambda _, value: value)
        with pytest.raises(ValueError, match=r"a head is split over a mesh, got split=True for head .* and no mesh"):
            load_pretrained_head(folder, model(), split=True)


def test_head_with_an_lm_head_of_its_own(tmp_path: Path) -> None:
    save_head(tmp_path / "head", *random_head("eagle3", CONFIG), CONFIG)
    _, params = load_pretrained_head(str(tmp_path / "head"), model())
    assert params.lm_head.shape == (DRAFT_VOCAB, 32)
    assert isinstance(params.lm_head, jax.Array)
    with pytest.raises(ValueError, match=r"of 9 tokens was requested, but the head in .* of its own with 24"):
        load_pretrained_head(str(tmp_path / "head"), model(), draft_vocab=9)


def test_no_ranking(tmp_path: Path) -> None:
    folder = frozen(tmp_path / "head", size=None, token_ranks=None)
    load_pretrained_head(str(folder), model())
    with pytest.raises(ValueError, match=r"has no token_ranks.npy, which a draft vocabulary of 9 tokens needs"):
        load_pretrained_head(str(folder), model(), draft_vocab=9)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (np.array([1, 2, 1]), "token 1 twice"),
        (np.array([1, 64]), "token 64, outside the vocabulary of 64"),
        (np.array([-1, 3]), "token -1, outside the vocabulary of 64"),
        (np.zeros((2, 2), int), r"got int64 of shape \(2, 2\)"),
        (np.zeros(3), "got float64 of shape"),
        (np.array([], int), "got int64 of shape"),
        (np.array([{}]), "is not readable"),
        (None, "is not readable"),
    ],
)
def test_broken_rankings(ranks: np.ndarray | None, message: str, tmp_path: Path) -> None:
    folder = frozen(tmp_path / "head")
    if ranks is None:
        (folder / RANKS_FILE).write_bytes(b"")
    else:
        np.save(folder / RANKS_FILE, ranks)
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained_head(str(folder), model(), draft_vocab=2)
    assert RANKS_FILE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shipped_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "pretrained")
    with pytest.raises(ValueError, match=r"no trained eagle3 head ships for tiny, give a directory .nothing ships"):
        load_pretrained_head("eagle3", model())
    frozen(tmp_path / "pretrained/tiny-eagle3")
    frozen(tmp_path / "pretrained/tiny-eagle", "eagle")
    for kind in ("eagle", "eagle3"):
        config, params = load_pretrained_head(kind, model())
        assert config.kind == kind
        assert params.target_ids.shape == (12,)
    with pytest.raises(ValueError, match=r"head ships for other, give a directory .there are tiny-eagle, tiny-eagle3"):
        load_pretrained_head("eagle3", model(name="other"))
    with pytest.raises(ValueError, match=r"no trained eagle head ships for \.\./pretrained/tiny,"):
        load_pretrained_head("eagle", model(name="../pretrained/tiny"))


@pytest.mark.parametrize("name", ["", "no/such/folder", "eagle4", "./eagle", "file.txt"])
def test_unknown_heads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.txt").write_text("")
    kinds = ", ".join(HEAD_KINDS)
    with pytest.raises(ValueError, match=rf"is neither a kind \({kinds}: .*\), nor an existing directory"):
        load_pretrained_head(name, model())


def test_head_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = frozen(tmp_path / "head")
    monkeypatch.setattr(pretrained.huggingface_hub, "snapshot_download", lambda name, **patterns: str(folder))
    assert load_pretrained_head("owner/head", model())[0].kind == "eagle3"
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"owner/head holds no safetensors; .* python -m experiments.convert --head="):
        load_pretrained_head("owner/head", model())


def test_recommended_size_stands_in_the_config(tmp_path: Path) -> None:
    """As null stands for draft_vocab_size, so that engines take the whole LM head of the target."""
    folder = frozen(tmp_path / "head")
    mapping = json.loads((folder / "config.json").read_text())
    assert (mapping["draft_vocab_size"], mapping["default_draft_vocab_size"]) == (None, 12)
    edit_config(folder, default_draft_vocab_size=30)
    assert load_pretrained_head(str(folder), model())[1].lm_head.shape == (30, 32)
