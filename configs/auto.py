"""MobileNetV2 with settings that follow from the number of your images.

python -m jaxtl.train --cfg auto.py --cfg.data.source=path/to/images
"""

from jaxtl.config import Config, Counts, Model, recipe


def get_config(counts: Counts) -> Config:
    return recipe(counts, Model(name="mobilenet_v2"), from_stage="block_14")
