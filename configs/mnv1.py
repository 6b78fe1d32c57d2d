"""MobileNet V1: a new head on a frozen trunk, then the blocks of 7x7 maps.

    python -m jaxtl.train --cfg mnv1.py --cfg.data.source=path/to/images

`finetune` trains 1.6 of the 3.2 million parameters before the head, and no BatchNorm statistics.
On ImageNet the weights of `keras` have a published top-1 of 70.4 %, those of `hf:` 75.4 %.
"""

from ml_collections import ConfigDict, config_dict

from jaxtl.config import Phase, from_stage, head_only


def get_config() -> ConfigDict:
    """The config."""
    return ConfigDict(
        {
            "seed": 0,
            "model": {
                "name": "mobilenet_v1",
                "image_size": 224,
                "weights": ("keras", "hf:timm/mobilenetv1_100.ra4_e3600_r224_in1k"),
                "dropout": 0.2,
            },
            "data": {"source": config_dict.placeholder(str), "batch_size": 32},
            "augment": {"horizontal_flip": True},
            "phases": (
                Phase(name="head", train=head_only(), epochs=10, lr=1e-3, patience=3),
                Phase(
                    name="finetune",
                    train=from_stage("block_12"),
                    epochs=20,
                    lr=1e-4,
                    schedule="cosine",
                    label_smoothing=0.1,
                    patience=5,
                ),
            ),
        }
    )
