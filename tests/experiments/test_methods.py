"""The methods that draft with a trained head, from the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagle_jax.checkpoint import pretrained
from eagle_jax.checkpoint.distilled import save_draft
from eagle_jax.checkpoint.draft_vocabulary import Ranking, with_draft_vocabulary
from eagle_jax.checkpoint.head_config import flat_engine
from eagle_jax.checkpoint.heads import save_head
from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.checkpoint.save_target import save_target
from experiments import generate
from experiments.cli import launch
from tests.checkpoint.heads import random_block_head, random_head

ASK = ("--prompt=Hello hello", "--max_new_tokens=16")


@pytest.fixture(scope="module")
def heads(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `eagle`, `eagle3` and `one_pass`, whose LM heads are the target's rows of tokens 0 to 39."""
    folder = tmp_path_factory.mktemp("heads")
    model = load_target(str(tiny_model))
    made = {kind: random_head(kind, model.config) for kind in ("eagle", "eagle3")}
    for kind, (config, params) in {**made, "one_pass": random_block_head(model.config)}.items():
        params = with_draft_vocabulary(params, model.config, model.params, range(257), 40)
        ranks = {"frozen_lm_head": True, "token_ranks": range(257)}
        save_head(folder / kind, config, params, model.config, engine=flat_engine(config), **ranks)
    return folder


def run(*arguments: str) -> int:
    return launch.call(generate.main, generate.FLAGS, [*ASK, *arguments])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(*arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def record(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "out.json"
    assert run(*arguments, f"--json_output={path}") == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("method", "kind", "flags", "tree"),
    [
        ("eagle", "eagle", [], (26, 4, 4)),
        ("eagle2", "eagle", ["--nodes=9", "--depth=2", "--top_k=3"], (9, 2, 3)),
        ("eagle3", "eagle3", ["--nodes=9", "--depth=1", "--top_k=3", "--draft_vocab=20"], (9, 1, 3)),
        ("eagle3", "eagle3", ["--nodes=12", "--depth=1", "--draft_vocab=0"], (12, 1, 10)),
        ("one_pass", "one_pass", [], (16, 3, 8)),  # the default tree, as deep as the head's block
        ("one_pass", "one_pass", ["--nodes=9", "--depth=2", "--noedges", "--noise_level=0"], (9, 2, 8)),
    ],
    ids=["eagle", "eagle2", "eagle3", "whole vocabulary", "one pass", "one pass, no edges"],
)
def test_heads_write_what_plain_decoding_writes(
    method: str, kind: str, flags: list[str], tree: tuple[int, ...], heads: Path, tiny_model: Path, tmp_path: Path
) -> None:
    found = record(
        tmp_path,
        f"--target={tiny_model}",
        f"--method={method}",
        f"--head={heads / kind}",
        *flags,
        "--compare",
        "--temperature=0.8",
    )
    assert found["identical_prompts"] == 1
    assert found["tree"] == dict(zip(("nodes", "depth", "top_k"), tree, strict=True))
    assert (found["rule"], found["share_noise"]) == ("match", True)


def test_shipped_head_is_taken_where_none_is_named(
    heads: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, f"--target={tiny_model}", "--method=eagle3")
    assert f"no trained eagle3 head ships for {tiny_model}" in line
    # Under a name that a folder can have.
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "tiny-eagle3").symlink_to(heads / "eagle3")
    monkeypatch.chdir(tiny_model.parent)
    assert tiny_model.name == "tiny"
    found = record(tmp_path, "--target=tiny", "--method=eagle3", "--nodes=4", "--depth=1", "--top_k=2")
    assert found["tree"]["nodes"] == 4


