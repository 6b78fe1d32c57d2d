"""Whole configs that suit many networks."""

from typing import Literal

from jaxtl.config.augment import Augment
from jaxtl.config.config_file import REQUIRED, Config, Data, Model
from jaxtl.config.counts import Counts
from jaxtl.config.phases import Phase, everything, head_only
from jaxtl.config.phases import from_stage as from_stage_on

Size = Literal["small", "medium", "large"]

_HEAD_STEPS = 200
_LEAST_EPOCHS, _MOST_EPOCHS = 15, 250  # of `finetune`, whatever the steps are


def fine_tuning(model: Model, *, from_stage: str, lr: float = 1e-4) -> Config:
    """Trains a new head on a frozen trunk, then the last stages too.

    The phase `head` trains the head alone, for at most 10 epochs at a learning rate of 1e-3. The
    phase `finetune` trains the last stages with it, for at most 20 epochs with a cosine schedule
    and label smoothing. Each phase stops early when validation gets no better. Images are mirrored
    at random. The images come from `--cfg.data.source=...`; flags change everything else as well.

    Args:
        model: the network, and where its weights come from.
        from_stage: the first stage that `finetune` trains; each stage before the head has 0.9 times
            the learning rate of the one after it.
        lr: the learning rate of the head in `finetune`.
    """
    return Config(
        model=model,
        data=Data(source=REQUIRED, batch_size=32),
        augment=Augment(horizontal_flip=True),
        phases=(
            Phase(name="head", train=head_only(), epochs=10, lr=1e-3, patience=3),
            Phase(
                name="finetune",
                train=from_stage_on(from_stage),
                epochs=20,
                lr=lr,
                schedule="cosine",
                label_smoothing=0.1,
                patience=5,
            ),
        ),
    )


def size_of(counts: Counts) -> Size:
    """The size of a data set by its images a class: `small` below 20, `large` from 200 on."""
    if counts.images_a_class < 20:
        return "small"
    return "medium" if counts.images_a_class < 200 else "large"


def recipe(counts: Counts, model: Model, *, from_stage: str, size: Size | None = None) -> Config:
    """Settings that follow from the number of images a class (docs/fine-tuning.md).

    The number of steps is what counts with few images, not that of epochs (BiT-HyperRule,
    Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3). The phase `head` trains the head alone
    for 200 steps, but at least one epoch. The phase `finetune` trains the last stages too, or all,
    at a learning rate that rises first, since the first steps would ruin the trunk at its highest,
    and falls to zero. The run ends with its last parameters: a validation on few images would
    choose by chance.

    Args:
        counts: the counts of the training images.
        model: the network, and where its weights come from.
        from_stage: the first stage that `finetune` trains in the sizes `small` and `medium`; in the
            size `large` all train, at a learning rate of 3e-4, not 1e-3, with trained BatchNorm.
        size: `small` (500 steps), `medium` or `large` (1,500 steps), but at least 15 and at most
            250 epochs; None for that of `size_of`.
    """
    size = size or size_of(counts)
    epochs = round((500 if size == "small" else 1500) / counts.steps_per_epoch)
    return Config(
        model=model,
        data=Data(source=REQUIRED, batch_size=counts.batch_size),
        augment=Augment(rotation=10.0, translation=0.05, zoom=0.1),
        phases=(
            Phase(
                name="head",
                train=head_only(),
                epochs=max(1, round(_HEAD_STEPS / counts.steps_per_epoch)),
                lr=1e-3,
                restore_best=False,
            ),
            Phase(
                name="finetune",
                train=everything() if size == "large" else from_stage_on(from_stage, decay=1.0),
                epochs=min(max(_LEAST_EPOCHS, epochs), _MOST_EPOCHS),
                lr=3e-4 if size == "large" else 1e-3,
                schedule="one_cycle",
                weight_decay=1e-2,
                label_smoothing=0.1,
                batch_norm="train" if size == "large" else "frozen",
                restore_best=False,
            ),
        ),
    )
