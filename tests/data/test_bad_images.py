"""Images of every kind that people have: decoded to the right pixels, or refused in one line."""

import io
import os
import socket
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, TiffImagePlugin

from jaxtl.config import Data
from jaxtl.data.checking import check
from jaxtl.data.decoding import decode
from jaxtl.data.splits import open_splits
from jaxtl.errors import UserError

GREY = np.linspace(20, 230, 24 * 24).reshape(24, 24).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], GREY.T], axis=-1)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width, height, *, depth=8, colour=0, interlace=0, crc=None, raw=b""):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    data = chunk(b"IHDR", header, crc) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def adam7(pixels):
    """An interlaced PNG of grey pixels (PNG specification, section 8.2)."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    raw = b""
    for x, y, dx, dy in [*passes, (0, 1, 1, 2)]:
        for row in pixels[y::dy, x::dx]:
            raw += b"\0" + row.tobytes() if len(row) else b""
    return png(pixels.shape[1], pixels.shape[0], interlace=1, raw=raw)


def bmp(width, height, *, bits=24, data=b"", offset=54):
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, offset) + info + data


def in_mode(mode):
    return Image.fromarray(RGB).convert(mode)


def frames(count=3):
    return [Image.fromarray(np.roll(RGB, 5 * i, axis=1)) for i in range(count)]


def animated(kind, **options):
    first, *rest = frames()
    return encoded(first, kind, save_all=True, append_images=rest, **options)


def with_text(size):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * size, zip=True)
    return encoded(RGB, "PNG", pnginfo=info)


def arithmetic():
    """A JPEG whose frame says that it is arithmetic-coded (SOF9)."""
    return encoded(RGB, "JPEG").replace(b"\xff\xc0", b"\xff\xc9", 1)


def twelve_bits():
    """A JPEG whose frame says that samples have 12 bits."""
    return encoded(RGB, "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c", 1)


def tiff_beyond_the_end():
    data = bytearray(encoded(GREY, "TIFF"))
    data[4:8] = struct.pack("<I", 10**8)
    return bytes(data)


def tiff_of_817_samples():
    data = encoded(RGB, "TIFF")
    entry = struct.pack("<HHI", 277, 3, 1)  # SamplesPerPixel, one short
    assert data.count(entry) == 1
    return data.replace(entry + struct.pack("<H", 3), entry + struct.pack("<H", 817))


JPEG, PNG = encoded(RGB, "JPEG", quality=95), encoded(RGB, "PNG")
PALETTE = in_mode("RGB").quantize(16)
BIG = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)

# What decodes: the bytes, the pixels that are expected, and how far each may be off.
GOOD = {
    "mode_1": (encoded(in_mode("1"), "PNG"), in_mode("1").convert("RGB"), 0),
    "mode_l": (encoded(GREY, "PNG"), np.stack([GREY] * 3, -1), 0),
    "mode_la": (encoded(Image.fromarray(GREY).convert("LA"), "PNG"), np.stack([GREY] * 3, -1), 0),
    "mode_p": (encoded(PALETTE, "PNG"), PALETTE.convert("RGB"), 0),
    "mode_p_transparent": (encoded(PALETTE, "PNG", transparency=3), PALETTE.convert("RGB"), 0),
    "mode_rgb": (PNG, RGB, 0),
    "mode_rgba": (encoded(in_mode("RGBA"), "PNG"), RGB, 0),
    "mode_cmyk": (encoded(in_mode("CMYK"), "TIFF"), RGB, 1),
    "mode_cmyk_jpeg": (encoded(in_mode("CMYK"), "JPEG", quality=95), RGB, 12),
    "mode_ycbcr": (encoded(in_mode("YCbCr"), "TIFF"), RGB, 3),
    "mode_i": (encoded(Image.fromarray(GREY.astype(np.int32) * 256), "TIFF"), "grey", 0),
    "mode_i16": (encoded(Image.fromarray(GREY.astype(np.uint16) * 256), "PNG"), "grey", 0),
    "mode_f": (encoded(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF"), "grey", 0),
    "one_pixel": (encoded(np.full((1, 1, 3), 9, np.uint8), "PNG"), np.full((24, 24, 3), 9), 0),
    "png_named_jpg": (PNG, RGB, 0),
    "animated_gif": (animated("GIF"), None, 0),
    "animated_webp": (animated("WEBP", lossless=True), RGB, 0),
    "animated_png": (animated("PNG"), RGB, 0),
    "interlaced_png": (adam7(GREY), "grey", 0),
    "progressive_jpeg": (encoded(RGB, "JPEG", progressive=True, quality=95), RGB, 12),
    "bad_icc_png": (encoded(RGB, "PNG", icc_profile=b"no profile"), RGB, 0),
    "bad_icc_jpeg": (encoded(RGB, "JPEG", icc_profile=b"no", quality=95), RGB, 12),
    "bad_exif": (encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff", quality=95), RGB, 12),
    "bytes_after_the_end": (JPEG + b"trailing" * 100, RGB, 12),
    "tiff_lzw": (encoded(RGB, "TIFF", compression="tiff_lzw"), RGB, 0),
    "tiff_deflate": (encoded(RGB, "TIFF", compression="tiff_adobe_deflate"), RGB, 0),
    "tiff_packbits": (encoded(RGB, "TIFF", compression="packbits"), RGB, 0),
    "tiff_strips": (encoded(RGB, "TIFF", tiffinfo={TiffImagePlugin.ROWSPERSTRIP: 5}), RGB, 0),
    "tiff_pages": (animated("TIFF"), RGB, 0),
    "tiff_big": (encoded(RGB, "TIFF", big_tiff=True), RGB, 0),
    "tiff_fax": (encoded(in_mode("1"), "TIFF", compression="group4"), in_mode("1"), 0),
    "bmp": (encoded(RGB, "BMP"), RGB, 0),
    "bmp_negative_height": (bmp(24, -24, data=RGB[..., ::-1].tobytes()), RGB, 0),
    "webp_lossless": (encoded(RGB, "WEBP", lossless=True), RGB, 0),
    "text_1_mb": (with_text(10**6 - 100), RGB, 0),
}

BAD = {
    "empty": b"",
    "text": b"<!DOCTYPE html><html>404</html>",
    "random": np.random.default_rng(1).bytes(5000),
    "jpeg_start_alone": JPEG[:20],
    "jpeg_cut": encoded(BIG, "JPEG")[:1500],
    "jpeg_progressive_cut": encoded(BIG, "JPEG", progressive=True)[:1500],
    "jpeg_12_bits": twelve_bits(),
    "png_signature_alone": PNG[:8],
    "png_cut": encoded(BIG, "PNG")[:6000],
    "png_no_pixels": png(24, 24),
    "png_zero": png(0, 0),
    "png_zero_wide": png(0, 24),
    "png_giant": png(100_000, 100_000),
    "png_giant_wide": png(2**31 - 1, 1),
    "png_wrong_crc": png(24, 24, crc=1, raw=b"\0" * 600),
    "png_text_bomb": with_text(10**8),
    "gif_cut": encoded(Image.fromarray(BIG).quantize(64), "GIF")[:1500],
    "webp_cut": encoded(BIG, "WEBP")[:500],
    "webp_lossless_cut": encoded(BIG, "WEBP", lossless=True)[:5000],
    "bmp_cut": encoded(BIG, "BMP")[:3000],
    "bmp_absurd": bmp(2**30, 2**30),
    "bmp_17_bits": bmp(24, 24, bits=17, data=b"\0" * 5000),
    "tiff_cut": encoded(BIG, "TIFF")[:3000],
    "tiff_beyond_the_end": tiff_beyond_the_end(),
    "tiff_of_817_samples": tiff_of_817_samples(),
    "psd": b"8BPS" + b"\0" * 100,
    "float_nan": encoded(np.full((4, 4), np.nan, np.float32), "TIFF"),
    "integers_of_32_bits": encoded(np.full((4, 4), 10**6, np.int32), "TIFF"),
}


def decodes_or_is_refused(data):
    """Whether an image decodes, or is refused in one line; any other error goes through."""
    try:
        return decode(data, 8, "stretch").shape == (8, 8, 3)
    except UserError as error:
        return "\n" not in str(error)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", GOOD)
def test_an_odd_image_has_the_right_pixels(kind):
    data, expected, most = GOOD[kind]
    found = decode(data, 24, "stretch").astype(int)
    if isinstance(expected, str):
        expected = np.stack([GREY] * 3, -1)
    if isinstance(expected, Image.Image):
        expected = np.asarray(expected.convert("RGB"))
    if expected is not None:
        assert np.abs(found - expected).max() <= most
    assert found.shape == (24, 24, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_refused_in_one_line(kind, caplog):
    with pytest.raises(UserError) as caught:
        decode(BAD[kind], 24, "stretch")
    assert "\n" not in str(caught.value)
    assert caplog.records == []  # they would be lines of their own


@pytest.mark.parametrize("colours", ["LAB", "HSV"])
def test_colours_that_only_tiff_has_are_converted_or_refused(colours):
    image = in_mode("HSV") if colours == "HSV" else Image.new("LAB", (24, 24), (50, 128, 128))
    try:
        data = encoded(image, "TIFF")
    except OSError:
        pytest.skip("this Pillow cannot write them")
    assert decodes_or_is_refused(data)


def test_an_arithmetic_coded_jpeg_decodes_or_is_refused():
    assert decodes_or_is_refused(arithmetic())


PEAK = """
import sys, pathlib
sys.path.insert(0, sys.argv[1])
from test_bad_images import BAD, GOOD, decodes_or_is_refused, large

