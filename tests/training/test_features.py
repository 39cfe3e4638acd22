"""Features: packed documents do not see each other; the cache gives what a pass gives, and belongs to one text."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from eagle_jax.sharding import make_mesh, place, target_shardings
from eagle_jax.training.data import assemble, pack
from eagle_jax.training.features import FeatureCache, fingerprint, first_numbers
from eagle_jax.types import NO_TOKEN, Params
from tests.models.passes import whole_pass
from tests.training import small

EXAMPLES = [small.document(0, 17, 6), small.document(1, 12, 4), small.document(2, 21, 9, 15), small.document(3, 9, 3)]


def cache_in(folder: Path, dtype: str = "float32") -> FeatureCache:
    config, _, params = small.model()
    del config
    return FeatureCache(folder, EXAMPLES, fingerprint(EXAMPLES, "tiny", params, False), dtype)


def on_a_mesh() -> tuple[Mesh, Params]:
    """Four groups of two devices, and the target split over those of a group."""
    config, _, params = small.model()
    mesh = make_mesh(4, 2)
    return mesh, place(params, target_shardings(mesh, config))


def fill(cache: FeatureCache, passes: int | None = None) -> bool:
    """Fill it, at most `passes` passes."""
    _, target, params = small.model()
    seen = []

    def stop() -> bool:
        seen.append(True)
        return passes is not None and len(seen) >= passes

    return cache.fill(target, params, length=24, batch=1, stop=stop)


def test_packed_features_are_those_of_each_document_alone() -> None:
    batch = small.batch_of(EXAMPLES, 64)
    found = small.features_of(batch)
    _, target, params = small.model()
    for number, documents in enumerate(pack(EXAMPLES, 64).rows):
        start = 0
        for document in documents:
            tokens = EXAMPLES[document].tokens
            output, logits = whole_pass(target, params, jnp.asarray(tokens[None]))
            place = slice(start, start + len(tokens))
            np.testing.assert_allclose(found.taps[number, place], output.taps[0], atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(found.hidden[number, place], output.hidden[0], atol=1e-5, rtol=1e-5)
            asked = EXAMPLES[document].slots + 1
            choice = np.asarray(found.choice[number, place])
            np.testing.assert_array_equal(choice[asked], np.asarray(logits[0]).argmax(-1)[asked])
            assert (np.delete(choice, asked) == NO_TOKEN).all()
            start = place.stop


def test_choices_everywhere() -> None:
    batch = small.batch_of(EXAMPLES, 64)
    some, all_of_them = small.features_of(batch), small.features_of(batch, everywhere=True)
    asked = np.asarray(some.choice) != NO_TOKEN
    np.testing.assert_array_equal(np.asarray(all_of_them.choice)[asked], np.asarray(some.choice)[asked])
    assert (np.asarray(all_of_them.choice) >= 0).all()


def test_cache_gives_what_a_pass_gives(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "features")
    assert fill(cache)
    packing = pack(EXAMPLES, 64)
    batch = small.batch_of(EXAMPLES, 64)
    online = small.features_of(batch)
    row = assemble(packing, packing.rows[0], cache.lookup)
    real = row["segments"] > 0
    for name in ("taps", "hidden", "choice"):
        np.testing.assert_allclose(row[name][real], getattr(online, name)[0][real], atol=1e-5, rtol=1e-5)


def test_filled_on_a_mesh(tmp_path: Path) -> None:
    """Rows of a pass over four groups of devices, the target split within each."""
    _, target, _ = small.model()
    mesh, params = on_a_mesh()
    cache, wanted = cache_in(tmp_path / "mesh"), cache_in(tmp_path / "one")
    assert cache.fill(target, params, length=24, batch=4, mesh=mesh)
    fill(wanted)
    for document in range(len(EXAMPLES)):
        for name, values in wanted.lookup(document).items():
            np.testing.assert_allclose(cache.lookup(document)[name], values, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="a batch of 3 rows does not divide over the 4 devices of mesh axis data"):
        cache_in(tmp_path / "odd").fill(target, params, length=24, batch=3, mesh=mesh)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 8e-3)])
def test_stored_in_half(tmp_path: Path, dtype: str, tolerance: float) -> None:
    whole, half = cache_in(tmp_path / "whole"), cache_in(tmp_path / "half", dtype)
    fill(whole)
    fill(half)
    for document in range(len(EXAMPLES)):
        found, wanted = half.lookup(document), whole.lookup(document)
        np.testing.assert_allclose(found["taps"].astype(np.float32), wanted["taps"], rtol=tolerance, atol=1e-6)


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
            np.testing.assert_allclose(again.lookup(document)[name], values, atol=1e-6, rtol=1e-6)


def test_of_another_text_or_type(tmp_path: Path) -> None:
    fill(cache_in(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    _, _, params = small.model()
    other = [small.document(9, len(example.tokens), 2) for example in EXAMPLES]
    with pytest.raises(ValueError, match="holds other features: identity is"):
        FeatureCache(tmp_path, other, fingerprint(other, "tiny", params, False), "float32")
    with pytest.raises(ValueError, match="holds other features: dtype is float32, not float16"):
        cache_in(tmp_path, "float16")
    with pytest.raises(ValueError, match="cannot be stored as 'int8'"):
        cache_in(tmp_path, "int8")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_fingerprint_tells_text_mask_target_and_taps_apart() -> None:
    _, _, params = small.model()
    _, _, others = small.model(1)
    masked = [EXAMPLES[0]._replace(supervised=~EXAMPLES[0].supervised), *EXAMPLES[1:]]
    names = {
        fingerprint(EXAMPLES, "tiny", params, False),
        fingerprint(EXAMPLES, "tiny", params, True),
        fingerprint(EXAMPLES, "other", params, False),
        fingerprint(EXAMPLES, "tiny", others, False),
        fingerprint(EXAMPLES[1:], "tiny", params, False),
        fingerprint(masked, "tiny", params, False),
        fingerprint(EXAMPLES, "tiny", params, False, tap_layers=(1, 2)),
    }
    assert len(names) == 7


def test_fingerprint_of_a_target_on_a_mesh() -> None:
    """Where the weights lie does not change it."""
    _, _, params = small.model()
    assert fingerprint(EXAMPLES, "tiny", on_a_mesh()[1], False) == fingerprint(EXAMPLES, "tiny", params, False)


@pytest.mark.parametrize("shape", [(), (3,), (100,), (5, 7), (70, 2), (2, 100), (3, 4, 2), (2, 9, 8), (4, 1, 200)])
def testfirst_numbers(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(first_numbers(jnp.asarray(array), 64), array.ravel()[:64])


def test_too_large_for_the_type(tmp_path: Path) -> None:
    _, target, params = small.model()
    large = jax.tree.map(lambda x: x, params) | {"embed_tokens": 1e6 * params["embed_tokens"]}
    cache = cache_in(tmp_path, "float16")
    with pytest.raises(ValueError, match="too large for float16: store bfloat16"):
        cache.fill(target, large, length=24, batch=1)
    with pytest.raises(ValueError, match="document 2 has 21 tokens"):
        cache_in(tmp_path / "short").fill(target, params, length=20, batch=1)
