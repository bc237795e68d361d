"""JPEG with what libjpeg remarks on it, which Pillow hides: of data that end too early the rest is
grey, and bytes that were lost or changed shift all that follows.

simplejpeg decodes the same pixels and raises for the first remark. JPEG has no checksums: damage
after which the data still fill the picture goes unnoticed, and so do a scan's of seldom samplings.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFile

_END = b"\xff\xd9"
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # that may end the data of a scan
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
_SCAN, _LAST = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xCA}
_REMARKS = {*range(0xE0, 0xF0), 0xFE}  # segments for applications, comments
_WHOLE = b"\0\x3f\0"  # the end of a scan's header that is not progressive: all 64 coefficients

# By the channels of a JPEG: what simplejpeg calls its pixels, and bytes of one.
_PIXELS = {1: ("GRAY", 1), 3: ("RGBX", 4), 4: ("CMYK", 4)}
_CHANNELS = {"L": 1, "RGB": 3, "CMYK": 4}  # of Pillow's modes
# What libjpeg remarks on files that cameras and old programs write, with all of their pixels.
_HARMLESS = (
    "extraneous bytes before marker",
    "unknown JFIF revision",
    "Unknown Adobe color transform",
    "Invalid SOS parameters for sequential",
)
# Of colours in a resolution that TurboJPEG has no name for, such as 4:1:0: Pillow reads them.
_UNNAMED = "Could not determine subsampling"
_LEFT = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
# Behind the data of a picture: padding, or so many bytes, which webcams leave. More are what data
# leave that lost their place in the picture.
_PADDING, _FEW_LEFT = b"\0\xff", 4
_LOOKS = 4


class _Segment(NamedTuple):
    """kind: its marker. end: of its header, where it is a scan."""

    kind: int
    begin: int
    end: int


class _Frame(NamedTuple):
    """What a JPEG says of its picture. channels: their numbers."""

    kind: int
    width: int
    height: int
    channels: Sequence[int]


def jpeg_picture(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """The picture of a JPEG that Pillow has opened, with Pillow's pixels. Raises OSError where its
    data are damaged, cut, or lack scans."""
    frame = _check_scans(data)
    if (frame.width, frame.height) != image.size:
        raise OSError("its headers contradict each other")
    pixels = _decoded(data, frame)
    if pixels is None or image.mode == "CMYK":  # as Adobe writes it, or not: Pillow knows
        image.load()
        return image
    raw = "L" if image.mode == "L" else "RGBX"
    picture = Image.frombytes(image.mode, image.size, pixels, "raw", raw)  # faster than 3 channels
    picture.info = image.info  # the orientation, which is EXIF's or XMP's
    return picture


def jpeg_end(data: bytes) -> int | None:
    """Where the picture ends; None where it has no end."""
    end = 2
    for segment in _segments(data):
        end = segment.end
    found = _MARKER.search(data, end)
    return None if found is None else found.end()


def check_jpeg(data: bytes, most: int) -> None:
    """Raise OSError as `jpeg_picture`, and for more than `most` pixels."""
    frame = _check_scans(data)
    if frame.width * frame.height > most:
        raise OSError("it holds a larger picture than it says")
    _decoded(data, frame)


def _decoded(data: bytes, frame: _Frame) -> NDArray[np.uint8] | None:
    """The pixels; None where libjpeg remarks what does no harm, or simplejpeg cannot read them.
    Raises OSError."""
    try:
        return _strictly(data, frame)
    except ValueError as error:
        if _UNNAMED not in str(error):
            _check_remark(str(error), data, frame)
        return None


def _strictly(data: bytes, frame: _Frame) -> NDArray[np.uint8]:
    """Raises ValueError with libjpeg's first remark."""
    if len(frame.channels) not in _PIXELS:
        raise ValueError(f"it has {len(frame.channels)} channels")
    name, size = _PIXELS[len(frame.channels)]
    room = np.empty((frame.height, frame.width, size), np.uint8)
    if simplejpeg.decode_jpeg(data, name, buffer=room).shape != room.shape:
        raise ValueError("its headers contradict each other")
    return room


