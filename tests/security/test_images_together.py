"""Files of which one was put behind the other: the second picture would be left out in silence."""

from __future__ import annotations

import pytest

from security.test_damaged_images import JPEGS, PICTURE, check_refused, check_taken
from security.test_images import saved
from support.fits_files import GREY

FILES: dict[str, bytes] = {
    "PNG": saved("PNG", PICTURE),
    "palette": saved("PNG", PICTURE.convert("P")),
    "JPEG": JPEGS["4:2:0"],
    "progressive JPEG": JPEGS["progressive"],
    "JPEG with restarts": JPEGS["restarts"],
    "WebP": saved("WEBP", PICTURE),
    "lossless WebP": saved("WEBP", PICTURE, lossless=True),
    "GIF": saved("GIF", PICTURE),
    "BMP": saved("BMP", PICTURE),
    "grey BMP": saved("BMP", PICTURE.convert("L")),
    "PPM": saved("PPM", PICTURE),
    "PGM": saved("PPM", PICTURE.convert("L")),
    "PBM": saved("PPM", PICTURE.convert("1")),
}
SECOND = {**FILES, "TIFF": saved("TIFF", PICTURE), "FITS": GREY}


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("first", FILES)
def test_a_second_image_behind_a_picture(first: str, second: str) -> None:
    for between in (b"", b"\n", b"\0\0"):
        check_refused(FILES[first] + between + SECOND[second], "another image behind its picture")


@pytest.mark.parametrize("behind", [bytes(99), b"\r\n", b"made by a camera", b"\xff\xd8"])
@pytest.mark.parametrize("name", FILES)
def test_other_bytes_behind_a_picture(name: str, behind: bytes) -> None:
    check_taken(FILES[name] + behind)
