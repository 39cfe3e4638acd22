"""Where the kernel cannot be had, one line says why, and everything goes on through XLA."""

import logging
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from eagle_jax.files import CACHE
from eagle_jax.kernels import build

WRITE = """
import logging, sys
logging.basicConfig(stream=sys.stderr, format="%(message)s")
from eagle_jax.drafters import make_vanilla
from eagle_jax.generator import Generator
from eagle_jax.kernels import build
from eagle_jax.testing import tiny_transformer
_, target, params = tiny_transformer()
print(Generator(target, params, make_vanilla()).generate([[1, 2, 3]], max_new_tokens=8).tokens[0], build.available())
"""

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, build.COMPILERS)), reason="no C++ compiler")


def write(tmp_path: pathlib.Path, **environment: str) -> tuple[str, str, str]:
    """The tokens, whether the kernel wrote them, and what went to standard error."""
    changed = {CACHE: str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu", build.SWITCH: "", **environment}
    done = subprocess.run(
        [sys.executable, "-c", WRITE],
        env={**os.environ, **changed},
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    tokens, _, used = done.stdout.strip().rpartition(" ")
    return tokens, used, done.stderr


@pytest.fixture(scope="module")
def through_xla(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str, bool]:
    """What `write` gives with the kernel switched off, and whether anything was built."""
    folder = tmp_path_factory.mktemp("off")
    return *write(folder, **{build.SWITCH: "0"}), (folder / "cache").exists()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, tuple[str, str, str]]:
    """A folder where the kernel has been built, and what `write` gave."""
    folder = tmp_path_factory.mktemp("built")
    return folder, write(folder)


@needs_compiler
def test_built_once(built: tuple[pathlib.Path, tuple[str, str, str]]) -> None:
    folder, (tokens, used, errors) = built
    assert (used, errors) == ("True", "")
    (library,) = (folder / "cache").iterdir()
    before = library.stat().st_mtime_ns
    assert write(folder) == (tokens, "True", "")
    assert library.stat().st_mtime_ns == before


@needs_compiler
def test_switched_off_without_a_word(through_xla: tuple[str, str, str, bool]) -> None:
    assert through_xla[1:] == ("False", "", False)


def test_without_a_compiler(tmp_path: pathlib.Path, through_xla: tuple[str, str, str, bool]) -> None:
    """A PATH with nothing on it."""
    tokens, used, errors = write(tmp_path, PATH=str(tmp_path), CXX="")
    assert used == "False"
    assert errors.count("\n") == 1
    assert "no C++ compiler: neither of c++, g++, clang++ is installed; g++ will do" in errors
    assert f"{build.SWITCH}=0" in errors
    assert tokens == through_xla[0]


def test_a_compiler_that_fails(tmp_path: pathlib.Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'x.cc:1:1: fatal error: no such header' >&2\nexit 1\n")
    broken.chmod(0o755)
    _, used, errors = write(tmp_path, CXX=str(broken))
    assert used == "False"
    assert errors.count("\n") == 1
    assert "fatal error: no such header" in errors
    assert list((tmp_path / "cache").iterdir()) == []


@needs_compiler
def test_a_cache_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "cache").write_text("a file")
    _, used, errors = write(tmp_path)
    assert used == "False"
    assert errors.count("\n") == 1


@needs_compiler
def test_a_damaged_library_is_not_used(
    tmp_path: pathlib.Path, built: tuple[pathlib.Path, tuple[str, str, str]]
) -> None:
    (library,) = (built[0] / "cache").iterdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / library.name).write_bytes(b"")
    _, used, errors = write(tmp_path)
    assert used == "False"
    assert errors.count("\n") == 1


def test_named_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="neither of no-such-compiler is installed"):
        build.find_compiler()


def test_only_on_cpus(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(build.jax, "default_backend", lambda: "tpu")
    with caplog.at_level(logging.WARNING):
        assert not build.available.__wrapped__()
    assert not caplog.records