def _check_remark(remark: str, data: bytes, frame: _Frame) -> None:
    """Raise OSError unless the remark is harmless, and no other hides behind it: decode a copy
    without what it was about."""
    bare = b""
    for _ in range(_LOOKS):
        if not any(harmless in remark for harmless in _HARMLESS):
            raise OSError(remark)
        bare = _without_rest(bare, remark) if bare else _bare(data)
        try:
            _strictly(bare, frame)
        except ValueError as error:
            remark = str(error)
        else:
            return
    raise OSError(remark)


def _without_rest(bare: bytes, remark: str) -> bytes:
    """Without the bytes behind the last scan. Raises OSError where they may be of the picture."""
    found = _LEFT.search(remark)
    if found is None:
        raise OSError(remark)
    count, body = int(found[1]), bare.removesuffix(_END)
    if count > _FEW_LEFT and body[-count:].strip(_PADDING):
        raise OSError(f"{remark}: parts of the picture have shifted")
    return body[:-count] + _END


def _bare(data: bytes) -> bytes:
    """Without segments that do not belong to the picture, and bytes between segments; with the end
    that headers of scans should have."""
    kept = [data[:2]]
    progressive = False
    for segment in _segments(data):
        progressive = progressive or segment.kind in _PROGRESSIVE
        content = data[segment.begin : segment.end]
        if segment.kind == _SCAN:
            if not progressive:
                content = content[: -len(_WHOLE)] + _WHOLE
            found = _MARKER.search(data, segment.end)
            content += data[segment.end : found.start() if found else len(data)]
        if segment.kind not in _REMARKS:
            kept.append(content)
    return b"".join([*kept, _END])


def _segments(data: bytes) -> Iterator[_Segment]:
    """From the first to the end marker, or to the end of the data."""
    end = 2
    while (found := _MARKER.search(data, end)) and (kind := data[found.start() + 1]) != _LAST:
        begin, end = found.span()
        if kind not in _ALONE:
            end += int.from_bytes(data[end : end + 2], "big")
        yield _Segment(kind, begin, end)


def _check_scans(data: bytes) -> _Frame:
    """Raise OSError where a channel is in no scan, or a progressive file ends between two."""
    frame: _Frame | None = None
    precision: dict[int, list[int]] = {}  # bits that each coefficient of a channel lacks
    for segment in _segments(data):
        if segment.kind in _FRAMES:
            frame = _frame(data, segment)
            precision = {channel: [-1] * 64 for channel in frame.channels}
        elif segment.kind == _SCAN and frame is not None:
            channels, first, last, lacking = _scan(data, segment, frame)
            if frame.kind not in _PROGRESSIVE and set(channels) == set(frame.channels):
                return frame
            for channel in channels:
                precision.setdefault(channel, [])[first : last + 1] = [lacking] * (last + 1 - first)
    if frame is None:
        raise OSError("it has no picture")
    if any(bits != 0 for each in precision.values() for bits in each):
        raise OSError("its scans do not make the whole picture")
    return frame


def _frame(data: bytes, segment: _Segment) -> _Frame:
    try:
        _, height, width, count = struct.unpack_from(">BHHB", data, segment.begin + 4)
    except struct.error:
        raise OSError("it ends within a header") from None
    channels = data[segment.begin + 10 : segment.begin + 10 + 3 * count : 3]
    return _Frame(segment.kind, width, height, tuple(channels))


def _scan(data: bytes, segment: _Segment, frame: _Frame) -> tuple[Sequence[int], int, int, int]:
    """Its channels, its first and last coefficient, and the bits that these lack after it."""
    begin = segment.begin + 4
    count = data[begin] if begin < len(data) else 0
    end = begin + 1 + 2 * count
    if end + 3 > len(data):
        raise OSError("it ends within a header")
    channels = tuple(data[begin + 1 : end : 2])
    if frame.kind not in _PROGRESSIVE:
        return channels, 0, 63, 0
    return channels, data[end], min(63, data[end + 1]), data[end + 2] & 15
