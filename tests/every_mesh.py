"""Every drafter on every mesh, minutes of compiling: run when named, `make unit ARGS="tests/every_mesh.py"`.

`test_sharding.py` has one drafter of each kind on 4x2, and EAGLE-3 on all meshes.
"""

import numpy as np
import pytest

from tests.test_conformance import DRAFTERS
from tests.test_sharding import LAW, MESHES, PROMPTS, on_one_device, writer


@pytest.mark.parametrize("text", MESHES)
@pytest.mark.parametrize("name", DRAFTERS)
def test_same_tokens(name: str, text: str) -> None:
    """Rows at T = 0 and at T = 1: plain decoding's tokens, and the rounds of one device."""
    found, wanted = writer(name, text).generate(PROMPTS, **LAW), on_one_device(name)
    assert found.tokens == on_one_device("vanilla").tokens
    assert found.rounds == wanted.rounds
    np.testing.assert_array_equal(found.accepted, wanted.accepted)