def test_the_draft_model_that_ships(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named `distilled`, or not at all; here it is the whole target, so all of a draft is accepted."""
    flags = ["--method=chain", "--draft=distilled", "--depth=2"]
    line = refused(capsys, f"--target={tiny_model}", flags[0], flags[2])
    assert f"no distilled draft model ships for {tiny_model}" in line
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "shipped")
    model = pretrained.load_target(str(tiny_model))
    save_draft(tmp_path / "shipped" / "tiny-distilled", model.config, model.params, dtype="float32")
    monkeypatch.chdir(tiny_model.parent)
    found = record(tmp_path, "--target=tiny", *flags, "--compare", "--temperature=1", "--max_new_tokens=13")
    assert found["identical_prompts"] == 1
    assert found["tau"] == 4


def test_draft_vocabulary_of_a_draft_model(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole target as draft: all is accepted where all can be drafted, nothing where only one token can."""
    model, folder = pretrained.load_target(str(tiny_model)), tmp_path / "draft"
    answer = record(tmp_path, f"--target={tiny_model}", "--method=vanilla", "--temperature=1")["answers"][0]
    unused = next(token for token in range(257) if token not in answer["token_ids"])
    ranks = np.array([unused, *(token for token in range(257) if token != unused)])
    save_target(folder, model.config, model.params, model.tokenizer, dtype="float32", ranking=Ranking(ranks, 1))
    flags = [f"--target={tiny_model}", f"--draft={folder}", "--temperature=1", "--compare", "--max_new_tokens=13"]
    for method, size in (("chain", "--depth=2"), ("ouroboros", "--num_drafted=3")):
        one = record(tmp_path, *flags, f"--method={method}", size)
        all_of_them = record(tmp_path, *flags, f"--method={method}", size, "--draft_vocab=0")
        assert one["identical_prompts"] == all_of_them["identical_prompts"] == 1
        assert all_of_them["tau"] >= 4 > one["tau"]
    (folder / "token_ranks.npy").unlink()
    assert "has no token_ranks.npy" in refused(capsys, *flags, "--method=chain")
    line = refused(capsys, flags[0], "--method=chain", "--draft=self:1", "--draft_vocab=9")
    assert line == "error: draft self:1 has no ranking of tokens, which a draft vocabulary of 9 tokens needs"


def test_ablations_of_noise_and_rule(
    heads: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--target={tiny_model}", "--method=eagle", f"--head={heads / 'eagle'}", "--temperature=1"]
    assert record(tmp_path, *options, "--noshare_noise", "--compare")["identical_prompts"] == 1
    found = record(tmp_path, *options, "--noshare_noise", "--rule=residual")
    assert (found["rule"], found["share_noise"], found["tokens"]) == ("residual", False, 16)
    line = refused(capsys, *options, "--rule=residual")
    assert line == "error: rule 'residual' needs a draft of its own randomness: eagle with share_noise=True"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method=vanilla", "--draft_vocab=9"], "--method=vanilla takes no --draft_vocab, got 9"),
        (["--method=eagle2", "--draft=self:1"], "--method=eagle2 takes no --draft, got 'self:1'"),
        (["--method=eagle3", "--draft_vocab=-1"], "--draft_vocab must be at least 0, got -1"),
        (["--method=eagle", "--head=HEADS/eagle", "--nodes=9"], "it takes no sizes; got (9, None, None)"),
        (["--method=eagle3", "--head=HEADS/eagle3", "--nodes=900"], "nodes - 1 is 899, but depth 7 and top_k 10 find"),
        (["--method=eagle3", "--head=HEADS/eagle"], "eagle3 needs an EAGLE-3 head, got one of kind 'eagle'"),
        (["--method=eagle3", "--head=HEADS/eagle3", "--draft_vocab=300"], "300 tokens was requested"),
        (
            ["--method=eagle3", "--head=HEADS/eagle3", "--top_k=10", "--draft_vocab=4"],
            "top_k is 10, the draft vocabulary has 4 tokens",
        ),
        (["--method=eagle3", "--head=HEADS/no"], "nor an existing directory"),
        (["--method=eagle3", "--noedges"], "--method=eagle3 takes no --edges, got False"),
        (["--method=one_pass", "--noise_level=-1"], "--noise_level must be at least 0, got -1"),
        (["--method=one_pass", "--head=HEADS/one_pass", "--noise_level=3"], "noise_level is one of (0, 1, 2), got 3"),
        (["--method=one_pass", "--head=HEADS/one_pass", "--depth=4"], "depth is at most 3 for a head that drafts 4"),
        (["--method=one_pass", "--head=HEADS/eagle3"], "EAGLE-3 heads draft token by token, not blocks"),
        (["--method=eagle3", "--head=HEADS/one_pass"], "one-pass heads draft blocks, not token by token"),
        (["--rule=exact"], "value should be one of <match|residual>"),
    ],
)
def test_bad_settings(
    arguments: list[str], message: str, heads: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.replace("HEADS", str(heads)) for argument in arguments]
    assert message in refused(capsys, f"--target={tiny_model}", *given)


@pytest.mark.parametrize("method", ["eagle2", "eagle3", "chain", "prompt_lookup"])
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--nodes=0", "--nodes must be at least 1, got 0"),
        ("--depth=-1", "--depth must be at least 0, got -1"),
        ("--top_k=0", "--top_k must be at least 1, got 0"),
    ],
)
def test_sizes_too_small(method: str, flag: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused before anything is loaded."""
    assert refused(capsys, "--target=no/such/model", f"--method={method}", flag) == f"error: {message}"
