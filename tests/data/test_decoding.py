"""Decoding: every format, mode and orientation, against values known beforehand."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxtl.data import decoding
from jaxtl.data.decoding import decode
from jaxtl.errors import UserError


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(height=6, width=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def png(height, width, bits, raw):
    """An RGB PNG put together by hand, of any number of bits and of any size that it claims."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*pair) for pair in chunks)


def smooth(height, width):
    rows = np.linspace(20, 220, height)[:, None]
    columns = np.linspace(10, 240, width)[None]
    planes = [rows + 0 * columns, columns + 0 * rows, (rows + columns) / 2]
    return np.stack(planes, -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_back_their_pixels(kind, options):
    pixels = rgb()
    data = encoded(Image.fromarray(pixels), kind, **options)
    result = decode(data, 6, "stretch")
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_close_to_their_pixels(kind):
    pixels = smooth(32, 32)
    result = decode(encoded(Image.fromarray(pixels), kind, quality=95), 32, "stretch")
    assert np.abs(result.astype(int) - pixels).mean() < 4


def test_a_gif_gives_its_first_frame():
    frames = [Image.new("P", (4, 4), index) for index in (0, 1)]
    for frame in frames:
        frame.putpalette([200, 30, 40, 0, 250, 0] + [0] * 762)
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data, 4, "stretch") == [200, 30, 40]).all()


GREY = np.arange(36, dtype=np.uint8).reshape(6, 6) * 7


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_grey_is_repeated_over_the_channels(kind):
    result = decode(encoded(Image.fromarray(GREY), kind), 6, "stretch")
    np.testing.assert_array_equal(result, GREY[..., None].repeat(3, 2))


