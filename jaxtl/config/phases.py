"""The phases of a run, and the rules for what a phase trains (docs/fine-tuning.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from jaxtl.config.checked import Checked, Fraction, NotNegative, Positive
from jaxtl.errors import UserError

_BASE_BATCH = 256  # images, as in Goyal et al. 2017


class Stages(Checked):
    """Trains a stage and all after it, the nearer to the images the more slowly.

    Layer-wise decay of the learning rate, as in ELECTRA (Clark et al. 2020, arXiv:2003.10555, its
    configure_finetuning.py); the discriminative fine-tuning of Howard and Ruder (2018,
    arXiv:1801.06146, section 3.2).

    Attributes:
        from_stage: the first stage that trains; None for the first of all.
        decay: the multiplier of the learning rate is 1 in the last stage, and falls by this factor
            from each stage with parameters to the one before it.
    """

    place = "train"
    from_stage: str | None
    decay: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="before")
    @classmethod
    def _no_patterns(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and any("/" in str(key) for key in value):
            whole = "{'from_stage': 'NAME', 'decay': 0.9}"
            raise ValueError(f"patterns and from_stage exclude each other; give {whole} as a whole")
        return value


def _kind(rules: Any) -> str:
    """Chooses the union branch so that only its errors are reported."""
    named = isinstance(rules, Mapping) and "from_stage" in rules
    return "stages" if named or isinstance(rules, Stages) else "patterns"


Patterns = Annotated[dict[str, Positive], Field(min_length=1)]
Rules = Annotated[
    Annotated[Patterns, Tag("patterns")] | Annotated[Stages, Tag("stages")], Discriminator(_kind)
]


class Phase(Checked):
    """One stretch of training: what trains, for how long, and how.

    Attributes:
        name: what logs and flags call it.
        train: what `head_only`, `from_stage` or `everything` returns; or regular expressions over
            whole parameter paths, each with the multiplier of the learning rate for what it
            matches; the first match wins, and what nothing matches is frozen.
        epochs: passes over the training images, at most.
        lr: the learning rate, before scaling, multipliers and schedule. `auto` tests a hundred when
            the phase begins, and takes the one at which the loss falls fastest.
        lr_scaling: what `lr` is multiplied by, for batches of another size than 256: `linear` by
            `data.batch_size` / 256, `sqrt` by the square root of that (docs/large-batches.md).
        optimizer: `adam` (with `weight_decay` it is AdamW), `sgd` (with Nesterov momentum of
            `momentum`), `rmsprop` or `lion`; for large batches `lars` or `lamb`, which scale the
            step of each kernel to its norm.
        momentum: that of `sgd` and `lars`.
        weight_decay: decay of the trained kernels (never of biases or BatchNorms), decoupled from
            the gradients but in `lars`.
        clip_norm: the largest global norm of the trained gradients.
        sam_rho: sharpness-aware minimisation: follow the gradient at the point this far up the
            slope, in the Euclidean norm of all trained parameters, such as 0.05 (SAM, Foret et al.
            2020, arXiv:2010.01412). A step takes two gradients. None follows the gradient itself.
        accumulate: the pieces that a device splits its part of a batch into, which it computes one
            after the other in less memory. The step is the same, but where BatchNorms train: there
            each piece is normalised by itself.
        ema: train to an exponential moving average of the parameters and of the statistics that
            train, which keeps this fraction of itself in each step: validation, checkpoints and the
            end of the phase have the average. None takes them as they are.
        schedule: `constant`; `cosine` or `linear` down to zero over the phase; `one_cycle` up over
            the first 30 % and down to zero; or `step`, a tenth after each of `step_epochs`.
        step_epochs: the epochs of the phase after which `step` lowers the learning rate.
        warmup_epochs: the learning rate rises linearly over this many epochs.
        label_smoothing: the fraction of each label that is spread over all classes; of several
            labels, over having it and not having it.
        mixup, cutmix: mix each image with another one of its batch, and their labels with the same
            weights: `mixup` adds them up (Zhang et al. 2018, arXiv:1710.09412), `cutmix` pastes a
            rectangle (Yun et al. 2019, arXiv:1905.04899). The weights are drawn from Beta(a, a)
            with this number as a; 0 switches it off, and with both each image draws one. The
            frozen stages run in every step then.
        class_weights: what the loss of each image is multiplied by, for classes of different sizes:
            a number for each class by name, or `auto` for N / (C n), with n of the N training
            images in one of the C classes (scikit-learn's `balanced`). The loss of a batch is
            divided by the sum of the weights of its images. Of several labels the weight is that
            of the images which have the label (PyTorch's `pos_weight`), `auto` is (N - n) / n, and
            the loss is divided by the number of images.
        focal: the exponent of the focal loss, which multiplies the loss of an image whose class has
            the probability p by (1 - p) to this power (Lin et al. 2017, arXiv:1708.02002); 0
            switches it off.
        batch_norm: what the BatchNorms of trained stages do: `frozen` (scale and shift learn, the
            statistics stay) or `train` (normalise by the batch, across devices, and move the
            statistics).
        batch_norm_momentum: how much of the running statistics a step keeps; None suits it to the
            number of steps in the phase.
        monitor: what makes a validation result better than another one, for `patience` and the
            best epoch; of equals the one with the lower loss is better. `balanced_accuracy` is the
            mean recall of the classes, `macro_f1` their mean F1, `auroc` the mean area under their
            ROC curves, each class against all others; `mAP` is the mean average precision of images
            with several labels (docs/labels-and-metrics.md). None is `accuracy`, or `mAP` of
            several labels.
        patience: stop after this many epochs without a better validation result than the phase had
            before; None never stops.
        restore_best: end the phase with its best parameters rather than with its last.
        average_best: end the phase with the average of its best epochs, at most so many, and of
            these without each that makes the validation result worse: a greedy soup (Wortsman et
            al. 2022, arXiv:2203.05482). None takes the best one.
    """

    place = "phases.{name}"
    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    train: Rules
    epochs: Annotated[int, Field(ge=1)]
    lr: Positive | Literal["auto"] = 1e-3
    lr_scaling: Literal["linear", "sqrt"] | None = None
    optimizer: Literal["adam", "sgd", "rmsprop", "lion", "lars", "lamb"] = "adam"
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 0.0
    clip_norm: Positive | None = None
    sam_rho: Positive | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    schedule: Literal["constant", "cosine", "linear", "one_cycle", "step"] = "constant"
    step_epochs: tuple[Positive, ...] = ()
    warmup_epochs: NotNegative = 0.0
    label_smoothing: Fraction = 0.0
    class_weights: Literal["auto"] | dict[str, Positive] | None = None
    focal: NotNegative = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    batch_norm: Literal["frozen", "train"] = "frozen"
    batch_norm_momentum: Fraction | None = None
    monitor: Literal["accuracy", "balanced_accuracy", "macro_f1", "auroc", "mAP", "loss"] | None = (
        None
    )
    patience: Annotated[int, Field(ge=1)] | None = None
    restore_best: bool = True
    average_best: Annotated[int, Field(ge=2)] | None = None

    def model_post_init(self, context: Any) -> None:
        """Refuses settings that would have no effect."""
        default_momentum = Phase.model_fields["momentum"].default
        if self.optimizer not in ("sgd", "lars") and self.momentum != default_momentum:
            raise ValueError(
                f"momentum is that of sgd and lars, and the optimizer is {self.optimizer}"
            )
        if self.lr == "auto" and self.lr_scaling is not None:
            raise ValueError("lr='auto' is found for this batch size; leave lr_scaling out")
        if self.batch_norm == "frozen" and self.batch_norm_momentum is not None:
            raise ValueError("batch_norm_momentum needs batch_norm='train'")
        if self.average_best is not None and not self.restore_best:
            raise ValueError("average_best needs restore_best")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs:g} leaves nothing of the {self.epochs} epochs"
            )
        if self.schedule == "one_cycle" and self.warmup_epochs:
            raise ValueError("schedule='one_cycle' rises by itself; leave warmup_epochs out")
        if (self.schedule == "step") != bool(self.step_epochs):
            raise ValueError(
                "schedule='step' needs step_epochs, such as (30, 60), and nothing else does"
            )
        ascending = [self.warmup_epochs, *self.step_epochs, self.epochs]
        if self.step_epochs and sorted(set(ascending)) != ascending:
            raise ValueError(
                f"step_epochs {self.step_epochs} do not ascend between the warm-up and the end of "
                f"the {self.epochs} epochs"
            )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return bool(self.mixup or self.cutmix)

    def for_batches_of(self, images: int) -> Phase:
        """The same phase, with the learning rate that it has for batches of so many images.

        In proportion to the batch (Goyal et al. 2017, arXiv:1706.02677, section 2.1), or to its
        square root (Krizhevsky 2014, arXiv:1404.5997, section 5); both relative to 256 images.
        """
        if self.lr_scaling is None:
            return self
        ratio = images / _BASE_BATCH
        factors = {"linear": ratio, "sqrt": math.sqrt(ratio)}
        return self.model_copy(update={"lr": self.base_lr * factors[self.lr_scaling]})

    @property
    def base_lr(self) -> float:
        """The learning rate; 1 where it is found when the phase begins."""
        return 1.0 if self.lr == "auto" else self.lr


def head_only() -> dict[str, float]:
    """Trains the head; all before it is frozen."""
    return {"head/.*": 1.0}


def from_stage(name: str, decay: float = 0.9) -> Stages:
    """Trains a stage and all after it, each stage at a lower learning rate than the next.

    Args:
        name: the stage, such as `block_14`; the table at the start of a run lists them.
        decay: see `Stages`, above 0 and at most 1, where all train at the same learning rate. The
            default is that of the largest ELECTRA.
    """
    return Stages(from_stage=name, decay=decay)


def everything(decay: float = 1.0) -> Stages:
    """Trains all stages, at one learning rate or at rates that decay as in `from_stage`."""
    return Stages(from_stage=None, decay=decay)


def gradual(
    stages: Sequence[str], *, epochs: int, lr: float, decay: float = 0.9, **settings: Any
) -> tuple[Phase, ...]:
    """Phases that unfreeze a network step by step, from the head towards the images.

    Gradual unfreezing (Howard and Ruder 2018, arXiv:1801.06146, section 3.3): first a phase `head`
    for the head alone, then for each stage a phase `from_STAGE`.

    Args:
        stages: where each phase after the first begins to train, the last stage of the network
            first; a stage that is not there is refused when a run begins.
        epochs: the epochs of each phase.
        lr: the learning rate of each phase, before multipliers and schedule.
        decay: as in `from_stage`.
        settings: any other field of `Phase`, for all of them but those of BatchNorms,
            which the first does not get, since a head has none.

    Raises:
        UserError: there are no stages, or they are not names that differ.
    """
    if isinstance(stages, str) or not stages or len({"head", *stages}) != len(stages) + 1:
        raise UserError(
            f"gradual({stages!r}): give different stages after the head, the last one first, such "
            "as ('top', 'block_14')"
        )
    head_settings = {
        key: value for key, value in settings.items() if not key.startswith("batch_norm")
    }
    rules = {f"from_{stage}": from_stage(stage, decay) for stage in stages}
    return (
        Phase(name="head", train=head_only(), epochs=epochs, lr=lr, **head_settings),
        *(Phase(name=n, train=rule, epochs=epochs, lr=lr, **settings) for n, rule in rules.items()),
    )
