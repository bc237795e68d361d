"""Checks what a caller passes as pixels or images, before anything is sent.

Torch tensors are recognised by their methods: torch is never imported.
"""

from __future__ import annotations

import io
import mimetypes
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array, row_blocks
from vim_embed_pixels.masks import about_mask

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | Image"
Images: TypeAlias = "ImageLike | Iterable[ImageLike]"
Part = tuple[str, io.BytesIO, str]

WIRES = ("auto", "uint8", "float32", "float16")
_TAKEN = ("uint8", "float16", "float32", "float64")
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})


def channels_of(values: Array) -> int:
    """C of (B, C, H, W) or (C, H, W) pixels; 3 of what may be RGB with its channels last."""
    return values.shape[-3] if values.ndim in (3, 4) and values.shape[-1] != 3 else 3


def as_pixels(values: ArrayLike, channels: int = 3) -> Array:
    """`values` as a (B, channels, H, W) array that shares their memory where it can.

    One (channels, H, W) image becomes a batch of one. Raises InputError for a wrong rank, channel
    count or dtype, an empty batch, and NaN or infinite pixels, naming their rows.
    """
    array = as_array(values)
    if array.dtype.name not in _TAKEN:
        raise InputError(
            f"pixels of dtype {array.dtype} are not taken: send uint8 for resized RGB, "
            "or float32 for normalised pixels"
        )
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4:
        raise InputError(f"expected pixels of shape (B, {channels}, H, W), got {array.shape}")
    if array.size == 0:
        raise InputError(f"the batch is empty: its shape is {array.shape}")
    if array.shape[1] != channels:
        hint = _hint(array, channels)
        raise InputError(
            f"expected {channels} channels in (B, {channels}, H, W), got {array.shape}{hint}"
        )
    if array.dtype != np.uint8:
        _check_finite(array)
    return array


class PixelValueWarning(UserWarning):
    """Floats look like pixels that nobody normalised; they are embedded as they are."""


def about_values(pixels: Array) -> str:
    """A remark on floats that look like pixels nobody normalised, with the fix; "" for others.

    Normalised pixels lie around 0, within about -3 to 3; none of these floats is negative, and
    the largest is above 10, or all lie from 0 to 1.
    """
    if pixels.dtype.kind != "f" or pixels.size == 0:
        return ""
    low, high = float(pixels.min()), float(pixels.max())
    if low < 0 or low == high or not (high <= 1 or high > 10):
        return ""
    if high <= 1:
        found, fix = "from 0 to 1", "numpy.rint(255 * pixels).astype('uint8')"
    elif high <= 255:
        found, fix = "from 0 to 255", "pixels.astype('uint8')"
    else:
        found, fix = "above 255", "255 * (pixels - low) / (high - low) as uint8"
    return (
        f"floats {found} were taken as normalised, and do not look it: give {fix}, which the "
        "service normalises, or subtract the model's mean and divide by its std (`vim-embed "
        "models --json`)"
    )


def as_array(values: Any) -> Array:
    """`values`, a tensor or anything array-like, as numpy; shares memory where it can.

    Raises InputError for what is no array, and for a masked one.
    """
    if masked := about_mask(values):
        raise InputError(masked)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"pixels must be an array or a tensor ({error})") from None


def _hint(array: Array, channels: int) -> str:
    return "; channels last? use transpose(0, 3, 1, 2)" if array.shape[-1] == channels else ""


def _check_finite(array: Array) -> None:
    bad: list[int] = []
    start = 0
    for block in row_blocks(array, itemsize=array.dtype.itemsize):
        finite = np.isfinite(block)
        if not finite.all():
            rows = np.flatnonzero(~finite.all(axis=(1, 2, 3)))
            bad.extend((start + rows).tolist())
        start += len(block)
    if bad:
        some = f"rows {bad[:10]}" if len(bad) <= 10 else f"{len(bad)} rows, the first {bad[:10]},"
        raise InputError(f"{some} hold NaN or infinite pixels: mask or replace them first")


def wire_dtype(array: Array, wire: str) -> np.dtype[Any]:
    """The dtype in which pixels travel; `auto` keeps theirs (float64 goes as float32).

    uint8 and float pixels mean different things to the service (resized RGB, already
    normalised), so one is never turned into the other.
    """
    if wire not in WIRES:
        raise InputError(f"unknown wire {wire!r}: use one of {', '.join(WIRES)}")
    is_bytes = array.dtype == np.uint8
    if wire == "auto":
        wire = "float32" if array.dtype.itemsize == 8 else array.dtype.name
    if is_bytes != (wire == "uint8"):
        kind = "uint8 (resized RGB)" if is_bytes else f"{array.dtype} (normalised)"
        raise InputError(
            f"{kind} pixels cannot be sent as {wire}: convert them, or use wire='auto'"
        )
    return np.dtype(wire)


def as_images(images: Any) -> list[Any]:
    """`images` as a list of paths, bytes and Pillow images. Raises InputError for others."""
    if isinstance(images, (str, os.PathLike, bytes)) or _is_pillow(images):
        images = [images]
    listed = list(images)
    if not listed:
        raise InputError("there are no images: pass at least one")
    for index, image in enumerate(listed):
        if not (isinstance(image, (str, os.PathLike, bytes)) or _is_pillow(image)):
            raise InputError(
                f"image {index} is a {type(image).__name__}: pass paths, bytes of encoded images "
                "or Pillow images (arrays go to embed())"
            )
    return listed


def _is_pillow(image: object) -> bool:
    from PIL.Image import Image

    return isinstance(image, Image)


def image_bytes(image: Any) -> int:
    """About how many bytes an image takes on the wire."""
    if isinstance(image, bytes):
        return len(image)
    if isinstance(image, (str, os.PathLike)):
        try:
            found = os.stat(image)
        except OSError as error:
            raise InputError(f"cannot read {os.fspath(image)}: {error.strerror}") from None
        if not stat.S_ISREG(found.st_mode):  # opening a pipe waits for whoever writes to it
            raise InputError(f"{os.fspath(image)} is no file: pass its bytes instead")
        return found.st_size
    return int(image.width * image.height * 4)


def image_parts(images: Sequence[Any]) -> list[tuple[str, Part]]:
    """Multipart parts with the encoded images, in order."""
    return [("images", _part(image, index)) for index, image in enumerate(images)]


def _part(image: Any, index: int) -> Part:
    if isinstance(image, bytes):
        return f"{index}", io.BytesIO(image), "application/octet-stream"
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        try:
            # Names that are no UTF-8 cannot travel as they are.
            name = path.name.encode(errors="surrogateescape").decode(errors="replace")
            return name, io.BytesIO(path.read_bytes()), kind
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
    return _encoded(image, index)


def _encoded(image: Image, index: int) -> Part:
    buffer = io.BytesIO()
    if image.mode in _PNG_MODES:
        image.save(buffer, "PNG", compress_level=1)
        return f"{index}.png", buffer, "image/png"
    image.save(buffer, "TIFF")
    return f"{index}.tiff", buffer, "image/tiff"
