"""The script that puts questions after long texts: prompts of the requested length, tau as in decoding, its columns."""

import json
from pathlib import Path

import pytest

from eagle_jax.checkpoint.pretrained import load_target
from eagle_jax.evaluation.runner import prompt_ids
from eagle_jax.evaluation.tasks import from_prompt
from eagle_jax.generator import Generator
from eagle_jax.models.transformer import make_target
from eagle_jax.provenance import git_commit
from experiments.bench import contexts
from experiments.cli import launch, methods
from experiments.cli.method_settings import MethodSettings
from tests.experiments.test_methods import heads  # noqa: F401

QUESTIONS = ["abc abc?", "why why?"]
DOCUMENTS = ["one two one two", "three four three", "five six five six", "seven eight seven"]
SHORT = ["--draft_method=eagle3:4/1/2", "--num_prompts=2", "--max_new_tokens=6"]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Flags that name the questions and the documents."""
    for name, texts in (("prompts_file", QUESTIONS), ("documents", DOCUMENTS)):
        (tmp_path / name).write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return [f"--{name}={tmp_path / name}" for name in ("prompts_file", "documents")]


def call(model: Path, files: list[str], *more: str) -> int:
    return launch.call(contexts.main, contexts.FLAGS, [f"--target={model}", *files, *SHORT, *more])


def test_prompts(tiny_model: Path) -> None:
    """Bytes are tokens here: the question stays, the text in front of it is cut."""
    model = load_target(str(tiny_model))
    short, long = (contexts.long_prompts(model, QUESTIONS, DOCUMENTS, length) for length in (16, 36))
    assert [len(prompt) for prompt in (*short, *long)] == [16, 16, 36, 36]
    for question, small, large in zip(QUESTIONS, short, long, strict=True):
        alone = prompt_ids(model, from_prompt(question))
        assert small[-len(alone) :] == alone
        assert large[-len(small) :] == small
    with pytest.raises(ValueError, match="a prompt of 99 tokens: the question alone has 9, with its documents"):
        contexts.long_prompts(model, QUESTIONS, DOCUMENTS, 99)


def test_rows(
    tiny_model: Path,
    files: list[str],
    heads: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As real decoding of the same prompts, with the window and without."""
    output = tmp_path / "rows.jsonl"
    more = ["--contexts=24,40", "--windows=0,30", f"--head={heads / 'eagle3'}", f"--output={output}"]
    assert call(tiny_model, files, *more) == 0
    assert "| context | no window | window 30 |" in capsys.readouterr().out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    for row in rows:
        assert (row["max_new_tokens"], row["device"], row["commit"]) == (6, "cpu", git_commit())
    measured = [(row["context"], row["head_window"]) for row in rows]
    assert measured == [(24, None), (40, None), (40, 30)]
    model = load_target(str(tiny_model))
    last = rows[-1]
    settings = MethodSettings(nodes=4, depth=1, top_k=2, head=str(heads / "eagle3"), head_window=30)
    generator = Generator(make_target(model.config), model.params, *methods.make_method("eagle3", model, settings))
    prompts = contexts.long_prompts(model, QUESTIONS, DOCUMENTS, last["prompt_tokens"])
    assert last["prompt_tokens"] == 40 - 6 - 3
    wanted = generator.generate(prompts, max_new_tokens=6, stop_ids=model.stop_ids)
    assert (last["tokens"], last["rounds"], last["tau"]) == (wanted.num_tokens, sum(wanted.rounds), wanted.tau)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--contexts=0"], "--contexts takes numbers of at least 1, got '0'"),
        (["--draft_method=prompt_lookup", "--windows=0,5"], "--method=prompt_lookup takes no --head_window, got 5"),
        (["--head_window=64"], "--windows says how far the head looks back, got --head_window=64"),
        (["--windows=few"], "--windows takes numbers of at least 0, got 'few'"),
        (["--contexts=999"], "--contexts: 999 is more than the 160 of"),
        (["--documents="], "give --prompts_file and --documents, got "),
        (["--output=no/such/folder/rows.jsonl"], "must name a new file in a folder that exists"),
    ],
)
def test_mistakes(
    tiny_model: Path,
    files: list[str],
    heads: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert call(tiny_model, files, f"--head={heads / 'eagle3'}", *more) == launch.USER_ERROR
    assert message in capsys.readouterr().err.splitlines()[-1]
