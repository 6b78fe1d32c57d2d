"""The layers as accelerators train them, on a CPU: what they compute is the same."""

import numpy as np
import pytest
from step_setup import MIDDLE, SmallSetup, make_batch

EVERYTHING = {".*": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("rules", [EVERYTHING, MIDDLE], ids=["everything", "some"])
def test_a_step_with_fused_layers_is_the_step_without_padding_included(rules):
    batches = [make_batch(seed=1), make_batch(seed=2, images=11)]
    apart, fused = (
        SmallSetup(rules, 2, fused=fused, optimizer="sgd", momentum=0.0, lr=0.01)
        for fused in (False, True)
    )
    sums = [setup.run(batches) for setup in (apart, fused)]
    for want, got in zip(*sums, strict=True):
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-4)
    before = apart.variables
    assert apart.state.variables.keys() == fused.state.variables.keys()
    for path, want in apart.state.variables.items():
        moved = np.abs(want - before[path]).max()
        assert moved > 0, path
        np.testing.assert_allclose(
            fused.state.variables[path], want, atol=1e-3 * moved + 1e-7, err_msg=path
        )