def test_one_bit_images_become_black_and_white():
    bits = GREY % 2 == 0
    result = decode(encoded(Image.fromarray(bits), "PNG"), 6, "stretch")
    np.testing.assert_array_equal(result[..., 0], np.where(bits, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparency_is_dropped_and_the_colours_below_it_stay(kind):
    pixels, alpha = rgb(), GREY[..., None]
    data = encoded(Image.fromarray(np.concatenate([pixels, alpha], 2)), kind)
    np.testing.assert_array_equal(decode(data, 6, "stretch"), pixels)


def test_transparency_of_grey_is_dropped():
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY.T.copy())])
    result = decode(encoded(image, "PNG"), 6, "stretch")
    np.testing.assert_array_equal(result[..., 0], GREY)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_a_palette_gives_its_colours_with_and_without_transparency(transparency):
    image = Image.fromarray((GREY % 2).astype(np.uint8), "L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([10, 20, 30, 200, 100, 50])
    options = {} if transparency is None else {"transparency": transparency}
    result = decode(encoded(image, "PNG", **options), 6, "stretch")
    colours = np.array([[10, 20, 30], [200, 100, 50]])
    np.testing.assert_array_equal(result, colours[GREY % 2])


def test_cmyk_of_a_tiff_is_converted():
    cmyk = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    assert (decode(encoded(cmyk, "TIFF"), 4, "stretch") == [0, 255, 255]).all()


def test_cmyk_of_a_jpeg_is_not_inverted():
    # Pillow writes CMYK the way that Adobe does: inverted, with the marker that says so.
    cmyk = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = encoded(cmyk, "JPEG", quality=100)
    assert b"Adobe" in data
    assert np.abs(decode(data, 16, "stretch").astype(int) - [0, 255, 255]).max() <= 3


WIDE = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16).repeat(3, 0).repeat(2, 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_to_8_and_never_clipped(kind):
    result = decode(encoded(Image.fromarray(WIDE), kind), 6, "stretch")
    np.testing.assert_array_equal(result, (WIDE // 256)[..., None].repeat(3, 2))
    assert set(result.flat) == {0, 1, 128, 254, 255}


def test_big_endian_16_bits_are_scaled_alike():
    image = Image.frombytes("I;16B", (6, 6), WIDE.astype(">u2").tobytes())
    result = decode(encoded(image, "TIFF"), 6, "stretch")
    np.testing.assert_array_equal(result[..., 0], WIDE // 256)


def test_16_bit_rgb_and_16_bit_grey_agree():
    rows = WIDE[..., None].repeat(3, 2).astype(">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    data = png(6, 6, 16, raw)
    grey = decode(encoded(Image.fromarray(WIDE), "PNG"), 6, "stretch")
    np.testing.assert_array_equal(decode(data, 6, "stretch"), grey)


def test_32_bit_integers_within_16_bits_are_scaled_like_16_bits():
    data = encoded(Image.fromarray(WIDE.astype(np.int32)), "TIFF")
    np.testing.assert_array_equal(decode(data, 6, "stretch")[..., 0], WIDE // 256)


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_outside_of_16_bits_are_refused(value):
    values = WIDE.astype(np.int32)
    values[0, 0] = value
    with pytest.raises(UserError, match=r"integer pixels from .* save it with 8 or 16 bits"):
        decode(encoded(Image.fromarray(values), "TIFF"), 6, "stretch")


def test_floats_from_0_to_1_are_scaled():
    values = np.array([[0.0, 0.5], [0.25, 1.0]], np.float32)
    result = decode(encoded(Image.fromarray(values), "TIFF"), 2, "stretch")
    np.testing.assert_array_equal(result[..., 0], [[0, 128], [64, 255]])


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_floats_outside_of_0_to_1_are_refused(value):
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 1] = value
    with pytest.raises(UserError, match=r"float pixels from .* scale them to 0\.\.1"):
        decode(encoded(Image.fromarray(values), "TIFF"), 4, "stretch")


# How an image is stored for each orientation: its first row and its first column are, from 1 to 8,
# the (top, left), (top, right), (bottom, right), (bottom, left), (left, top), (right, top),
# (right, bottom) and (left, bottom) of what is meant.
UPRIGHT = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],
    7: UPRIGHT.T[::-1, ::-1],
    8: UPRIGHT.T[:, ::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_turned_upright(kind, orientation):
    big = STORED[orientation].repeat(2, 0).repeat(2, 1)
    image = Image.fromarray(big).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(
        Image.fromarray(UPRIGHT.repeat(2, 0).repeat(2, 1)).resize((4, 4), Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(decode(data, 4, "stretch")[..., 0], expected)


@pytest.mark.parametrize("orientation", STORED)
def test_a_jpeg_is_turned_upright_as_pillow_does(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(smooth(20, 30)), "JPEG", exif=exif, quality=95)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected = np.asarray(reference.resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode(data, 16, "stretch"), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"Exif\0\0not a tag block", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_unreadable_exif_tags_leave_the_image_as_it_is_stored(exif):
    data = encoded(Image.fromarray(smooth(16, 16)), "JPEG", exif=exif)
    plain = encoded(Image.fromarray(smooth(16, 16)), "JPEG")
    np.testing.assert_array_equal(decode(data, 16, "stretch"), decode(plain, 16, "stretch"))


def test_stretching_uses_the_whole_image():
    pixels = rgb(4, 8)
    expected = np.asarray(Image.fromarray(pixels).resize((4, 4), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(pixels), "PNG"), 4, "stretch"), expected
    )


def test_shrinking_is_antialiased():
    step = np.array([[0, 0, 210, 210]], np.uint8).repeat(2, 0)
    # Halving, a triangle over four pixels weighs them 1/4, 3/4, 3/4, 1/4; the first lies outside.
    near_zero = 210 * (1 / 4) / (3 / 4 + 3 / 4 + 1 / 4)
    result = decode(step, 2, "stretch")[0, :, 0]
    np.testing.assert_array_equal(result, [near_zero, 210 - near_zero])


@pytest.mark.parametrize("shape", [(4, 8), (8, 4)])
def test_cropping_keeps_the_middle_square(shape):
    pixels = rgb(*shape)
    middle = pixels[:, 2:6] if shape == (4, 8) else pixels[2:6]
    np.testing.assert_array_equal(decode(pixels, 4, "crop"), middle)


def test_enlarging_is_bilinear_about_pixel_centres():
    pixels = np.array([[0, 100]], np.uint8).repeat(2, 0)
    np.testing.assert_array_equal(decode(pixels, 4, "stretch")[0, :, 0], [0, 25, 75, 100])


@pytest.mark.parametrize("shape", [(5, 5), (5, 5, 1), (5, 5, 3)])
def test_arrays_of_pixels_are_taken_as_they_are(shape):
    pixels = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
    expected = np.broadcast_to(pixels.reshape(5, 5, -1), (5, 5, 3))
    np.testing.assert_array_equal(decode(pixels, 5, "stretch"), expected)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind_are_refused(pixels):
    with pytest.raises(UserError, match=f"type {pixels.dtype} and shape .* must be uint8 of shape"):
        decode(pixels, 4, "stretch")


def test_a_large_jpeg_decoded_at_a_fraction_stays_close_to_the_full_decoding():
    pixels = smooth(200, 260)
    data = encoded(Image.fromarray(pixels), "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).resize((32, 32), Image.Resampling.BILINEAR)
    difference = np.abs(decode(data, 32, "stretch").astype(int) - np.asarray(full))
    assert difference.max() <= 4


def test_an_empty_file_is_refused():
    with pytest.raises(UserError, match=r"empty \(0 bytes\)"):
        decode(b"", 8, "stretch")


def test_a_file_of_another_kind_is_refused():
    with pytest.raises(UserError, match="not a JPEG, PNG, WebP, BMP, GIF or TIFF image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 8, "stretch")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused_in_one_line(kind, fraction):
    data = encoded(Image.fromarray(rgb(64, 64)), kind)
    with pytest.raises(UserError, match=r"^(damaged|not a JPEG)") as caught:
        decode(data[: int(fraction * len(data))], 16, "stretch")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_damaged_bytes_never_raise_anything_else():
    generator = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        data = np.frombuffer(encoded(Image.fromarray(smooth(24, 24)), kind), np.uint8)
        for _ in range(60):
            broken = data.copy()
            broken[generator.integers(0, min(len(data), 200), 8)] = generator.integers(0, 256, 8)
            with contextlib.suppress(UserError):
                assert decode(broken.tobytes(), 8, "stretch").shape == (8, 8, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("height", "width"), [(8192, 8193), (10000, 10000), (30000, 30000)])
def test_a_file_of_more_than_67_megapixels_is_refused_by_its_header(height, width):
    data = png(height, width, 8, b"")  # decoded, it would be damaged
    with pytest.raises(UserError, match=r"too large to decode safely: .* more than 67 megapixels"):
        decode(data, 8, "stretch")


def test_a_file_of_67_megapixels_is_not_refused_by_its_header():
    with pytest.raises(UserError, match="damaged"):
        decode(png(8192, 8192, 8, b""), 8, "stretch")


def test_a_large_jpeg_is_refused_by_its_own_size_and_not_by_the_one_that_it_is_decoded_at(
    monkeypatch,
):
    monkeypatch.setattr(decoding, "MOST_PIXELS", 64 * 64)
    assert decode(encoded(Image.new("RGB", (64, 64)), "JPEG"), 8, "stretch").shape == (8, 8, 3)
    with pytest.raises(UserError, match="too large"):
        decode(encoded(Image.new("RGB", (65, 64)), "JPEG"), 8, "stretch")


# A row of 67 megapixels: there is memory for the image, but not for two rows more, as PNG needs.
NO_MEMORY = """
import io, re, resource, sys
from PIL import Image
from jaxtl.data.decoding import decode

def png(width):
    buffer = io.BytesIO()
    Image.new("L", (width, 1)).save(buffer, "PNG")
    return buffer.getvalue()

large = png(2**26)
decode(png(9), 8, "stretch")
size = int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (size + 160 * 2**20,) * 2)
try:
    decode(large, 8, "stretch")
except MemoryError as error:
    print(error.__cause__)
"""


def test_an_image_is_not_called_damaged_where_memory_is_short():
    variables = os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-c", NO_MEMORY]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.stdout == "out of memory when reading image file\n", done.stderr
