"""ResNet-50: a new head on a frozen trunk, then the last group of blocks.

    python -m jaxtl.train --cfg resnet50.py --cfg.data.source=path/to/images

With 1,000 classes `finetune` trains 17.0 of 25.6 million parameters (batch statistics left out).
On ImageNet the weights of `keras` have a published top-1 of 74.9 %, those of `hf:` 76.2 %.
"""

from jaxtl.config import Config, Model, fine_tuning


def get_config() -> Config:
    model = Model(name="resnet50", weights=("keras", "hf:timm/resnet50.tv_in1k"))
    return fine_tuning(model, from_stage="conv5_block1")
