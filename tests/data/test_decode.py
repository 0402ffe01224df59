"""Image files to 8 bits: scaled where the format says how, refused by name where it does not."""

import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from normlab.config import ConfigError
from normlab.data.decode import decode, grey_values, opened

RAMP = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8) + np.arange(8, dtype=np.uint16)
"""Grey values of 16 bits."""


def png(path, bits, colour_type, pixels, extra=b""):
    """A PNG of pixels (H, W, channels) in its own words: Pillow writes neither 2 bits nor 16 bits of RGB."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape[:2]
    rows = []
    for row in pixels.reshape(height, -1):
        digits = "".join(f"{value:0{bits}b}" for value in row)
        digits += "0" * (-len(digits) % 8)  # a row is whole bytes
        rows.append(b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big"))
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def pgm(path, maximum, values):
    height, width = values.shape
    header = f"P5\n{width} {height}\n{maximum}\n".encode()
    path.write_bytes(header + values.astype(">u2" if maximum > 255 else "u1").tobytes())


def decoded(path):
    """A picture of 8 x 8 grey pixels."""
    pixels_HWC = decode(str(path), 8)
    assert (pixels_HWC == pixels_HWC[..., :1]).all()
    return pixels_HWC[..., 0]


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.pgm", "big_endian.tif"])
def test_16_bits_of_grey_are_scaled_by_their_own_range(tmp_path, name):
    if name == "x.pgm":
        pgm(tmp_path / name, 65535, RAMP)
    elif name == "big_endian.tif":
        Image.frombytes("I;16B", (8, 8), RAMP.astype(">u2").tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(RAMP).save(tmp_path / name)
    assert np.array_equal(decoded(tmp_path / name), np.rint(RAMP / 257.0))


def test_a_pgm_is_scaled_by_the_maximum_that_it_names(tmp_path):
    values = RAMP.astype(int) // 64
    pgm(tmp_path / "x.pgm", 1023, values)
    assert np.abs(decoded(tmp_path / "x.pgm") - values * 255 / 1023).max() <= 0.51


def test_a_tiff_in_which_0_is_white_is_inverted(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "x.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "x.tif") as image:
        assert image.tag_v2[262] == 0
    assert np.array_equal(decoded(tmp_path / "x.tif"), np.rint(255 - RAMP / 257.0))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_defined_range_are_refused_by_name(tmp_path, dtype):
    Image.fromarray(RAMP.astype(dtype)).save(tmp_path / "x.tif")
    with pytest.raises(ConfigError, match=r"x\.tif .*with no defined black and white; save it with 8 or 16 bits"):
        decode(str(tmp_path / "x.tif"), 8)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bits_of_a_colour_become_8(tmp_path, colour_type, channels):
    png(tmp_path / "x.png", 16, colour_type, np.stack([RAMP] * channels, axis=-1))
    assert np.abs(decoded(tmp_path / "x.png") - RAMP / 257.0).max() < 1


def test_16_bits_of_grey_with_a_transparent_value_are_scaled_too(tmp_path):
    transparent = b"\0\0\0\2tRNS\2\2" + struct.pack(">I", zlib.crc32(b"tRNS\2\2"))
    png(tmp_path / "x.png", 16, 0, RAMP[..., None], transparent)
    assert np.array_equal(decoded(tmp_path / "x.png"), np.rint(RAMP / 257.0))


def test_what_is_transparent_in_a_palette_keeps_its_colour(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "x.png", transparency=bytes([255, 0]))
    assert decode(str(tmp_path / "x.png"), 8)[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_mask_of_few_bits_holds_the_numbers_that_are_in_the_file(tmp_path, bits):
    values = np.arange(64).reshape(8, 8) % 2**bits
    png(tmp_path / "x.png", bits, 0, values[..., None])
    with opened(str(tmp_path / "x.png")) as mask:
        assert np.array_equal(grey_values(mask), values)


@pytest.mark.parametrize("maximum", [1, 7, 20, 255, 300, 65535])
def test_a_mask_in_pgm_holds_the_numbers_that_are_in_the_file(tmp_path, maximum):
    values = np.linspace(0, maximum, 64).round().astype(int).reshape(8, 8)
    pgm(tmp_path / "x.pgm", maximum, values)
    with opened(str(tmp_path / "x.pgm")) as mask:
        assert np.array_equal(grey_values(mask), values)


@pytest.mark.parametrize("size", [(65000, 1), (1, 20000)])
def test_a_panorama_takes_no_more_memory_than_a_picture(tmp_path, size):
    """Resized as a whole, its shorter side to 224 pixels, it would take 4 to 13 GB."""
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "x.png")
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (decode(str(tmp_path / "x.png"), 224) == [10, 20, 30]).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000


def test_a_long_picture_is_resized_as_a_whole_up_to_8_times_its_shorter_side(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    whole = Image.fromarray(pixels).resize((128, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(decode(str(tmp_path / "x.png"), 16), np.asarray(whole)[:, 56:72])
