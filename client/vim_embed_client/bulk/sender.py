"""Sends rows to the service: images as they are, pixels stacked, fluxes made into pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

from vim_embed_client.bulk.row_faults import Answer, Ready
from vim_embed_client.bulk.sources.drawn import check_no_figure
from vim_embed_client.bulk.sources.reader import Item
from vim_embed_client.bulk.waiting import Waiting
from vim_embed_client.client import Client
from vim_embed_client.errors import InputError, VimEmbedError
from vim_embed_client.formats import Array
from vim_embed_client.pixels import about_values
from vim_embed_client.results import PreprocessingEntry
from vim_embed_pixels.clipping import remark
from vim_embed_pixels.errors import UnusableImage
from vim_embed_pixels.images import Fit, decoded, fitted
from vim_embed_pixels.sizes import about_size

_LOOKED_AT = 16  # encoded images to one that is decoded here


class Service(Protocol):
    """Embeds alike rows, as Client does over HTTP; raises VimEmbedError."""

    def embed(self, pixels: Array) -> Answer:
        """(B, 3, H, W) uint8 or float."""
        ...

    def embed_images(self, images: Sequence[bytes]) -> Answer:
        """Encoded images."""
        ...

    def giving_up_on(self, errors: tuple[type[VimEmbedError], ...]) -> Service:
        """The same, but after one of these errors there is no further attempt."""
        ...


class HttpService:
    """A service behind a client. options: as of Client.embed, but wire; layers: a granularity."""

    def __init__(self, client: Client, options: dict[str, Any]) -> None:
        self._client, self._given = client, options
        self._options = {name: value for name, value in options.items() if name != "layers"}
        self._layers: str | None = options.get("layers")

    def embed(self, pixels: Array) -> Answer:
        size = pixels.shape[-2:]  # another one than the model's is noted row by row
        if self._layers is None:
            return self._client.embed(pixels, image_size=size, **self._options)
        return self._client.embed_layers(
            pixels, granularity=self._layers, image_size=size, **self._options
        )

    def embed_images(self, images: Sequence[bytes]) -> Answer:
        if self._layers is None:
            return self._client.embed_images(images, **self._options)
        return self._client.embed_image_layers(images, granularity=self._layers, **self._options)

    def giving_up_on(self, errors: tuple[type[VimEmbedError], ...]) -> HttpService:
        return HttpService(self._client.with_options(give_up_on=errors), self._given)


class BatchSender:
    """Makes rows ready and embeds them; the RowSender of the pipeline.

    spec: the model's, to which fluxes are resized, and with `resize` uint8 arrays too. channels:
    of the model. normalisation: which of mean and std are given; both are for uint8 pixels of
    other bands than RGB.
    waiting: is told of the requests under way.
    """

    def __init__(
        self,
        service: Service,
        spec: PreprocessingEntry,
        *,
        resize: bool,
        channels: int = 3,
        normalisation: Collection[str] = (),
        waiting: Waiting | None = None,
    ) -> None:
        self._waiting = waiting or Waiting()
        self._service, self._spec, self._resize = service, spec, resize
        self._channels, self._normalisation = channels, normalisation
        self._bytes_taken = channels == 3 or len(normalisation) == 2

    def ready(self, item: Item) -> Ready:
        if item.like is None:
            data = encoded_bytes(item, self._channels)
            mark = fingerprint(data, "encoded")
            return Ready(data=data, fingerprint=mark, note=_note_of_some(data, mark))
        pixels = sent_pixels(item, self._spec, resize=self._resize)
        if pixels.dtype == np.uint8 and not self._bytes_taken:
            raise InputError(
                f"the model takes {self._channels} bands, whose mean and deviation are not known: "
                "give --mean and --std, a number for each, or normalised floats"
            )
        if pixels.dtype != np.uint8 and self._normalisation:
            raise InputError(
                f"its {pixels.dtype} pixels are normalised already, so that "
                f"{' and '.join(f'--{name}' for name in self._normalisation)} would have no effect"
            )
        kind = f"{pixels.dtype.str} {pixels.shape}"
        return Ready(
            data=pixels,
            fingerprint=fingerprint(np.ascontiguousarray(pixels).data, kind),
            note=item.note or self._note(pixels),
        )

    def send(
        self, rows: Sequence[Ready], *, give_up_on: tuple[type[VimEmbedError], ...] = ()
    ) -> Answer:
        service = self._service.giving_up_on(give_up_on)
        images = [row.data for row in rows if isinstance(row.data, bytes)]
        with self._waiting.request(len(rows)):
            if images:
                return service.embed_images(images)
            return service.embed(np.stack([np.asarray(row.data) for row in rows]))

    def probe(self, *, give_up_on: tuple[type[VimEmbedError], ...] = ()) -> Answer:
        side = self._spec["image_size"]
        kind, top = (np.uint8, 255) if self._bytes_taken else (np.float32, 1)
        ramp = np.linspace(0, top, side * side).astype(kind).reshape(side, side)
        image = np.stack([ramp] * self._channels)
        return self._service.giving_up_on(give_up_on).embed(image[None])

    def _note(self, pixels: Array) -> str:
        height, width = pixels.shape[1:]
        if about := about_size(height, width, self._spec["image_size"]):
            return f"{about} (--resize does that to uint8 arrays)"
        return remark(pixels) if pixels.dtype == np.uint8 else about_values(pixels)


def _note_of_some(data: bytes, mark: int) -> str:
    """A remark on some encoded images: to decode them all takes longer than to send them.

    Which ones, their bytes tell, so that a run that goes on says what one in a piece would say.
    """
    if mark % _LOOKED_AT:
        return ""
    try:
        return remark(decoded(data))
    except UnusableImage:  # which the service says with its reason
        return ""


def sent_pixels(item: Item, spec: PreprocessingEntry | None, *, resize: bool) -> Array:
    """The (3, H, W) pixels that are sent of a row, unless it is an encoded image.

    spec: the model's, to whose size fluxes are brought, and with `resize` uint8 arrays; None
    leaves them as they are. Raises InputError.
    """
    data: Any = item.data
    pixels: Array = data() if callable(data) else data
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise InputError("it holds NaN or infinite pixels: mask or replace them first")
    wanted = callable(data) or (resize and pixels.dtype == np.uint8)
    return resized(pixels, spec) if wanted and spec is not None else pixels


def fingerprint(data: bytes | memoryview, kind: str) -> int:
    """64 bits that differ where the bytes or their kind do; never 0."""
    # Processors have instructions for it: less than half of the time that blake2b takes.
    hashed = hashlib.sha1(kind.encode() + b"\0", usedforsecurity=False)
    hashed.update(data)
    return int.from_bytes(hashed.digest()[:8], "little") or 1


def encoded_bytes(item: Item, channels: int) -> bytes:
    """Of a row that is an encoded image or the path of one, for a model of so many bands.

    Raises InputError, and NoSource for a figure that vim-embed drew.
    """
    if channels != 3:
        raise InputError(
            f"it is an encoded image, which has no {channels} bands as the model takes: give FITS, "
            "arrays or tables"
        )
    data = item.data
    if not isinstance(data, bytes):
        try:
            with open(str(data), "rb") as file:
                data = file.read()
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})") from None
    check_no_figure(data)
    return data


def resized(pixels: Array, spec: PreprocessingEntry) -> Array:
    """(3, H, W) uint8 at the model's size, by the method with which the service resizes images."""
    wanted = Fit.of(spec)
    if pixels.shape[1:] == (wanted.side, wanted.side):
        return pixels
    return fitted(pixels, wanted)