def memory(kind):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)[kind].split()[0]) * 1024

decodes_or_is_refused(GOOD["mode_rgb"][0])
small = [*BAD.items(), *((k, v[0]) for k, v in GOOD.items())]
for name, data in large() if sys.argv[2] == "large" else small:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = memory("VmRSS")
    assert decodes_or_is_refused(data), name
    print(name, memory("VmHWM") - before)
"""


def large():
    """Images of as many pixels as are allowed: few bytes of grey, and floats, which take most."""
    yield "grey", png(8192, 8192, raw=b"\0" * 8193 * 8192)
    yield "floats", encoded(Image.new("F", (8192, 8192)), "TIFF", compression="tiff_adobe_deflate")


def peaks(which):
    """How many bytes a process takes to decode each image."""
    variables = os.environ | {"PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-W", "ignore", "-c", PEAK, os.path.dirname(__file__), which]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name: int(size) for name, size in map(str.split, done.stdout.splitlines())}


def test_no_small_image_takes_much_memory_whatever_it_claims_to_be():
    found = peaks("small")
    assert found.keys() == BAD.keys() | GOOD.keys()
    assert max(found.values()) < 20e6, found


@pytest.mark.slow
def test_an_image_of_67_megapixels_takes_what_the_docs_say():
    found = peaks("large")
    assert 0.3e9 < found["grey"] < 0.4e9
    assert 0.3e9 < found["floats"] < 1.1e9


@pytest.fixture
def folder(tmp_path):
    """Class folders with every kind: `good` and `fine` decode, `mixed` has bad ones too."""
    for name in ("good", "fine", "mixed"):
        (tmp_path / name).mkdir()
    for kind, (data, _, _) in GOOD.items():
        (tmp_path / "good" / f"{kind}.jpg").write_bytes(data)
    for i in range(4):
        pixels = np.roll(BIG, i, axis=0)
        (tmp_path / "fine" / f"{i}.png").write_bytes(encoded(pixels, "PNG"))
        (tmp_path / "mixed" / f"{i}.png").write_bytes(encoded(pixels.T.copy().T[::-1], "PNG"))
    for kind, data in BAD.items():
        (tmp_path / "mixed" / f"{kind}.jpg").write_bytes(data)
    mixed = tmp_path / "mixed"
    os.mkfifo(mixed / "fifo.jpg")
    (mixed / "dangling.jpg").symlink_to("nowhere")
    (mixed / "loop.jpg").symlink_to("loop.jpg")
    (mixed / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound, pytest.MonkeyPatch.context() as patch:
        patch.chdir(mixed)  # the path of a socket has at most 107 bytes
        bound.bind("socket.jpg")
    return tmp_path


SPECIAL = {"fifo", "dangling", "loop", "device", "socket"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_folder_with_every_kind_is_refused_by_its_first_bad_image_and_their_number(folder):
    with pytest.raises(UserError) as caught:
        open_splits(Data(source=str(folder)))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder}/mixed/")
    images = len(GOOD) + 2 * 4 + len(BAD) + len(SPECIAL)
    assert f"{len(SPECIAL)} of {images} images cannot be read: remove them" in message


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_check_finds_every_bad_image_and_no_other(folder):
    report = check(str(folder))
    found = {os.path.splitext(os.path.basename(name))[0] for name, _ in report.bad}
    assert found == BAD.keys() | SPECIAL
    assert all("\n" not in reason for _, reason in report.bad)
    assert report.wrong
    assert f"{folder}/good/png_named_jpg.jpg" in dict(report.mismatched)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_mutated_and_random_bytes_raise_nothing_but_a_user_error(data):
    start = data.draw(st.sampled_from([b"", *(d for d, _, _ in GOOD.values() if len(d) < 5000)]))
    if not start:
        mutated = data.draw(st.binary(max_size=300))
    else:
        changed = bytearray(start)
        places = st.integers(0, len(start) - 1)
        for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=9)):
            changed[place] = value
        mutated = bytes(changed[: data.draw(st.integers(0, len(start)))])
    assert decodes_or_is_refused(mutated)
