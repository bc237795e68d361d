"""Images that are none of the few formats taken, or that cost far more than they weigh."""

from __future__ import annotations

import io
import re
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from vim_embed.errors import (
    InvalidInput,
    MalformedRequest,
    PayloadTooLarge,
    ServiceError,
    UnsupportedMediaType,
)
from vim_embed.http.formats.images import decode_image
from vim_embed.types.preprocessing import HALF, Preprocessing
from vim_embed_pixels.images import FORMATS

SPEC = Preprocessing(image_size=8, interpolation="bicubic", mean=HALF, std=HALF)
PICTURE = Image.frombytes("RGB", (20, 10), np.random.default_rng(3).bytes(600))


def decode(data: bytes, max_pixels: int = 1_000_000) -> Any:
    return decode_image(data, SPEC, max_pixels=max_pixels)


def saved(form: str, picture: Image.Image = PICTURE, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", FORMATS)
def test_formats_that_are_taken(form: str) -> None:
    data = saved(form)
    with Image.open(io.BytesIO(data)) as image:
        rgb = image.convert("RGB").resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(decode(data), np.asarray(rgb).transpose(2, 0, 1))


_OTHERS = [
    "EPS",
    "PDF",
    "ICO",
    "ICNS",
    "TGA",
    "PCX",
    "SGI",
    "DDS",
    "MSP",
    "XBM",
    "DIB",
    "QOI",
]


@pytest.mark.parametrize("form", [*_OTHERS, "JPEG2000", "AVIF"])
def test_other_formats_that_pillow_writes(form: str) -> None:
    if form == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    picture = PICTURE.convert("1") if form in ("MSP", "XBM") else PICTURE
    data = saved(form, picture)
    with pytest.raises(UnsupportedMediaType, match="send PNG, JPEG, WebP, TIFF or FITS"):
        decode(data)


def ico_bomb() -> bytes:
    """An icon of a claimed 16×16 pixels whose PNG has 40,000×40,000."""
    inner = png_bomb(40_000, 40_000)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def png_bomb(width: int, height: int) -> bytes:
    rows = zlib.compress(bytes(1_000_000))
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", rows)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def run_length_bmp(compression: int) -> bytes:
    """A MiB of runs of one pixel: half a second in Pillow's reader."""
    runs = b"\1\1" * 2**19
    head = struct.pack("<IiiHHIIiiII", 40, 16, 16, 1, 8, compression, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + head + bytes(1024) + runs


def png_of_chunks(kind: bytes, content: bytes) -> bytes:
    """A MiB of small chunks."""
    data, small = saved("PNG"), chunk(kind, content)
    return data[:33] + small * (2**20 // len(small)) + data[33:]


def tiff_of_frames(frames: int) -> bytes:
    """Directories of one pixel each, one after the other."""
    tags = ((256, 1), (257, 1), (258, 8), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1))
    size = 2 + 12 * len(tags) + 4
    out = bytearray(b"II*\0" + struct.pack("<I", 8))
    for frame in range(frames):
        entries = (struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags)
        out += struct.pack("<H", len(tags)) + b"".join(entries)
        out += struct.pack("<I", 8 + size * (frame + 1) if frame + 1 < frames else 0)
    return bytes(out)


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive file whose last scan is there again and again."""
    data = saved("JPEG", PICTURE.resize((1000, 900)), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def text_bomb() -> bytes:
    """A picture whose compressed remark is 200 MB long."""
    data = saved("PNG")
    remark = chunk(b"zTXt", b"remark\0\0" + zlib.compress(bytes(200_000_000), 9))
    return data[:33] + remark + data[33:]


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (run_length_bmp(1), UnsupportedMediaType, "run-length"),
        (run_length_bmp(2), UnsupportedMediaType, "run-length"),
        *[
            (f"P{kind}\n9 9\n255\n".encode() + b"1 " * 600_000, UnsupportedMediaType, "plain text")
            for kind in (1, 2, 3)
        ],
        (b"P6\n#" + b"x" * 2**20 + b"\n9 9 255\n", UnsupportedMediaType, "remarks"),
        (b"P6\n9 9" + b"#x\n" * 2**18 + b"255\n", UnsupportedMediaType, "remarks"),
        (b"P5" + b" " * 2**20 + b"9 9 255\n", UnsupportedMediaType, "remarks"),
        (png_of_chunks(b"tEXt", b"a\0b"), PayloadTooLarge, "chunks"),
        (png_of_chunks(b"IDAT", b""), PayloadTooLarge, "chunks"),
        (ico_bomb(), UnsupportedMediaType, "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UnsupportedMediaType, "no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedMediaType, "no image"),
        (b"PK\3\4" + bytes(100), UnsupportedMediaType, "no image"),
        (png_bomb(60_000, 60_000), PayloadTooLarge, "scale it down"),
        (png_bomb(1_001, 1_000), PayloadTooLarge, "scale it down"),
        (png_bomb(2**31 - 1, 1), PayloadTooLarge, "scale it down"),
        (tiff_of_frames(100_000), InvalidInput, "several frames"),
        (saved("GIF", save_all=True, append_images=[PICTURE.rotate(90)]), InvalidInput, "frames"),
        (saved("PNG", save_all=True, append_images=[PICTURE.rotate(9)]), InvalidInput, "frames"),
        (jpeg_of_scans(2_000), PayloadTooLarge, "scans"),
        (text_bomb(), MalformedRequest, "damaged"),
    ],
    ids=[
        "bmp 1", "bmp 2", "pnm 1", "pnm 2", "pnm 3", "remark", "remarks", "blanks", "texts", "data",
        "ico bomb", "eps", "svg", "zip", "bomb", "one over", "wide", "frames", "gif", "apng",
        "scans", "text",
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_fast(data: bytes, error: type[ServiceError], says: str) -> None:
    begin = time.process_time()
    with pytest.raises(error, match=says):
        decode(data)
    assert time.process_time() - begin < 2, "bounded time is a matter of safety here, not of speed"


def jpeg_of_many_scans() -> bytes:
    """A grey picture, whose blocks all are alike, with a scan for each of its 63 frequencies."""
    data = saved("JPEG", Image.new("L", (64, 64), 200), progressive=True)
    starts = [found.start() for found in re.finditer(rb"\xff\xc4.{20,}?\xff\xda", data, re.DOTALL)]
    low = starts[1]
    refined = next(at for at in _scans(data) if data[at + 7 : at + 10] == b"\0\0\x10")
    end = data.index(b"\xff", refined + 10)
    scan = data[low : starts[2]]
    header = scan.index(b"\xff\xda")
    each = [
        scan[:header] + scan[header : header + 7] + bytes([place, place, 0]) + scan[header + 10 :]
        for place in range(1, 64)
    ]
    return data[:low] + data[refined:end] + b"".join(each) + b"\xff\xd9"


def _scans(data: bytes) -> list[int]:
    return [found.start() for found in re.finditer(b"\xff\xda", data)]


@pytest.mark.parametrize("data", [jpeg_of_scans(1), jpeg_of_many_scans()], ids=["ten", "65"])
def test_a_progressive_picture_is_taken(data: bytes) -> None:
    assert decode(data).shape == (3, 8, 8)


def test_no_other_reader_is_asked() -> None:
    """Not even where Pillow has been told to load every plugin."""
    Image.init()
    with pytest.raises(UnsupportedMediaType):
        decode(saved("ICO"))


def sixteen_bits(kind: str, channels: int) -> bytes:
    """A picture of 12-bit content in 16-bit channels, as cameras and telescopes give it."""
    values = np.random.default_rng(0).integers(0, 4096, (10, 20, channels)).astype(">u2")
    if kind == "PNG":
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
        head = struct.pack(">IIBBBBB", 20, 10, 16, colour, 0, 0, 0)
        parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    if kind == "PPM":
        return b"P%d\n20 10\n4095\n" % (6 if channels == 3 else 5) + values.tobytes()
    tags = {256: 20, 257: 10, 259: 1, 262: 2 if channels > 2 else 1, 273: 0, 277: channels, 278: 10,
            279: values.nbytes}  # fmt: skip
    return tiff(tags, [16] * channels, values.astype("<u2").tobytes())


def tiff(tags: dict[int, int], bits: list[int], strip: bytes) -> bytes:
    """One uncompressed strip."""
    entries = [*tags, 258]
    behind = 8 + 2 + 12 * len(entries) + 4
    place = behind + 2 * len(bits)
    tags[273] = place
    out = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag in sorted(entries):
        if tag != 258:
            out += struct.pack("<HHII", tag, 4, 1, tags[tag])
        elif len(bits) > 2:
            out += struct.pack("<HHII", tag, 3, len(bits), behind)
        else:
            out += struct.pack("<HHIHH", tag, 3, len(bits), *bits, *[0] * (2 - len(bits)))
    return out + bytes(4) + struct.pack(f"<{len(bits)}H", *bits) + strip


@pytest.mark.parametrize(
    ("kind", "channels"),
    [("PNG", 1), ("PNG", 2), ("PNG", 3), ("PNG", 4), ("TIFF", 1), ("TIFF", 3), ("TIFF", 4),
     ("PPM", 1), ("PPM", 3)],
)  # fmt: skip
def test_more_than_eight_bits_are_refused(kind: str, channels: int) -> None:
    """Pillow would keep the upper byte alone: nearly black, and no word of it."""
    data = sixteen_bits(kind, channels)
    Image.open(io.BytesIO(data)).load()  # a sound file
    with pytest.raises(InvalidInput, match="stretch it to 8 bits"):
        decode(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(kind: str, orientation: int) -> None:
    """As the EXIF tag says, like data sets and browsers do."""
    blocks = np.random.default_rng(1).integers(0, 256, (4, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize((64, 32), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    forms: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    options = forms.get(kind, {})
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
    }.get(orientation)  # fmt: skip
    upright = picture if turn is None else picture.transpose(turn)
    found = decode(saved(kind, picture, exif=exif, **options)).astype(int)
    expected = decode(saved("PNG", upright)).astype(int)
    assert np.abs(found - expected).max() <= (4 if kind == "JPEG" else 0)


# The pass of each pixel of an interlaced PNG.
_ADAM7 = ["16462646", "7" * 8, "56565656", "7" * 8, "36463646", "7" * 8, "56565656", "7" * 8]


def png_rows(width: int, height: int, bits: int, interlaced: bool) -> list[int]:
    """Bytes of each row of a PNG before it is packed, in the order of the file."""
    if not interlaced:
        return [1 + -(-width * bits // 8)] * height
    passes = [
        [sum(_ADAM7[y % 8][x % 8] == str(number) for x in range(width)) for y in range(height)]
        for number in range(1, 8)
    ]
    return [1 + -(-columns * bits // 8) for each in passes for columns in each if columns]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 8, 24, 32])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 1), (1, 9), (20, 10), (13, 17)])
@pytest.mark.parametrize("grey", [0, 255])
def test_a_png_whose_rows_do_not_fill_it(
    size: tuple[int, int], bits: int, interlaced: bool, grey: int
) -> None:
    """The data end as they should, a row too early: Pillow would leave the rest black."""
    rows = png_rows(*size, bits, interlaced)
    colours = {1: 0, 8: 0, 24: 2, 32: 6}[bits]
    header = struct.pack(">IIBBBBB", *size, min(bits, 8), colours, 0, 0, interlaced)

    def png(count: int) -> bytes:
        packed = zlib.compress(b"".join(b"\0" + bytes([grey]) * (row - 1) for row in rows[:count]))
        parts = [(b"IHDR", header), (b"IDAT", packed[:9]), (b"IDAT", packed[9:]), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)

    assert (decode(png(len(rows))) == grey).all()
    for count in {len(rows) - 1, len(rows) // 2, 0} - {len(rows)}:
        with pytest.raises(MalformedRequest, match="damaged or cut short"):
            decode(png(count))


@pytest.mark.parametrize("planar", [False, True])
def test_a_tiff_whose_strips_do_not_fill_it(planar: bool) -> None:
    """As in a file of one strip that tells of half of its rows, or of one of its three planes."""
    size, pixels = (20, 10), bytes(range(200)) * 3

    def tiff(rows: int, strips: int) -> bytes:
        each = len(pixels) // strips
        behind = 8 + 2 + 12 * 10 + 4
        places = [behind + 8 * strips + 6 + each * strip for strip in range(strips)]
        tags = [
            (256, 4, 1, size[0]), (257, 4, 1, size[1]), (258, 3, 3, behind + 8 * strips),
            (259, 4, 1, 1), (262, 4, 1, 2), (273, 4, strips, behind if strips > 1 else places[0]),
            (277, 4, 1, 3), (278, 4, 1, rows),
            (279, 4, strips, behind + 4 * strips if strips > 1 else each),
            (284, 4, 1, 2 if planar else 1),
        ]  # fmt: skip
        head = b"II*\0" + struct.pack("<IH", 8, len(tags))
        listed = b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
        lists = struct.pack(f"<{2 * strips}I", *places, *[each] * strips)
        return head + listed + lists + struct.pack("<3H", 8, 8, 8) + pixels

    order = np.frombuffer(pixels, np.uint8)
    planes = order.reshape(3, 10, 20) if planar else order.reshape(10, 20, 3).transpose(2, 0, 1)
    expected = decode(saved("PNG", Image.fromarray(planes.transpose(1, 2, 0).copy())))
    np.testing.assert_array_equal(decode(tiff(10 if planar else 5, 3 if planar else 2)), expected)
    for rows, strips in [(10, 1), (5, 3), (10, 2)] if planar else [(5, 1), (2, 2), (3, 3)]:
        with pytest.raises(MalformedRequest, match="do not fill"):
            decode(tiff(rows, strips))
