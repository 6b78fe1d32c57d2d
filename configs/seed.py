"""The recipe of Keras' tutorials.

    python -m jaxtl.train --cfg seed.py --cfg.data.source=path/to/images

The directory holds `train/` and `val/` with a folder for each class. MobileNetV2 without its top,
frozen, 224 px, batch 32; a new dense layer trained by Adam at 1e-3 for 100 epochs; images
sheared, zoomed and flipped; no dropout, no early stopping, and the last parameters are the
result. Three things differ from Keras: the images are normalised as the weights were trained and
resized by an antialiased bilinear filter instead of the nearest pixel, and Adam's epsilon is 1e-8,
not 1e-7. With `--cfg.views=8` the frozen stages run eight times over each image, not a hundred.
"""

from jaxtl.config import REQUIRED, Augment, Config, Data, Model, Phase, head_only


def get_config() -> Config:
    return Config(
        model=Model(name="mobilenet_v2", image_size=224, dropout=0.0),
        data=Data(source=REQUIRED, batch_size=32),
        augment=Augment(shear=0.2, zoom=0.2, horizontal_flip=True),
        views=0,
        phases=(Phase(name="head", train=head_only(), epochs=100, lr=1e-3, restore_best=False),),
    )
