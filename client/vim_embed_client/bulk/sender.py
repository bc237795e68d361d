"""Sends the items of one batch: images as they are, pixels stacked, fluxes made into pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.reader import Item
from vim_embed_client.client import Client
from vim_embed_client.formats import Array
from vim_embed_client.results import Embeddings, PreprocessingEntry


class Sender:
    """Embeds items that are alike.

    spec: the model's, to which fluxes are resized, and with `resize` uint8 arrays too.
    options: as of Client.embed, but wire. other_sizes: (height, width) of arrays that went as
    they are though the model is made for another size.
    """

    def __init__(
        self, client: Client, spec: PreprocessingEntry, options: dict[str, Any], *, resize: bool
    ) -> None:
        self._client, self._spec, self._options, self._resize = client, spec, options, resize
        self.other_sizes: set[tuple[int, int]] = set()

    @property
    def image_size(self) -> int:
        """The side in pixels that the model is made for."""
        return self._spec["image_size"]

    def __call__(self, items: Sequence[Item]) -> Embeddings:
        if items[0].like is None:
            images: list[Any] = [item.data for item in items]
            return self._client.embed_images(images, **self._options)
        pixels = np.stack([self._pixels(item.data) for item in items])
        embedded = self._client.embed(pixels, **self._options)
        height, width = pixels.shape[2:]
        if (height, width) != (self.image_size, self.image_size):
            self.other_sizes.add((height, width))
        return embedded

    def _pixels(self, data: Any) -> Array:
        if callable(data):
            return resized(data(), self._spec)
        array: Array = data
        return resized(array, self._spec) if self._resize and array.dtype == np.uint8 else array


def resized(pixels: Array, spec: PreprocessingEntry) -> Array:
    """(3, H, W) uint8 at the model's size, by the method with which the service resizes images."""
    from PIL import Image

    side = spec["image_size"]
    if pixels.shape[1:] == (side, side):
        return pixels
    method = Image.Resampling[spec["interpolation"].upper()]
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    return np.asarray(image.resize((side, side), resample=method)).transpose(2, 0, 1)
