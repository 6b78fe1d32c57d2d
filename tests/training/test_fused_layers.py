"""The layers as accelerators train them, on a CPU: what they compute is the same."""

import numpy as np
import pytest
from step_setup import MIDDLE, SmallSetup, make_batch, stacked

from jaxtl.training.parallel import shard

EVERYTHING = {".*": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("rules", [EVERYTHING, MIDDLE], ids=["everything", "some"])
def test_a_step_with_fused_layers_is_the_step_without_padding_included(rules, recomputed):
    batches = [make_batch(seed=1), make_batch(seed=2, images=11)]
    apart, fused = (
        SmallSetup(rules, 2, optimizer="sgd", momentum=0.0, lr=0.01, batch_norm="train", **options)
        for options in ({}, {"fused": True, "recomputed": recomputed})
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


@pytest.mark.slow
def test_maps_that_are_recomputed_are_not_kept_and_nothing_is_added_up_twice():
    """Counted in the program before XLA, which may undo the first on a CPU."""
    chunk = stacked([make_batch()])
    sums, products = set(), []
    for recomputed in (False, True):
        setup = SmallSetup(EVERYTHING, 1, fused=True, recomputed=recomputed, batch_norm="train")
        given = setup.state, setup.fixed, None, setup.hyper, shard(chunk, setup.devices, axis=1)
        text = setup.step.lower(*given).as_text()
        sums.add(text.count("all_reduce"))
        products.append(text.count("stablehlo.dot_general") + text.count("stablehlo.convolution"))
    assert len(sums) == 1, sums
    # Each of four blocks has two products of maps; what else is counted again belongs to channels.
    assert products[1] >= products[0] + 2 * 4, products
