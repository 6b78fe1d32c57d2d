"""Inception-V3: a new head on a frozen trunk, then the two last blocks, as in the guide of Keras.

    python -m jaxtl.train --cfg inception.py --cfg.data.source=path/to/images

`finetune` trains 11.1 of the 21.8 million parameters before the head, and no BatchNorm statistics.
On ImageNet the weights of `keras` have a published top-1 of 77.9 %, those of `hf:` 77.5 %. The
images have 299 pixels a side, and at least 75.
"""

from ml_collections import ConfigDict, config_dict

from jaxtl.config import Phase, from_stage, head_only


def get_config() -> ConfigDict:
    """The config."""
    return ConfigDict(
        {
            "seed": 0,
            "model": {
                "name": "inception_v3",
                "image_size": 299,
                "weights": ("keras", "hf:timm/inception_v3.tv_in1k"),
                "dropout": 0.2,
            },
            "data": {"source": config_dict.placeholder(str), "batch_size": 32},
            "augment": {"horizontal_flip": True},
            "phases": (
                Phase(name="head", train=head_only(), epochs=10, lr=1e-3, patience=3),
                Phase(
                    name="finetune",
                    train=from_stage("mixed_7b"),
                    epochs=20,
                    lr=1e-4,
                    schedule="cosine",
                    label_smoothing=0.1,
                    patience=5,
                ),
            ),
        }
    )
