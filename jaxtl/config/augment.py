"""Random changes to the training images."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from jaxtl.config.checked import Checked, Fraction, NotNegative, Positive


class Augment(Checked):
    """Random changes to each training image, made on the device; see `Config.views`.

    Attributes:
        shear: the largest shear angle, in degrees (Keras `shear_range`).
        zoom: each axis is scaled by its own factor from [1 - zoom, 1 + zoom] (Keras `zoom_range`).
        rotation: the largest angle of a rotation about the centre, in degrees (Keras
            `rotation_range`).
        translation: the largest shift along each axis, as a fraction of the side (Keras
            `height_shift_range` and `width_shift_range`).
        horizontal_flip, vertical_flip: mirror half of the images.
        crop_scale: random resized crop: the smallest and the largest fraction of the area that is
            kept; the aspect ratio is drawn from [3/4, 4/3] (Szegedy et al. 2015, arXiv:1409.4842).
        brightness, contrast, saturation: each is scaled by a factor from [1 - v, 1 + v].
        hue: the largest turn of the colour circle, as a fraction of it, at most 0.5.
        policy: operations drawn for each image from a published list, after those above that move
            pixels and before those that change colours: `trivial` one of any strength
            (TrivialAugment, Müller and Hutter 2021, arXiv:2103.10158), `rand` two of strength 9 of
            30 (RandAugment, Cubuk et al. 2020, arXiv:1909.13719).
        blur: the smallest and the largest standard deviation of a Gaussian blur, in pixels (as in
            SimCLR, Chen et al. 2020, arXiv:2002.05709, appendix A).
        erasing: the probability that a rectangle of 2 % to 33 % of the area becomes noise (random
            erasing, Zhong et al. 2017, arXiv:1708.04896).
    """

    shear: NotNegative = 0.0
    zoom: Fraction = 0.0
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    translation: Fraction = 0.0
    horizontal_flip: bool = False
    vertical_flip: bool = False
    crop_scale: tuple[Positive, Annotated[float, Field(gt=0, le=1)]] | None = None
    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    policy: Literal["trivial", "rand"] | None = None
    blur: tuple[Positive, Positive] | None = None
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.0

    @pydantic.field_validator("crop_scale", "blur")
    @classmethod
    def _ascending(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and scale[0] > scale[1]:
            raise ValueError("the smaller one comes first")
        return scale
