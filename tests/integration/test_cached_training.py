"""Training from cached activations is training from images: the same numbers, less work."""

import functools
import re

import numpy as np
import pytest
from small_network import BLOCK_14, FEATURES

# Four epochs of 45 images in batches of 16, which see every one of three views and one again.
VIEWS = {
    "data.seed": "7",  # draws the views, which must not depend on `seed`
    "views": "3",
    "augment.zoom": "0.2",
    "augment.brightness": "0.2",
    "phases.head.epochs": "4",
    "phases.finetune.epochs": "4",
    "phases.finetune.train": "{'(head|top|block_1[4-6])/.*': 1.0}",
    "phases.finetune.batch_norm": "frozen",
    "phases.finetune.batch_norm_momentum": "None",
}
KINDS = {
    "memory": {},
    "disk": {"cache.memory_gb": "0"},
    "nowhere": {"cache.disk_gb": "0"},
}


@pytest.fixture(scope="module")
def runs(begin):
    """The same training from each kind of cache: a function that trains once."""
    return functools.cache(lambda kind: begin(VIEWS | KINDS[kind]))


@pytest.mark.slow
def test_each_kind_of_run_says_what_it_does(runs):
    words = {
        "memory": "the frozen stages run once: {} numbers .* in memory",
        "disk": "the frozen stages run once: {} numbers for each, .* on disk",
        "nowhere": "not cached: {} numbers .* more than cache.disk_gb=0",
    }
    for kind, text in words.items():
        for phase, shape in (("head", str(FEATURES)), ("finetune", " x ".join(map(str, BLOCK_14)))):
            line = f"^{phase}: 3 views an image; {text.format(shape)}"
            assert re.search(line, runs(kind).said, re.MULTILINE), kind
    assert runs("nowhere").caches == []
    sizes = sorted(size for *_, size in runs("disk").caches)
    assert sum(sizes) == 4 * (3 * 45 + 18) * (FEATURES + np.prod(BLOCK_14))


@pytest.mark.parametrize("kind", ["memory", pytest.param("disk", marks=pytest.mark.slow)])
def test_training_from_a_cache_gives_the_losses_of_training_from_images(runs, kind):
    assert len(runs(kind).losses) == 16
    expected = runs("nowhere").losses
    np.testing.assert_allclose(runs(kind).losses[:12], expected[:12], rtol=1e-5)
    # Whole blocks train by now, and differences of rounding grow with every step.
    np.testing.assert_allclose(runs(kind).losses[12:], expected[12:], rtol=2e-4)
    assert len({round(loss, 4) for loss in runs(kind).losses}) > 12  # it does train


@pytest.mark.slow
def test_activations_in_bfloat16_stay_close_and_take_half_the_room(runs, begin):
    half = begin(VIEWS | {"cache.dtype": "bfloat16"})
    np.testing.assert_allclose(half.losses, runs("nowhere").losses, rtol=0.02)
    assert half.losses != runs("memory").losses
    sizes = (sum(size for *_, size in run.caches) for run in (half, runs("memory")))
    assert 2 * next(sizes) == next(sizes)


@pytest.mark.slow
def test_another_run_finds_the_cache_and_writes_nothing(runs, begin):
    """It has another seed, and so another head and another order, other rates and batches."""
    before = runs("memory").caches
    other = {"seed": "3", "phases.head.lr": "0.01", "data.batch_size": "8", "model.dropout": "0.4"}
    again = begin(VIEWS | other, home=runs("memory").home)
    assert "the frozen stages run once" in again.said
    assert again.losses != runs("memory").losses
    assert again.caches == before


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_epoch_of_a_phase(runs):
    for kind in KINDS:
        epochs = [
            (match[1], int(match[2]), count)
            for line, count in runs(kind).lines
            if (match := re.match(r"(head|finetune) (\d)/4 ", line))
        ]
        assert len(epochs) == 8, kind
        for phase in ("head", "finetune"):
            counts = [count for name, _, count in epochs if name == phase]
            assert counts == counts[:1] * 4, (kind, phase)
        assert epochs[4][2] > epochs[3][2] > 0  # the listener does hear


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_done_without(runs, begin, tmp_path):
    (tmp_path / "jaxtl").write_text("a file in place of the folder")
    run = begin(VIEWS, home=tmp_path, phases=1)
    assert "not cached after all: " in run.said
    assert len(run.losses) == 8
    np.testing.assert_allclose(run.losses, runs("nowhere").losses[:8], rtol=1e-5)
