"""ResNet-152: a new head on a frozen trunk, then the last group of blocks.

    python -m jaxtl.train --cfg resnet152.py --cfg.data.source=path/to/images

With 1,000 classes `finetune` trains 17.0 of 60.2 million parameters (batch statistics left out).
On ImageNet the weights of `keras` have a published top-1 of 76.6 %, those of `hf:` 78.3 %.
"""

from jaxtl.config import Config, Model, fine_tuning


def get_config() -> Config:
    model = Model(name="resnet152", weights=("keras", "hf:timm/resnet152.tv_in1k"))
    return fine_tuning(model, from_stage="conv5_block1")
