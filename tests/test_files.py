"""Files of runs: local ones, one writer, complete or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from eagle_jax import files


def fails(number: int) -> Any:
    """A function of the operating system that does not work."""

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.local("~/runs/a") == Path("/home/someone/runs/a")
    assert files.local(Path("runs/a")) == Path("runs/a")
    with pytest.raises(ValueError, match=r"^gs://bucket/a is an address, give a local or mounted path$"):
        files.local("gs://bucket/a")


def test_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        files.lock(first, "taken")
        with pytest.raises(ValueError, match="taken"):
            files.lock(second, "taken")
        first.close()
        files.lock(second, "taken")
    monkeypatch.setattr(files.fcntl, "flock", fails(errno.ENOLCK))
    with path.open("w") as file, pytest.raises(OSError, match="No locks available"):
        files.lock(file, "taken")


def test_a_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.write_whole(path, "old")
    with monkeypatch.context() as broken:
        broken.setattr(files.os, "fsync", fails(errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            files.write_whole(path, "new")
    assert path.read_text() == "old"
    files.write_whole(path, "new \u2028")
    assert path.read_text(encoding="utf-8") == "new \u2028"
    assert list(tmp_path.iterdir()) == [path]


def test_room_is_taken_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    files.allocate(path, 1 << 20)
    assert path.read_bytes() == bytes(1 << 20)
    assert path.stat().st_blocks * 512 >= 1 << 20
    monkeypatch.setattr(files.os, "posix_fallocate", fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left on device") as caught:
        files.allocate(tmp_path / "b.bin", 1 << 20)
    assert caught.value.filename == str(tmp_path / "b.bin")
    assert list(tmp_path.iterdir()) == [path]


def test_json_lines(tmp_path: Path) -> None:
    """Numbers count blank lines; Unicode's line separators are none, and a byte-order mark is no text."""
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"a": "x\u2028y"}\r\n\n[1]\n{"a"\n{"b": 2}\n'.encode() + b'{"a": "\xff"}\n{"a": 3}')
    broken: list[str] = []
    assert files.read_jsonl(path, files.with_fields("a"), broken=broken) == [{"a": "x\u2028y"}, {"a": 3}]
    assert broken == [
        f"{path}, line 3: expected a JSON object, got list",
        f"{path}, line 4: not JSON: Expecting ':' delimiter at column 5",
        f"{path}, line 5: it has no a",
        f"{path}, line 6: not UTF-8: invalid start byte at byte 7",
    ]
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: expected a JSON object, got list$"):
        files.read_jsonl(path, files.with_fields("a"))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3: not a row$"):
        files.read_jsonl(path, files.with_fields("a"), what="a row")


def test_everybody_may_read_a_new_directory(tmp_path: Path) -> None:
    """Folders in it too: a tokenizer with several chat templates writes one."""
    path = tmp_path / "model"
    with files.new_directory(path) as folder:
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


def test_a_new_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is there already and not empty"), files.new_directory(tmp_path):
        pass
    with pytest.raises(ValueError, match="gs://bucket/head is an address"), files.new_directory("gs://bucket/head"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "{path}: not JSON: Expecting value at column 1"),
        (b'{\n "a": 1,\n}', "{path}: not JSON: .* at line [23], column"),
        (b"[1]", "{path}: expected a JSON object, got list"),
        (b'{"a": "\xe9"}', "{path}: not UTF-8: invalid continuation byte at byte 7"),
        ('{"a": 1}'.encode("utf-16-le"), "{path}: not JSON"),
        ('\ufeff{"a": 1}'.encode("utf-16-be"), "{path}: it is UTF-16, save it as UTF-8"),
        (b"[" * 100_000, "{path}: nested too deeply"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "{path} is a Git LFS pointer, not the file",
        ),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, content: bytes, message: str) -> None:
    """One line that names the file once."""
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message.format(path=path)) as caught:
        files.read_json(path)
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)


def test_json(tmp_path: Path) -> None:
    """With a byte order mark or without one, and line ends of any system."""
    path = tmp_path / "a.json"
    for content in (b'{"a": 1}\n', b'\xef\xbb\xbf{\r\n"a": 1\r\n}\r\n'):
        path.write_bytes(content)
        assert files.read_json(path) == {"a": 1}
    with pytest.raises(ValueError, match=rf"^{tmp_path} has no b\.json$"):
        files.read_json(tmp_path / "b.json")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        files.read_json(tmp_path)


def test_places_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for place in ("new/folder", ".", "file"):
        assert files.check_writable(tmp_path / place) == tmp_path / place
    assert files.check_directory(tmp_path / "new") == tmp_path / "new"
    with pytest.raises(ValueError, match="file is a file, expected a directory to write in"):
        files.check_directory(tmp_path / "file")
    with pytest.raises(ValueError, match=rf"new cannot be written: {tmp_path}/file is not a directory"):
        files.check_new_directory(tmp_path / "file" / "new")
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)  # as for another user than root
    with pytest.raises(ValueError, match=rf"a/b cannot be written: no permission in {tmp_path}"):
        files.check_writable(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
