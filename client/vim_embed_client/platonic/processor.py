"""Images to pixels by a published spec, in place of a processor from the Hub.

Resized uint8 loses nothing against the usual float pipeline, which also resizes 8-bit images:
the service scales and normalises them afterwards. Instances are plain data, for `datasets` to
hash and data loader workers to unpickle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_client.platonic.model import Spec


class ImageProcessor:
    """Callable like a transformers image processor: image in, {"pixel_values": (B, 3, S, S)} out.

    wire: `uint8` gives resized RGB; `float32` and `float16` give normalised pixels.
    """

    def __init__(self, spec: Spec, wire: str = "uint8") -> None:
        self.spec = spec
        self.wire = wire

    def __call__(self, images: Any, return_tensors: str | None = None) -> dict[str, Any]:
        """images: one uint8 (H, W, 3) array or Pillow image, or a list of them.

        return_tensors: `pt` for torch tensors, else numpy arrays. Raises InputError.
        """
        listed = images if isinstance(images, (list, tuple)) else [images]
        pixels = self._on_the_wire(np.stack([self._resized(image) for image in listed]))
        if return_tensors != "pt":
            return {"pixel_values": pixels}
        import torch

        return {"pixel_values": torch.from_numpy(pixels)}

    def _resized(self, image: Any) -> Array:
        from PIL import Image

        if not isinstance(image, Image.Image):
            image = Image.fromarray(_eight_bit(np.asarray(image)))
        spec = self.spec
        method = Image.Resampling[spec.interpolation.upper()]
        width = height = spec.resize_to or spec.image_size
        if spec.keep_aspect:
            first, shorter = width, min(image.size)
            width, height = (max(first, int(first * edge / shorter)) for edge in image.size)
        resized = image.convert("RGB").resize((width, height), resample=method)
        left, top = (width - spec.image_size) // 2, (height - spec.image_size) // 2
        cut = resized.crop((left, top, left + spec.image_size, top + spec.image_size))
        return np.asarray(cut, dtype=np.uint8).transpose(2, 0, 1)

    def _on_the_wire(self, pixels: Array) -> Array:
        if self.wire == "uint8":
            return pixels
        mean, std = (_per_channel(values) for values in (self.spec.mean, self.spec.std))
        normalised = (pixels.astype(np.float32) * np.float32(1 / 255) - mean) / std
        return normalised.astype(self.wire, copy=False)


def _eight_bit(array: Array) -> Array:
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise InputError(
            f"expected an image of uint8 (height, width, 3), got {array.dtype} {array.shape}"
        )
    return np.ascontiguousarray(array)


def _per_channel(values: Sequence[float]) -> Array:
    return np.asarray(values, np.float32).reshape(3, 1, 1)
