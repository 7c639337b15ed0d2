"""Every architecture that MindCV registers too: our checkpoint loads strictly there and computes the same."""

import mindcv_check
import pytest

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("name", mindcv_check.SHARED)
def test_a_checkpoint_loads_strictly_into_mindcv_and_computes_the_same(tmp_path, name):
    _, with_ours = mindcv_check.compare(name, tmp_path)
    assert with_ours < 2e-5
