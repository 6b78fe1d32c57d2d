"""Whole configs that suit many networks."""

from jaxtl.config.config_file import REQUIRED, Augment, Config, Data, Model
from jaxtl.config.phases import Phase, head_only
from jaxtl.config.phases import from_stage as from_stage_on


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
