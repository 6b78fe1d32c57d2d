"""MobileNet V1: a new head on a frozen trunk, then the blocks of 7x7 maps.

    python -m jaxtl.train --cfg mnv1.py --cfg.data.source=path/to/images

With 1,000 classes `finetune` trains 2.6 of 4.2 million parameters (batch statistics left out).
On ImageNet the weights of `keras` have a published top-1 of 70.4 %, those of `hf:` 75.4 %.
"""

from jaxtl.config import Config, Model, fine_tuning


def get_config() -> Config:
    model = Model(
        name="mobilenet_v1", weights=("keras", "hf:timm/mobilenetv1_100.ra4_e3600_r224_in1k")
    )
    return fine_tuning(model, from_stage="block_12")
