"""A directory that appears when it is complete, for everybody to read."""

from pathlib import Path

import pytest

from eagle_jax.checkpoint.heads import new_directory


def test_everybody_may_read(tmp_path: Path) -> None:
    """Folders in it too: a tokenizer with several chat templates writes one."""
    path = tmp_path / "model"
    with new_directory(path) as folder:
        (folder / "templates").mkdir(mode=0o700)
        for name in ("model.safetensors", "templates/tools.jinja"):
            (folder / name).touch(mode=0o600)
        assert not path.exists()
    modes = {inner.relative_to(tmp_path).as_posix(): inner.stat().st_mode & 0o777 for inner in tmp_path.rglob("*")}
    assert modes == {
        "model": 0o755,
        "model/model.safetensors": 0o644,
        "model/templates": 0o755,
        "model/templates/tools.jinja": 0o644,
    }


def test_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is there already and not empty"), new_directory(tmp_path):
        pass
    with pytest.raises(ValueError, match="gs://bucket/head is an address"), new_directory("gs://bucket/head"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
