"""VGG-19: unfrozen block by block; the first layers learn most slowly.

    python -m jaxtl.train --cfg vgg19.py --cfg.data.source=path/to/images

With 1,000 classes the last phase trains 18.2 of 20.5 million parameters. VGG has no BatchNorm to
hold activations in their range, hence the low learning rates. Each layer's is the next layer's
divided by 2.6 (Howard and Ruder 2018, arXiv:1801.06146, section 3.2). On ImageNet the weights of
`keras` have a published top-1 of 71.3 %, those of `hf:` 72.4 %, with two more dense layers than
here.
"""

from jaxtl.config import REQUIRED, Augment, Config, Data, Model, gradual


def get_config() -> Config:
    return Config(
        model=Model(name="vgg19", weights=("keras", "hf:timm/vgg19.tv_in1k")),
        data=Data(source=REQUIRED, batch_size=32),
        augment=Augment(horizontal_flip=True),
        phases=gradual(
            ("block5_conv1", "block4_conv1"),
            epochs=12,
            lr=2e-4,
            decay=1 / 2.6,
            label_smoothing=0.1,
            patience=3,
        ),
    )
