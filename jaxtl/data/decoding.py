"""Decoding: from an encoded image to RGB pixels of a fixed size.

Importing this silences Pillow's warnings of large images, and its log of TIFF files it refuses.
"""

from __future__ import annotations

import contextlib
import io
import logging
import textwrap
import warnings
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxtl.errors import UserError

Resize = Literal["stretch", "crop"]

# The formats that Pillow may try. Left out are readers that run other programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

MOST_PIXELS = 2**26
"""The largest image file that is decoded: 67 megapixels, more than most cameras take. Decoding one
takes 0.3 to 1.1 GB, by its kind of pixels, and up to 16 threads decode an image each."""

# Pillow warns of images that are larger still; here they are refused.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# What Pillow logs here it raises as well.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)

# How to turn the stored pixels upright, by the EXIF tag Orientation (CIPA DC-008, section 4.6.5).
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    image: bytes | np.ndarray, size: int, resize: Resize
) -> UInt8[np.ndarray, "size size 3"]:
    """Decodes an image to RGB, upright, of `size` x `size` pixels.

    Images that are not 8-bit RGB are converted:
    - Transparency is dropped and the colours below it are kept, as Keras' `load_img` and
      TensorFlow's `decode_image(channels=3)` do.
    - 16-bit images keep their upper 8 bits (value // 256), as libpng's `png_set_strip_16` does.
    - Floats must lie in 0..1 and are scaled by 255, as scikit-image's `img_as_ubyte` does.
    - CMYK goes through Pillow's conversion without a colour profile.
    - Of an animation the first frame is taken.

    Resizing is bilinear with antialiasing (Pillow's). A JPEG of at least twice `size` is decoded
    at a half, a quarter or an eighth of its own size, which takes less time (Pillow's `draft`).

    Args:
        image: the bytes of a JPEG, PNG, WebP, BMP, GIF or TIFF file, or uint8 pixels of shape
            (height, width), (height, width, 1) or (height, width, 3).
        size: the side of the result, in pixels.
        resize: `stretch` squeezes the whole image to a square; `crop` keeps the square in its
            middle whose side is the shorter side of the image.

    Returns:
        Pixels, 0..255.

    Raises:
        UserError: the image is empty, damaged, of another kind, or a file of more than
            `MOST_PIXELS`, which is refused by its header. The message says
            what is wrong; the caller adds which image it is.
    """
    opened = _from_array(image) if isinstance(image, np.ndarray) else _from_bytes(image, size)
    width, height = opened.size
    box = (0.0, 0.0, float(width), float(height))
    if resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(opened.resize((size, size), Image.Resampling.BILINEAR, box=box))


class Header(NamedTuple):
    """What the header of an image file says: Pillow's names, and the stored size in pixels."""

    format: str
    mode: str
    width: int
    height: int


def header(encoded: bytes) -> Header:
    """Reads the header of an image without decoding it.

    Raises:
        UserError: as `decode`, as far as the header shows it.
    """
    with _opened(encoded) as image:
        return Header(image.format or "", image.mode, image.width, image.height)


def as_png(pixels: UInt8[np.ndarray, "height width ..."]) -> bytes:
    """Encodes pixels without loss: (height, width) or (height, width, 3), 0..255."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def as_small_jpeg(encoded: bytes, side: int, quality: int) -> bytes:
    """Scales an image down and encodes it anew as a JPEG, unless it is small already.

    Args:
        encoded: an image as for `decode`, which also says how it becomes RGB and how it is resized.
        side: the shorter side of the result, in pixels.
        quality: of the JPEG, 1..100.

    Returns:
        The JPEG; the bytes as they came where the shorter side is no longer than `side`.

    Raises:
        UserError: as `decode`.
    """
    with _opened(encoded) as stored:
        if min(stored.size) <= side:
            return encoded
    image = _from_bytes(encoded, side)
    factor = side / min(image.size)
    width, height = (round(factor * length) for length in image.size)
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _from_array(pixels: np.ndarray) -> Image.Image:
    channels = pixels.shape[2:]
    if pixels.dtype != np.uint8 or pixels.ndim < 2 or channels not in ((), (1,), (3,)):
        raise UserError(
            f"pixels of type {pixels.dtype} and shape {pixels.shape}: they must be uint8 of shape "
            "(height, width), (height, width, 1) or (height, width, 3)"
        )
    if pixels.size == 0:
        raise UserError("the image has no pixels")
    return Image.fromarray(pixels[..., 0] if channels == (1,) else pixels).convert("RGB")


def _from_bytes(encoded: bytes, size: int) -> Image.Image:
    with _opened(encoded) as image:
        image.draft(None, (size, size))  # only JPEG: the smallest scale not below `size`
        image.load()
        return _to_rgb(_upright(image))


@contextlib.contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    """Opens an image by its header; turns whatever its bytes bring about into a UserError."""
    if not encoded:
        raise UserError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise _too_large()
            if image.width < 1 or image.height < 1:
                raise UserError("the image has no pixels")
            yield image
    except (UserError, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise UserError("not a JPEG, PNG, WebP, BMP, GIF or TIFF image") from error
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except Exception as error:  # damaged bytes bring nearly every kind of error out of the decoders
        reason = textwrap.shorten(str(error), 300) or type(error).__name__
        if isinstance(error, OSError) and reason.startswith("out of memory"):  # in Pillow's words
            raise MemoryError from error
        raise UserError(f"damaged or not supported: {reason}") from error


def _too_large() -> UserError:
    return UserError(
        f"too large to decode safely: it has more than {MOST_PIXELS / 1e6:.0f} megapixels; "
        "make it smaller"
    )


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation; `ImageOps.exif_transpose` would fail on other odd tags."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # the pixels are whole, and unreadable tags tell no orientation
        orientation = None
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(_from_16_bit(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(image))).convert("RGB")
    # Transparency is dropped in any case; without this Pillow warns of it.
    image.info.pop("transparency", None)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _from_16_bit(values: np.ndarray) -> UInt8[np.ndarray, "height width"]:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise UserError(
            f"integer pixels from {low} to {high} have no known range: "
            "save it with 8 or 16 bits a channel"
        )
    return (values // 256).astype(np.uint8)


def _from_floats(values: np.ndarray) -> UInt8[np.ndarray, "height width"]:
    if not (values.min() >= 0 and values.max() <= 1):  # also refuses NaN
        raise UserError(
            f"float pixels from {values.min():g} to {values.max():g} have no known range: "
            "scale them to 0..1 or save it with 8 bits a channel"
        )
    return np.rint(values * 255).astype(np.uint8)
