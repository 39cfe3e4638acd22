"""The draft model that ships: written without the tables that are the target's, read with them."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from eagle_jax.checkpoint import pretrained
from eagle_jax.checkpoint.distilled import BORROWED, load_pretrained_draft, ranking_of, save_draft
from eagle_jax.checkpoint.draft_vocabulary import Ranking
from eagle_jax.checkpoint.pick_layers import pick_layers
from eagle_jax.checkpoint.pretrained import LoadedModel
from eagle_jax.sharding import make_mesh, place, target_shardings
from eagle_jax.testing import tiny_transformer


def model(**shape: object) -> LoadedModel:
    """A target without a tokenizer, which nothing here asks."""
    config, _, params = tiny_transformer(**shape)
    return LoadedModel("tiny", config, params, SimpleNamespace())


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where drafts ship from."""
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "pretrained")
    return tmp_path / "pretrained"


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(shelf: Path, tied: bool) -> None:
    """Every weight, in files of the size asked for; what is borrowed is the target's own array."""
    target = model(tie_embeddings=tied)
    config, params = pick_layers(target.config, target.params, (0, 2))
    layer = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers_0"]))
    save_draft(shelf / "tiny-distilled", config, params, dtype="float32", shard_bytes=layer)
    files = sorted((shelf / "tiny-distilled").glob("*.safetensors"))
    assert len(files) == 3
    assert all(file.stat().st_size < layer + 10_000 for file in files)
    found_config, found = load_pretrained_draft(target)
    assert found_config == config
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    for name in BORROWED:
        assert found.get(name) is target.params.get(name)
        assert all(name not in path for path in json.loads(files[0].with_name("config.json").read_text()))


@pytest.mark.parametrize(("size", "expected"), [(None, 12), (20, 20), (0, None), (64, None)])
def test_ranking(tmp_path: Path, size: int | None, expected: int | None) -> None:
    """The recommended number of tokens, another one, or all."""
    target, ranks = model(), np.random.default_rng(0).permutation(64)
    save_draft(tmp_path, target.config, target.params, ranking=Ranking(ranks, 12))
    found = ranking_of(tmp_path, 64, size)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.size == expected
        np.testing.assert_array_equal(found.ranks, ranks)
    assert load_pretrained_draft(target, directory=tmp_path)[0] == target.config


def test_without_a_ranking(tmp_path: Path) -> None:
    target = model()
    save_draft(tmp_path, target.config, target.params)
    assert ranking_of(tmp_path, 64) is None
    with pytest.raises(ValueError, match=r"has no token_ranks.npy, which a draft vocabulary of 9 tokens needs"):
        ranking_of(tmp_path, 64, 9)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "default_draft_vocab_size": "8k"}))
    with pytest.raises(ValueError, match="default_draft_vocab_size is '8k', expected a number of tokens"):
        ranking_of(tmp_path, 64)


def test_on_the_mesh_of_its_target(tmp_path: Path) -> None:
    """Split like that, and the same weights."""
    target, mesh = model(num_kv_heads=2), make_mesh(4, 2)
    save_draft(tmp_path / "draft", target.config, target.params, dtype="float32")
    placed = place(target.params, target_shardings(mesh, target.config))
    target = dataclasses.replace(target, params=placed, mesh=mesh)
    config, found = load_pretrained_draft(target, directory=tmp_path / "draft")
    assert jax.tree.map(lambda leaf: leaf.sharding, found) == target_shardings(mesh, config)
    jax.tree.map(np.testing.assert_array_equal, found, placed)


def test_none_ships(shelf: Path) -> None:
    """What does is listed."""
    with pytest.raises(ValueError, match=r"no distilled draft model ships for tiny, .*nothing ships"):
        load_pretrained_draft(model())
    (shelf / "other-distilled").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"ships for tiny, give a directory \(there are other-distilled\)"):
        load_pretrained_draft(model())


def test_another_target(tmp_path: Path) -> None:
    """A draft of a target with other tables, or without them."""
    target = model()
    save_draft(tmp_path / "draft", target.config, target.params)
    other = dataclasses.replace(target, config=dataclasses.replace(target.config, vocab_size=99))
    with pytest.raises(ValueError, match="draft: vocab_size is 64, that of target tiny is 99"):
        load_pretrained_draft(other, directory=tmp_path / "draft")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        save_draft(tmp_path / "draft", target.config, target.params)
