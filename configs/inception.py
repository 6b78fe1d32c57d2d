"""Inception-V3: a new head on a frozen trunk, then the two last blocks, as in the guide of Keras.

    python -m jaxtl.train --cfg inception.py --cfg.data.source=path/to/images

With 1,000 classes `finetune` trains 13.2 of 23.8 million parameters (batch statistics left out).
On ImageNet the weights of `keras` have a published top-1 of 77.9 %, those of `hf:` 77.5 %. The
images have 299 pixels a side, and at least 75.
"""

from jaxtl.config import Config, Model, fine_tuning


def get_config() -> Config:
    model = Model(
        name="inception_v3", image_size=299, weights=("keras", "hf:timm/inception_v3.tv_in1k")
    )
    return fine_tuning(model, from_stage="mixed_7b")
