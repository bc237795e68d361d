"""Images of another size than the model's: what is said of them, and when it is not."""

from __future__ import annotations

from collections.abc import Sequence

ImageSize = int | tuple[int, int]


class ImageSizeWarning(UserWarning):
    """Images of another size than the model's were embedded as they are."""


def about_size(height: int, width: int, native: int) -> str:
    """A remark on images of another size than the model's; "" for those of its own."""
    if (height, width) == (native, native):
        return ""
    return (
        f"an array of {height}×{width} pixels was embedded as it is: the model is made for "
        f"{native}×{native}, and gives other embeddings for images resized to it"
    )


def size_warning(height: int, width: int, native: int) -> str:
    """The same of a program's images, with the fixes that it has."""
    if (height, width) == (native, native):
        return ""
    given = height if height == width else (height, width)
    return (
        f"images of {height}×{width} pixels were embedded as they are: the model is made for "
        f"{native}×{native}, and gives other embeddings for images resized to it. Resize them "
        f"first, or give image_size={given} if this size is meant"
    )


def against_size(image_size: ImageSize, height: int, width: int) -> str:
    """Why images are not of the size that `image_size` says; "" where they are."""
    wanted = tuple(image_size) if isinstance(image_size, Sequence) else 2 * (image_size,)
    if wanted == (height, width):
        return ""
    return (
        f"the images have {height}×{width} pixels (height×width), and image_size={image_size!r} "
        "says otherwise: give their own size, or leave image_size out"
    )
