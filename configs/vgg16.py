"""VGG-16: a new head on a frozen trunk, then the last block at a learning rate of 1e-5.

    python -m jaxtl.train --cfg vgg16.py --cfg.data.source=path/to/images

With 1,000 classes `finetune` trains 7.6 of 15.2 million parameters. VGG has no BatchNorm to hold
activations in their range, hence the low learning rate. On ImageNet the weights of `keras` have a
published top-1 of 71.3 %, those of `hf:` 71.6 %, with two more dense layers than here.
"""

from jaxtl.config import Config, Model, fine_tuning


def get_config() -> Config:
    model = Model(name="vgg16", weights=("keras", "hf:timm/vgg16.tv_in1k"))
    return fine_tuning(model, from_stage="block5_conv1", lr=1e-5)
