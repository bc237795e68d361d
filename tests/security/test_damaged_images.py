"""Files that end as they should, and whose data are cut or damaged: refused by the service and by
the client alike. Sound files that are a little odd become the pixels that Pillow makes of them."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from security.test_images import chunk, saved
from vim_embed.errors import ServiceError
from vim_embed.http.formats.images import decode_image
from vim_embed.types.preprocessing import HALF, Preprocessing
from vim_embed_pixels.errors import UnusableImage
from vim_embed_pixels.images import Fit, decoded, fitted
from vim_embed_pixels.libtiff import quiet

SPEC = Preprocessing(image_size=48, interpolation="bicubic", mean=HALF, std=HALF)
END = b"\xff\xd9"


def picture(width: int = 90, height: int = 70) -> Image.Image:
    """Smooth, with some noise, so that every block has data."""
    rng = np.random.default_rng(4)
    coarse = rng.integers(40, 200, (8, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth) + rng.normal(0, 8, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


PICTURE = picture()
JPEGS: dict[str, bytes] = {
    "4:2:0": saved("JPEG", PICTURE),
    "4:4:4": saved("JPEG", PICTURE, subsampling=0, quality=95),
    "RGB": saved("JPEG", PICTURE, keep_rgb=True),
    "grey": saved("JPEG", PICTURE.convert("L")),
    "CMYK": saved("JPEG", PICTURE.convert("CMYK")),
    "progressive": saved("JPEG", PICTURE, progressive=True),
    "optimised": saved("JPEG", PICTURE, optimize=True),
    "restarts": saved("JPEG", PICTURE, restart_marker_blocks=4),
}


def check_taken(data: bytes) -> None:
    """By both, with the pixels that Pillow alone makes of it."""
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decoded(data), expected)
    fit = Fit(SPEC.image_size, SPEC.interpolation)
    np.testing.assert_array_equal(by_the_service(data), fitted(expected, fit))


def check_refused(data: bytes, says: str | None = None) -> None:
    with pytest.raises(UnusableImage, match=says):
        decoded(data)
    with pytest.raises(ServiceError, match=says):
        by_the_service(data)


def by_the_service(data: bytes) -> NDArray[np.uint8]:
    return decode_image(data, SPEC, max_pixels=10**6)


def scans(data: bytes) -> list[int]:
    """Where the headers of its scans begin, and at last its end marker."""
    return [*(found.start() for found in re.finditer(b"\xff\xda", data)), len(data) - len(END)]


def content(data: bytes, number: int = 0) -> tuple[int, int]:
    """Where the data of a scan begin and end."""
    begin = scans(data)[number]
    begin += 2 + int.from_bytes(data[begin + 2 : begin + 4], "big")
    found = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]").search(data, begin)
    assert found
    return begin, found.start()


@pytest.mark.parametrize("kind", JPEGS)
def test_sound_jpegs(kind: str) -> None:
    check_taken(JPEGS[kind])


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_scan_that_is_cut(kind: str, share: float) -> None:
    data = JPEGS[kind]
    for number in range(len(scans(data)) - 1):
        begin, end = content(data, number)
        cut = begin + int(share * (end - begin))
        check_refused(data[:cut] + END, "premature|do not make")
        if number:  # the scans behind it are there
            check_refused(data[:cut] + data[end:])


@pytest.mark.parametrize("number", range(10))
def test_a_progressive_jpeg_that_lacks_a_scan(number: int) -> None:
    data = JPEGS["progressive"]
    places = scans(data)
    assert len(places) == 11
    tables = data.rindex(b"\xff\xc4", 0, places[number])  # its own, just before it
    check_refused(data[:tables] + END, "do not make" if number else None)
    check_refused(data[: places[number]] + data[places[number + 1] :])


def in_three_scans(across: int = 1, down: int = 1) -> list[bytes]:
    """A baseline file with a scan for each channel: its head, the scans, its end. Two have a pixel
    for so many."""
    first, *others = PICTURE.split()
    small = -(-first.width // across), -(-first.height // down)
    parts = [saved("JPEG", band) for band in (first, *(band.resize(small) for band in others))]
    heads = [part[: scans(part)[0]] for part in parts]
    frame = heads[0].index(b"\xff\xc0")
    length = int.from_bytes(heads[0][frame + 2 : frame + 4], "big")
    fields = (
        heads[0][frame + 4 : frame + 9]
        + b"\3"
        + bytes([1, across << 4 | down, 0, 2, 0x11, 0, 3, 0x11, 0])
    )
    joined = b"\xff\xc0" + struct.pack(">H", 2 + len(fields)) + fields
    head = heads[0][:frame] + joined + heads[0][frame + 2 + length :]
    listed = []
    for number, part in enumerate(parts, 1):
        begin, end = content(part)
        listed.append(b"\xff\xda\0\x08\1" + bytes([number]) + b"\0\0\x3f\0" + part[begin:end])
    return [head, *listed, END]


def test_a_jpeg_with_a_scan_for_each_channel() -> None:
    parts = in_three_scans()
    check_taken(b"".join(parts))
    for number in (1, 2, 3):
        check_refused(b"".join(parts[:number] + parts[number + 1 :]), "do not make")


@pytest.mark.parametrize(
    ("across", "down"), [(2, 1), (2, 2), (1, 2), (4, 1), (4, 2), (3, 1), (1, 4)]
)
def test_samplings(across: int, down: int) -> None:
    """Some have no name in TurboJPEG."""
    parts = in_three_scans(across, down)
    check_taken(b"".join(parts))
    check_refused(b"".join([*parts[:3], END]), "do not make")


@pytest.mark.parametrize("kind", JPEGS)
def test_data_that_have_shifted(kind: str) -> None:
    """Half of a scan twice: the picture is full before its data end."""
    begin, end = content(JPEGS[kind])
    middle = (begin + end) // 2
    check_refused(JPEGS[kind][:middle] + JPEGS[kind][begin:])


@pytest.mark.parametrize(
    "change",
    [
        lambda data: re.sub(rb"\xff[\xd0-\xd7]", b"", data),
        lambda data: data.replace(b"\xff\xd2", b"", 1),
        lambda data: data.replace(b"\xff\xd1", b"\xff\xd5", 1),
        lambda data: re.sub(rb"(?s)\xff\xd1.*?\xff\xd2", b"\xff\xd1\xff\xd2", data, count=1),
        lambda data: re.sub(rb"(?s)\xff\xd1.*?(?=\xff\xd2)", b"", data, count=1),
        lambda data: data.replace(b"\xff\xd1", bytes(30) + b"\xff\xd1", 1),
    ],
    ids=["none", "one is missing", "another number", "an empty part", "a part less", "garbage"],
)
def test_restart_markers(change: Callable[[bytes], bytes]) -> None:
    data = JPEGS["restarts"]
    begin, end = content(data)
    check_refused(data[:begin] + change(data[begin:end]) + data[end:])


def _patched(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    place = data.index(mark) + offset
    return data[:place] + value + data[place + len(value) :]


def _thumbnail(data: bytes) -> bytes:
    return data[:2] + b"\xff\xed" + struct.pack(">H", 2 + len(data)) + data


ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x09"
# What libjpeg remarks on and that does no harm, and what nothing remarks on.
ODD: dict[str, Callable[[bytes], bytes]] = {
    "trailing bytes": lambda data: data + bytes(range(256)) * 9,
    "the rest of a file behind it": lambda data: data + data[len(data) // 2 :],
    "zeros before its end": lambda data: data[:-2] + bytes(50) + END,
    "0xFF before its end": lambda data: data[:-2] + b"\xff" * 50 + END,
    "both before its end": lambda data: data[:-2] + b"\0\0\xff\xff\0\0\xff" + END,
    "two bytes before its end": lambda data: data[:-2] + b"\x21\x84" + END,
    "a new JFIF": lambda data: _patched(data, b"JFIF\0", 5, b"\x09"),
    "another Adobe": lambda data: data[:2] + ADOBE + data[20:],
    "a scan of no coefficients": lambda data: _patched(
        data, b"\xff\xda", content(data)[0] - scans(data)[0] - 3, b"\0\0\0"
    ),
    "bytes between segments": lambda data: data.replace(b"\xff\xdb", b"\x11\xff\xdb", 1),
    "a comment": lambda data: data[:2] + b"\xff\xfe\0\x06\xff\xda\xff\xd9" + data[2:],
    "a thumbnail": lambda data: _thumbnail(data) + data[2:],
}  # fmt: skip


@pytest.mark.parametrize("kind", ["4:2:0", "grey", "restarts", "optimised"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_jpegs(kind: str, odd: str) -> None:
    """They are taken, and hide no damage."""
    check_taken(ODD[odd](JPEGS[kind]))
    begin, end = content(JPEGS[kind])
    cut = JPEGS[kind][: (begin + end) // 2] + END
    check_refused(ODD[odd](cut))


def test_padding_behind_progressive_scans() -> None:
    check_taken(JPEGS["progressive"][:-2] + bytes(9) + END)


@pytest.mark.parametrize("mark", [b"\xff\xc0", b"\xff\xda", b"\xff\xdb", b"\xff\xc4"])
@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_headers_that_end_early(mark: bytes, length: int) -> None:
    data = JPEGS["4:2:0"]
    check_refused(data[: data.index(mark) + 2 + length])
    check_refused(data[: data.index(mark) + 2 + length] + END)


def test_twelve_bits_are_refused() -> None:
    check_refused(_patched(JPEGS["4:2:0"], b"\xff\xc0", 4, b"\x0c"))


def test_frames_that_contradict_each_other() -> None:
    """A small one, which limits are compared with, and a large one."""
    data = JPEGS["4:2:0"]
    frame = data.index(b"\xff\xc0")
    large = _patched(data[frame : frame + 19], b"\xff\xc0", 5, struct.pack(">HH", 20_000, 20_000))
    check_refused(data[:frame] + large + data[frame:])
    check_refused(data[: frame + 19] + large + data[frame + 19 :])


def one_strip(form: str, image: Image.Image = PICTURE) -> tuple[bytes, int, int]:
    """A TIFF, and where its strip begins and ends."""
    data = saved("TIFF", image, compression=form)
    with Image.open(io.BytesIO(data)) as opened:
        tags: Any = opened.tag_v2  # type: ignore[attr-defined]
        (begin,), (size,) = tags[273], tags[279]
    return data, begin, begin + size


TIFFS = [
    "raw",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "tiff_deflate",
    "packbits",
    "jpeg",
    "lzma",
    "zstd",
]


@pytest.mark.parametrize("form", TIFFS)
def test_sound_tiffs(form: str) -> None:
    check_taken(saved("TIFF", PICTURE, compression=form))


@pytest.mark.parametrize("form", ["tiff_adobe_deflate", "tiff_deflate"])
@pytest.mark.parametrize("replaced", [bytes(200), b"\xff" * 200, bytes(1)])
def test_deflated_strips_that_are_damaged(form: str, replaced: bytes) -> None:
    """Also such as fill the picture: libtiff looks no further then."""
    data, begin, end = one_strip(form)
    middle = (begin + end) // 2
    check_refused(data[:middle] + replaced + data[middle + len(replaced) :])
    check_refused(data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:])


def test_a_deflated_strip_that_becomes_far_more_than_the_picture() -> None:
    data, begin, end = one_strip("tiff_adobe_deflate")
    bomb = zlib.compress(bytes(2**25), 9)
    assert len(bomb) > end - begin
    tags = data.replace(struct.pack("<I", end - begin), struct.pack("<I", len(bomb)))
    moved = tags.replace(
        struct.pack("<HHII", 273, 4, 1, begin), struct.pack("<HHII", 273, 4, 1, len(data))
    )
    check_refused(moved + bomb, "more than the picture")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_jpeg_within_a_tiff_that_is_cut(share: float) -> None:
    data, begin, end = one_strip("jpeg")
    cut = begin + int(share * (end - begin))
    check_refused(data[:cut] + END + bytes(end - cut - 2) + data[end:], "premature|shifted")


@pytest.mark.parametrize("form", ["tiff_lzw", "tiff_adobe_deflate", "jpeg", "lzma"])
def test_libtiff_prints_nothing_of_a_damaged_tiff(
    form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data, begin, end = one_strip(form)
    damaged = data[:begin] + bytes(end - begin) + data[end:]
    for _ in range(2):
        check_refused(damaged, "decoder error")
        assert capfd.readouterr() == ("", "")
    with Image.open(io.BytesIO(damaged)) as image, pytest.raises(OSError, match="decoder error"):
        image.load()
    assert capfd.readouterr().err, "others in this process are told as before"


def test_libtiff_prints_again_once_the_last_has_ended(capfd: pytest.CaptureFixture[str]) -> None:
    data, begin, end = one_strip("tiff_lzw")
    damaged = data[:begin] + bytes(end - begin) + data[end:]
    first, second = quiet(), quiet()
    printed = []
    for change in (first.__enter__, second.__enter__, partial(first.__exit__, *3 * [None]),
                   partial(second.__exit__, *3 * [None])):  # fmt: skip
        change()
        with Image.open(io.BytesIO(damaged)) as image, suppress(OSError):
            image.load()
        printed.append(bool(capfd.readouterr().err))
    assert printed == [False, False, False, True]


@pytest.mark.parametrize("form", ["group3", "group4", "tiff_ccitt"])
def test_fax_is_refused(form: str) -> None:
    check_refused(saved("TIFF", PICTURE.convert("1"), compression=form), "leaves no trace")


def test_a_png_whose_checksum_differs() -> None:
    data = saved("PNG", PICTURE)
    check_taken(data)
    place = data.index(b"IDAT")
    end = place + 4 + int.from_bytes(data[place - 4 : place], "big")
    for change in (end, end + 3):
        check_refused(data[:change] + bytes([data[change] ^ 1]) + data[change + 1 :], "checksum")


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF"])
def test_palettes(form: str) -> None:
    check_taken(saved(form, PICTURE.quantize(5)))


@pytest.mark.parametrize("colours", [0, 1, 12])
def test_colours_that_a_palette_lacks(colours: int) -> None:
    data = saved("PNG", PICTURE.quantize(16))
    place = data.index(b"PLTE") - 4
    end = place + 12 + int.from_bytes(data[place : place + 4], "big")
    short = chunk(b"PLTE", data[place + 8 : place + 8 + 3 * colours]) if colours else b""
    check_refused(data[:place] + short + data[end:], "palette")


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_a_webp_that_is_cut(lossless: bool, share: float) -> None:
    data = saved("WEBP", PICTURE, lossless=lossless)
    check_taken(data)
    size = int(share * (len(data) - 20)) // 2 * 2
    check_refused(
        b"RIFF"
        + struct.pack("<I", 12 + size)
        + data[8:16]
        + struct.pack("<I", size)
        + data[20 : 20 + size]
    )
