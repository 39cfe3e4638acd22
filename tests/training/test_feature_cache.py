"""Features on disk: what a pass gives, of one text and one target, filled by one process at a time."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from eagle_jax.training.data import assemble_row, pack
from eagle_jax.training.feature_cache import FeatureCache
from eagle_jax.training.features import fingerprint
from tests.tolerance import assert_close, pass_terms
from tests.training import small

EXAMPLES = [small.document(0, 17, 6), small.document(1, 12, 4), small.document(2, 21, 9, 15), small.document(3, 9, 3)]
TERMS = pass_terms(small.model()[0], 64)


def cache_in(folder: Path, dtype: str = "float32") -> FeatureCache:
    config, _, params = small.model()
    return FeatureCache(folder, EXAMPLES, fingerprint(EXAMPLES, "tiny", config, params, False), dtype)


def fill(cache: FeatureCache, passes: int | None = None) -> bool:
    """Fill it, at most `passes` passes."""
    _, target, params = small.model()
    seen = []

    def stop() -> bool:
        seen.append(True)
        return passes is not None and len(seen) >= passes

    return cache.fill(target, params, length=24, batch=1, stop=stop)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_cache_gives_what_a_pass_gives(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "features")
    assert fill(cache)
    packing = pack(EXAMPLES, 64)
    batch = small.batch_of(EXAMPLES, 64)
    online = small.features_of(batch)
    row = assemble_row(packing, packing.rows[0], cache.lookup)
    real = row["segments"] > 0
    for name in ("taps", "hidden", "choice"):
        assert_close(row[name][real], getattr(online, name)[0][real], TERMS)


def test_filled_on_a_mesh(tmp_path: Path) -> None:
    """Rows of a pass over four groups of devices, the target split within each."""
    _, target, _ = small.model()
    mesh, params = small.on_a_mesh()
    cache, wanted = cache_in(tmp_path / "mesh"), cache_in(tmp_path / "one")
    assert cache.fill(target, params, length=24, batch=4, mesh=mesh)
    fill(wanted)
    for document in range(len(EXAMPLES)):
        for name, values in wanted.lookup(document).items():
            assert_close(cache.lookup(document)[name], values, TERMS)
    with pytest.raises(ValueError, match="a batch of 3 rows does not divide over the 4 devices of mesh axis data"):
        cache_in(tmp_path / "odd").fill(target, params, length=24, batch=3, mesh=mesh)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_in_half(tmp_path: Path, dtype: str) -> None:
    whole, half = cache_in(tmp_path / "whole"), cache_in(tmp_path / "half", dtype)
    fill(whole)
    fill(half)
    for document in range(len(EXAMPLES)):
        found, wanted = half.lookup(document), whole.lookup(document)
        # Numbers of one program, rounded once: by at most eps / 2 of themselves, or a step of the smallest numbers.
        stored_as = jnp.finfo(dtype)
        allowed = {"rtol": float(stored_as.eps) / 2, "atol": float(stored_as.smallest_subnormal)}
        np.testing.assert_allclose(found["taps"].astype(np.float32), wanted["taps"], **allowed)


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    assert not fill(cache_in(tmp_path / "parts"), passes=1)
    again = cache_in(tmp_path / "parts")
    assert not again.complete
    done = again.directory / "done.bin"
    before = np.fromfile(done, np.uint8)
    assert 0 < before.sum() < len(EXAMPLES)
    assert fill(again)
    whole = cache_in(tmp_path / "whole")
    fill(whole)
    for document in range(len(EXAMPLES)):
        for name, values in whole.lookup(document).items():
            assert_close(again.lookup(document)[name], values, TERMS)


def test_of_another_text_or_type(tmp_path: Path) -> None:
    fill(cache_in(tmp_path))
    before = contents(tmp_path)
    config, _, params = small.model()
    other = [small.document(9, len(example.tokens), 2) for example in EXAMPLES]
    with pytest.raises(ValueError, match="is another set of features: its identity is"):
        FeatureCache(tmp_path, other, fingerprint(other, "tiny", config, params, False), "float32")
    with pytest.raises(ValueError, match="is another set of features: its dtype is 'float32', not 'float16'"):
        cache_in(tmp_path, "float16")
    with pytest.raises(ValueError, match="cannot be stored as 'int8'"):
        cache_in(tmp_path, "int8")
    assert contents(tmp_path) == before


def test_two_runs_on_one_new_directory(tmp_path: Path) -> None:
    """The second is refused as long as the first one fills it, and then reads what is there."""
    first, second = cache_in(tmp_path), cache_in(tmp_path)
    _, target, params = small.model()
    refused = []

    def meanwhile() -> bool:
        with pytest.raises(ValueError, match="another process is filling it") as caught:
            fill(second)
        refused.append(str(caught.value))
        return False

    assert first.fill(target, params, length=24, batch=1, stop=meanwhile)
    assert refused[0] == f"{tmp_path}: another process is filling it"
    before, passes = contents(tmp_path), []
    assert second.fill(target, params, length=24, batch=1, progress=lambda *done: passes.append(done))
    assert passes == [(0, 0)]
    assert contents(tmp_path) == before
    for document in range(len(EXAMPLES)):
        np.testing.assert_array_equal(second.lookup(document)["taps"], first.lookup(document)["taps"])


def test_read_without_being_written(tmp_path: Path) -> None:
    fill(cache_in(tmp_path))
    cache = cache_in(tmp_path)
    assert cache.complete
    assert not any(values.flags.writeable for values in cache.lookup(0).values())


@pytest.mark.parametrize("name", ["taps", "hidden", "choice", "done"])
def test_half_a_copy(tmp_path: Path, name: str) -> None:
    fill(cache_in(tmp_path))
    path = tmp_path / f"{name}.bin"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    message = f"{path} has {size - 1} bytes instead of {size}: the copy is incomplete"
    with pytest.raises(ValueError, match=message):
        cache_in(tmp_path)


def test_the_room_is_known_before_the_first_pass(tmp_path: Path) -> None:
    _, target, params = small.model()
    cache = cache_in(tmp_path)
    said: list[tuple[int, int, int]] = []
    cache.fill(target, params, length=24, batch=1, progress=lambda *done: said.append((*done, cache.num_bytes)))
    passes, size = len(said) - 1, sum(path.stat().st_size for path in tmp_path.glob("*.bin"))
    assert passes > 1
    assert said == [(done, passes, size) for done in range(passes + 1)]


def test_features_that_cannot_be_stored(tmp_path: Path) -> None:
    _, target, params = small.model()
    for factor, message in (
        (1e6, "too large for float16: store bfloat16"),
        (np.nan, "the target gives a feature of nan: look at its weights and its own dtype"),
    ):
        spoilt = params | {"embed_tokens": factor * params["embed_tokens"]}
        with pytest.raises(ValueError, match=message):
            cache_in(tmp_path, "float16").fill(target, spoilt, length=24, batch=1)


def test_what_does_not_fit_is_refused_first(tmp_path: Path) -> None:
    _, target, params = small.model()
    cache = cache_in(tmp_path / "features")
    with pytest.raises(ValueError, match=r"conversation 2 has 21 tokens, features\.length is 20"):
        cache.fill(target, params, length=20, batch=1)
    with pytest.raises(ValueError, match="gs://bucket/features is an address"):
        FeatureCache("gs://bucket/features", EXAMPLES, "")
    assert list(tmp_path.iterdir()) == []
