"""What a head reads of its target: all taps, some of them, the last hidden state; from a pass or from the disk."""

from pathlib import Path

import numpy as np
import pytest

from eagle_jax.models.draft_head import features_of
from eagle_jax.models.taps import layers_of, parts_of
from eagle_jax.testing import tiny_transformer
from eagle_jax.training import initialise
from eagle_jax.training.data import assemble_row, pack
from eagle_jax.training.feature_cache import FeatureCache
from eagle_jax.training.features import fingerprint
from tests.tolerance import assert_close, pass_terms
from tests.training import small

CONFIG = tiny_transformer(num_layers=7)[0]  # taps the inputs of layers 2, 3 and 4
PARTS = {
    (): (),
    (2, 3, 4): (),
    (3,): (1,),
    (7,): (3,),
    (-1,): (3,),
    (-1, 2): (3, 0),
    (2, 3, 4, 7): (0, 1, 2, 3),
    (-6, -5, -4): (),
}


@pytest.mark.parametrize("layers", PARTS)
def test_parts_by_layer(layers: tuple[int, ...]) -> None:
    head = initialise.head_config(CONFIG, "eagle3", taps=layers)
    assert head.parts == PARTS[layers]
    assert parts_of(CONFIG, layers_of(head, CONFIG)) == head.parts
    assert head.feature_width == CONFIG.width * len(layers or CONFIG.taps)
    taps = np.arange(5 * 3 * CONFIG.width).reshape(5, -1)
    hidden = -1 - np.arange(5 * CONFIG.width).reshape(5, -1)
    given = {7: hidden, **dict(zip((2, 3, 4), np.split(taps, 3, axis=1), strict=True))}
    wanted = [given[layer % 8] for layer in layers or (2, 3, 4)]
    np.testing.assert_array_equal(features_of(head, hidden, taps), np.concatenate(wanted, axis=1))


def test_the_disk_gives_a_head_its_part(tmp_path: Path) -> None:
    """One cache serves all heads: a head's features are a slice of it, which is what a pass gives."""
    examples = [small.document(0, 17, 6), small.document(1, 12, 4)]
    config, target, params = small.model()
    cache = FeatureCache(tmp_path, examples, fingerprint(examples, "tiny", config, params, False), "float32")
    assert cache.fill(target, params, length=24, batch=1)
    packing = pack(examples, 32)
    row = assemble_row(packing, packing.rows[0], cache.lookup)
    online = small.features_of(small.batch_of(examples, 32))
    real = row["segments"] > 0
    for layers in ((-1,), (0,), (1, -1)):
        head = initialise.head_config(config, "eagle3", taps=layers)
        stored = features_of(head, row["hidden"], row["taps"])
        assert stored.shape == (32, head.feature_width)
        computed = features_of(head, online.hidden, online.taps)[0]
        assert_close(stored[real], computed[real], pass_terms(config, 32))


def test_what_the_target_does_not_give() -> None:
    with pytest.raises(ValueError, match=r"layers \[2, 5\], the target gives \[2, 3, 4\] and 7, its last hidden state"):
        initialise.head_config(CONFIG, "eagle3", taps=(2, 5))
    with pytest.raises(ValueError, match=r"an eagle head reads the last hidden state, got taps \[3\]"):
        initialise.head_config(CONFIG, "eagle", taps=(3,))
