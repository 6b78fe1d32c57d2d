"""VGG-16: a new head on a frozen trunk, then the last block at a hundredth of the rate.

    python -m jaxtl.train --cfg vgg16.py --cfg.data.source=path/to/images

`finetune` trains 7.1 of the 14.7 million parameters before the head. There is no BatchNorm to hold
activations in their range, hence the low rate. On ImageNet the weights of `keras` have a published
top-1 of 71.3 %, those of `hf:` 71.6 %, with two more dense layers than here.
"""

from ml_collections import ConfigDict, config_dict

from jaxtl.config import Phase, from_stage, head_only


def get_config() -> ConfigDict:
    """The config."""
    return ConfigDict(
        {
            "seed": 0,
            "model": {
                "name": "vgg16",
                "image_size": 224,
                "weights": ("keras", "hf:timm/vgg16.tv_in1k"),
                "dropout": 0.2,
            },
            "data": {"source": config_dict.placeholder(str), "batch_size": 32},
            "augment": {"horizontal_flip": True},
            "phases": (
                Phase(name="head", train=head_only(), epochs=10, lr=1e-3, patience=3),
                Phase(
                    name="finetune",
                    train=from_stage("block5_conv1"),
                    epochs=20,
                    lr=1e-5,
                    schedule="cosine",
                    label_smoothing=0.1,
                    patience=5,
                ),
            ),
        }
    )
