"""Features of rows on a budget: read or computed they are the same bits, and the directory stays within its budget."""

import errno
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eagle_jax.training.data import PackedRow, assemble_row, make_iterator, pack
from eagle_jax.training.feature_cache import FeatureCache
from eagle_jax.training.features import fingerprint
from eagle_jax.training.row_features import RowFeatures
from tests.training import small

EXAMPLES = [small.document(seed, 9 + 3 * (seed % 5), 4) for seed in range(10)]
PACKING = pack(EXAMPLES, 32)
ROWS = PACKING.rows
EVERYTHING = 1e9


def identity() -> str:
    config, _, params = small.model()
    return fingerprint(EXAMPLES, "tiny", config, params, False)


def features_in(folder: Path, budget: float = EVERYTHING, dtype: str = "float16", **changes: Any) -> RowFeatures:
    _, target, params = small.model()
    wanted = {"rows": ROWS, "length": 32, "identity": identity(), **changes}
    return RowFeatures(folder, target=target, params=params, budget=budget, dtype=dtype, **wanted)


def read(features: RowFeatures, rows: list[list[int]] = ROWS) -> list[PackedRow]:
    """Every row once."""
    with features:
        return [assemble_row(PACKING, row, of_row=features) for row in rows]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.bin")}


def assert_same(one: list[PackedRow], other: list[PackedRow]) -> None:
    for found, wanted in zip(one, other, strict=True):
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_read_or_computed_they_are_the_same(tmp_path: Path, dtype: str) -> None:
    features = features_in(tmp_path, dtype=dtype)
    first, again = read(features), read(features)
    assert_same(again, first)
    assert names(tmp_path) == {f"{row[0]}.bin" for row in ROWS}
    assert sum(path.stat().st_size for path in tmp_path.glob("*.bin")) == len(ROWS) * features.row_bytes
    assert_same(read(features_in(tmp_path / "none", 0, dtype)), first)
    assert names(tmp_path / "none") == set()


def test_what_a_pass_gives(tmp_path: Path) -> None:
    batch = small.batch_of(EXAMPLES, 32)
    online = small.features_of(batch)
    for number, row in enumerate(read(features_in(tmp_path, dtype="float32"))):
        real = row["segments"] > 0
        for name in ("taps", "hidden", "choice"):
            wanted = np.asarray(getattr(online, name)[number])
            np.testing.assert_allclose(row[name][real], wanted[real], atol=1e-5, rtol=1e-5)


def test_a_budget_that_changes(tmp_path: Path) -> None:
    """The first rows are stored, those above a smaller budget dropped, those below a larger one made anew."""
    wanted = read(features_in(tmp_path / "all"))
    size = features_in(tmp_path / "all").row_bytes
    for count in (3, 5, 2, 0, len(ROWS)):
        features = features_in(tmp_path / "some", (count + 0.5) * size)
        assert features.num_stored == count
        assert_same(read(features), wanted)
        assert names(tmp_path / "some") == {f"{row[0]}.bin" for row in ROWS[:count]}


def test_an_iterator_goes_on_with_another_budget(tmp_path: Path) -> None:
    size = features_in(tmp_path).row_bytes
    data = make_iterator(PACKING, 2, seed=1, of_row=features_in(tmp_path, 0))
    for _ in range(3):
        next(data)
    state = data.get_state()
    again = make_iterator(PACKING, 2, seed=1, of_row=features_in(tmp_path, 2 * size))
    again.set_state(state)
    assert_same([next(again) for _ in range(4)], [next(data) for _ in range(4)])


def test_one_process_writes_and_others_read(tmp_path: Path) -> None:
    other = features_in(tmp_path, 0)
    with features_in(tmp_path) as one:
        row = assemble_row(PACKING, ROWS[0], of_row=one)
        assert_same(read(other), [row, *(assemble_row(PACKING, some, of_row=other) for some in ROWS[1:])])
    assert names(tmp_path) == {f"{ROWS[0][0]}.bin"}  # neither dropped nor written


def test_two_that_begin_at_once(tmp_path: Path) -> None:
    """A directory that another process fills with other features, or with nobody knows which yet, is refused."""
    other = features_in(tmp_path, identity="x")
    with features_in(tmp_path):
        with pytest.raises(ValueError, match="is another set of features: its identity is "), other:
            pass
        (tmp_path / "about.json").unlink()
        with pytest.raises(ValueError, match="another process is filling it"), other:
            pass


def test_what_a_crash_leaves(tmp_path: Path) -> None:
    wanted = read(features_in(tmp_path))
    path = tmp_path / f"{ROWS[1][0]}.bin"
    path.rename(path.with_name(path.name + ".new"))  # killed before it was in place
    assert_same(read(features_in(tmp_path)), wanted)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{path.name} has {size - 1} bytes instead of {size}: the copy is incomplete"):
        read(features_in(tmp_path))


def test_directories_of_other_features(tmp_path: Path) -> None:
    read(features_in(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for changes, message in (
        ({"identity": "x"}, "is another set of features: its identity is "),
        ({"dtype": "float32"}, "is another set of features: its dtype is 'float16', not 'float32'"),
        ({"rows": ROWS[1:]}, "is another set of features: its rows is "),
    ):
        with pytest.raises(ValueError, match=message):
            features_in(tmp_path, **changes)
    with pytest.raises(ValueError, match="holds features by row: add --features_budget, or give another directory"):
        FeatureCache(tmp_path, EXAMPLES, identity())
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    _, target, params = small.model()
    FeatureCache(tmp_path / "old", EXAMPLES, identity()).fill(target, params, length=32, batch=2)
    with pytest.raises(ValueError, match="holds features of conversations: leave --features_budget out"):
        features_in(tmp_path / "old")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 9, 0))
    with pytest.raises(OSError, match=r"GB of features do not fit: '") as caught:
        read(features_in(tmp_path))
    assert caught.value.errno == errno.ENOSPC
    read(features_in(tmp_path, 0))


def test_misuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a budget must be at least 0 bytes, got -1"):
        features_in(tmp_path, -1)
    with pytest.raises(ValueError, match="cannot be stored as 'int8'"):
        features_in(tmp_path, dtype="int8")
