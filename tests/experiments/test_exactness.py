"""What the exactness script refuses before it loads anything."""

from pathlib import Path

import pytest

from experiments import exactness, launch


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--methods=", "--methods names none; there are vanilla, "),
        ("--laws=0.7:1.5", "top_p must be above 0 and at most 1, got 1.5"),
        ("--laws=hot", "--laws takes T or T:top_p, such as 0.7:0.9, got 'hot'"),
        ("--batch=0", "--batch must be at least 1, got 0"),
    ],
)
def test_mistakes(flag: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--target=nothing", f"--prompts_file={tmp_path / 'none.jsonl'}", flag]
    assert launch.call(exactness.main, exactness.FLAGS, flags) == launch.USER_ERROR
    assert message in capsys.readouterr().err
