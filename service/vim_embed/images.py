"""Encoded images to pixels: decoded, converted to RGB and resized as the model's spec says."""

from __future__ import annotations

import io
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vim_embed.errors import (
    InvalidInput,
    MalformedRequest,
    PayloadTooLarge,
    ServiceError,
    UnsupportedMediaType,
)
from vim_embed.preprocess import Preprocessing

# Pillow reads many more, some through other programs (EPS) or without bounds (ICO): not here.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_START_OF_SCAN = b"\xff\xda"  # cannot occur within a scan
_MAX_SCANS = 100  # each costs a pass over the whole picture; progressive files have about ten
_EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def decode_image(
    data: bytes | memoryview, spec: Preprocessing, *, max_pixels: int, place: str = "the image"
) -> NDArray[np.uint8]:
    """Decode one image to (3, S, S) uint8 RGB at the model's native size S.

    Raises UnsupportedMediaType, MalformedRequest, PayloadTooLarge or InvalidInput; `place` names
    the image in their messages. Size, frames and scans are checked before any pixel is decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own size and metadata warnings
        try:
            rgb = _decode(data, max_pixels, place)
        except UnidentifiedImageError as error:
            raise UnsupportedMediaType(
                f"{place} is no image that can be read here: send PNG, JPEG, WebP or TIFF"
            ) from error
        except Image.DecompressionBombError as error:
            raise PayloadTooLarge(f"{place} has too many pixels: scale it down first") from error
        except ServiceError:
            raise
        except Exception as error:  # Pillow's readers raise whatever damaged files lead them to
            raise MalformedRequest(f"{place} is damaged or cut short ({error})") from error
    side = spec.image_size
    method = Image.Resampling[spec.interpolation.upper()]
    resized = rgb.resize((side, side), resample=method)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))


def _decode(data: bytes | memoryview, max_pixels: int, place: str) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check(image, max_pixels, place)
        if image.format == "JPEG" and bytes(data).count(_START_OF_SCAN) > _MAX_SCANS:
            raise PayloadTooLarge(f"{place} has over {_MAX_SCANS} scans: save it anew")
        return image.convert("RGB")


def _check(image: Image.Image, max_pixels: int, place: str) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise PayloadTooLarge(
            f"{place} has {width}×{height} pixels, over the limit of {max_pixels}: "
            f"scale it down first"
        )
    if getattr(image, "is_animated", False):  # n_frames would read through all of them
        raise InvalidInput(f"{place} has several frames: send one frame each")
    if image.mode not in _EIGHT_BIT:
        raise InvalidInput(
            f"{place} has pixels of mode {image.mode}, which 8-bit RGB cannot hold: "
            f"stretch it to 8 bits first, or send a normalised float32 array"
        )
