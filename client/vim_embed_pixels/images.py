"""Encoded images: which are taken, which way is up, and how one comes to a model's size.

Pillow decodes them, and simplejpeg JPEG. The service bounds what a stranger's file may cost before
it comes here.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from vim_embed_pixels.errors import UnusableImage, described
from vim_embed_pixels.filled import filled

# Pillow reads many more, some through other programs (EPS) or without bounds (ICO): not here.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_BITS_PER_SAMPLE = 258  # a TIFF tag
_ORIENTATION = 0x0112  # an EXIF tag


class Fit(NamedTuple):
    """How an image comes to a model's size: the spec that the service publishes of each model.

    resize_to: first to this many pixels squared, then the middle of it; 0: without a cut.
    keep_aspect: the shorter side to that, and the longer in proportion.
    """

    side: int
    interpolation: str
    resize_to: int = 0
    keep_aspect: bool = False

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Fit:
        """Of a model's `preprocessing` as `GET /models` has it."""
        return cls(
            spec["image_size"],
            spec["interpolation"],
            spec.get("resize_to") or 0,
            bool(spec.get("keep_aspect")),
        )


def decoded(data: bytes) -> NDArray[np.uint8]:
    """An encoded image as (3, H, W) RGB, as the service decodes it. Raises UnusableImage."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on sizes and metadata
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                check_image(image)
                return np.asarray(upright_rgb(filled(image, data))).transpose(2, 0, 1)
        except UnusableImage:
            raise
        except Exception as error:  # Pillow's readers raise whatever damaged files lead them to
            raise UnusableImage(f"it cannot be decoded ({described(error)})") from None


def upright_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, turned as its EXIF orientation says."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":  # whose conversion is a copy
        image.load()
        return image
    return image.convert("RGB")


def fit(image: Image.Image, wanted: Fit) -> Image.Image:
    """The image at `wanted.side` squared: the resized image's centre, without the rest of it."""
    width = height = wanted.resize_to or wanted.side
    if wanted.keep_aspect:
        first, shorter = width, min(image.size)
        width, height = (max(first, int(first * edge / shorter)) for edge in image.size)
    left, top = (width - wanted.side) // 2, (height - wanted.side) // 2
    across, down = image.width / width, image.height / height  # pixels of the image for each
    box = (left * across, top * down, (left + wanted.side) * across, (top + wanted.side) * down)
    method = Image.Resampling[wanted.interpolation.upper()]
    return image.resize((wanted.side, wanted.side), resample=method, box=box)


def fitted(pixels: NDArray[np.uint8], wanted: Fit) -> NDArray[np.uint8]:
    """(3, H, W) RGB at the model's size, (3, side, side); other bands each by itself."""
    if len(pixels) != 3:
        bands = [Image.fromarray(np.ascontiguousarray(band)) for band in pixels]
        return np.stack([np.asarray(fit(band, wanted)) for band in bands])
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return np.asarray(fit(image, wanted)).transpose(2, 0, 1)


def check_image(image: ImageFile.ImageFile) -> None:
    """Raise UnusableImage for several frames, and for more than eight bits a channel."""
    if getattr(image, "is_animated", False):  # n_frames would read through all of them
        raise UnusableImage("has several frames: send one frame each")
    if image.mode not in _EIGHT_BIT:
        raise UnusableImage(
            f"has pixels of mode {image.mode}, which 8-bit RGB cannot hold: "
            f"stretch it to 8 bits first, or send a normalised float32 array"
        )
    bits = _bits(image)
    if bits > 8:
        raise UnusableImage(
            f"has {bits} bits a channel, of which 8-bit RGB holds the upper 8 alone: "
            "stretch it to 8 bits first, or send a normalised float32 array"
        )


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits of a channel in the file, of which Pillow keeps eight."""
    if image.format == "TIFF":
        tags: dict[int, object] = image.tag_v2  # type: ignore[attr-defined]
        value = tags.get(_BITS_PER_SAMPLE, 1)
        return max(value) if isinstance(value, tuple) else int(str(value))
    told = [str(argument) for tile in image.tile for argument in _arguments(tile)]
    if image.format == "PNG":
        return 16 if any(";16" in raw_mode for raw_mode in told) else 8
    if image.format == "PPM":
        return max([int(value).bit_length() for value in told if value.isdigit()], default=8)
    return 8


def _arguments(tile: tuple[object, ...]) -> tuple[object, ...]:
    """Of a decoder: a raw mode, or a tuple that holds one."""
    given = tile[-1]
    return given if isinstance(given, tuple) else (given,)
