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
    UnsupportedMediaType,
)
from vim_embed.preprocess import Preprocessing

_EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


def decode_image(
    data: bytes | memoryview, spec: Preprocessing, *, max_pixels: int, place: str = "the image"
) -> NDArray[np.uint8]:
    """Decode one image to (3, S, S) uint8 RGB at the model's native size S.

    Raises UnsupportedMediaType, MalformedRequest, PayloadTooLarge or InvalidInput; `place` names
    the image in their messages. The size is checked before any pixel is decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own size and metadata warnings
        image = _open(data, place)
        _check(image, max_pixels, place)
        try:
            rgb = image.convert("RGB")
        except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
            raise MalformedRequest(f"{place} is damaged or cut short ({error})") from error
    side = spec.image_size
    method = Image.Resampling[spec.interpolation.upper()]
    resized = rgb.resize((side, side), resample=method)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))


def _open(data: bytes | memoryview, place: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise UnsupportedMediaType(
            f"{place} is no image that can be read here: send PNG, JPEG, WebP or TIFF"
        ) from error
    except Image.DecompressionBombError as error:
        raise PayloadTooLarge(f"{place} has too many pixels: scale it down first") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MalformedRequest(f"{place} is damaged or cut short ({error})") from error


def _check(image: Image.Image, max_pixels: int, place: str) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise PayloadTooLarge(
            f"{place} has {width}×{height} pixels, over the limit of {max_pixels}: "
            f"scale it down first"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise InvalidInput(f"{place} has several frames: send one frame each")
    if image.mode not in _EIGHT_BIT:
        raise InvalidInput(
            f"{place} has pixels of mode {image.mode}, which 8-bit RGB cannot hold: "
            f"stretch it to 8 bits first, or send a normalised float32 array"
        )
