"""An engine in this process, in the place that the HTTP client has in a bulk run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any, cast

import numpy as np

from vim_embed.batching.request import EmbedRequest
from vim_embed.cluster.replica import MakeEngines
from vim_embed.errors import ServiceError
from vim_embed.http.formats.answers import narrowed, provenance, with_size
from vim_embed.http.formats.images import decode_image
from vim_embed.serving.service import build_service
from vim_embed.settings import Settings
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.types.pixels import PixelArray, PixelError, check_pixels
from vim_embed_client.bulk.row_faults import Answer
from vim_embed_client.errors import BY_CODE, InvalidInputError, VimEmbedError
from vim_embed_client.formats import Array
from vim_embed_client.pixels import as_pixels, wire_dtype
from vim_embed_client.results import Embeddings, LayerEmbeddings, PreprocessingEntry, Provenance

_NO_BOUND = 2**62  # the queue holds the rows of a few parts at once, and no others


class EngineService:
    """Embeds alike rows as Client does: the same checks, the same errors, the same provenance."""

    def __init__(
        self,
        settings: Settings,
        options: EmbedOptions,
        make_engines: MakeEngines,
        *,
        dtype: str = "float32",
    ) -> None:
        """Blocks until the model is loaded. Raises ServiceError with the reason if it cannot be.

        dtype: of the embeddings.
        """
        self._dtype = np.dtype(dtype)
        # No model rests: nobody else could want its memory before the job ends.
        changes = {"queue_rows": _NO_BOUND, "queue_bytes": _NO_BOUND, "idle_unload": 0.0}
        self._settings = settings.model_copy(update=changes)
        self._options = options
        self._service = build_service(self._settings, make_engines(self._settings))
        self._service.start()
        self._service.wait_loaded()
        self._info = self._service.ready_model(None)
        self._decoders = ThreadPoolExecutor(max(1, os.cpu_count() or 1))

    @property
    def channels(self) -> int:
        """Bands that the model takes."""
        return self._info.channels

    @property
    def spec(self) -> PreprocessingEntry:
        """How the model wants its images, as `GET /models` tells it."""
        return cast(PreprocessingEntry, self._info.preprocessing.as_entry())

    def embed(self, pixels: Array) -> Answer:
        array = as_pixels(pixels, self._info.channels)
        return self._embedded(np.ascontiguousarray(array, wire_dtype(array, "auto")))

    def embed_images(self, images: Sequence[bytes]) -> Answer:
        try:
            return self._embedded(np.stack(list(self._decoders.map(self._decoded, images))))
        except ServiceError as error:
            raise _as_clients(error) from error

    def giving_up_on(self, errors: tuple[type[VimEmbedError], ...]) -> EngineService:
        return self  # there is never a further attempt

    def _decoded(self, image: bytes) -> PixelArray:
        limit = self._settings.max_image_pixels
        return decode_image(image, self._info.preprocessing, max_pixels=limit, place="it")

    def _embedded(self, pixels: PixelArray) -> Answer:
        try:
            checked = check_pixels(pixels, self._info, max_size=self._settings.max_image_size)
            queued = EmbedRequest(self._info.name, checked, self._options)
            outputs = self._service.queue.submit(queued).future.result().outputs
            found = {name: narrowed(one, self._dtype) for name, one in outputs.items()}
        except PixelError as error:
            raise InvalidInputError(str(error)) from error
        except ServiceError as error:
            raise _as_clients(error) from error
        told = with_size(provenance(self._info, self._options), self._info, self._options, checked)
        if self._options.layers is not None:
            return LayerEmbeddings(layers=found, provenance=_provenance(dict(told)))
        return Embeddings(embeddings=found[EMBEDDING], provenance=_provenance(dict(told)))


def _as_clients(error: ServiceError) -> VimEmbedError:
    return BY_CODE[error.code](error.message)


def _provenance(texts: dict[str, Any]) -> Provenance:
    """As the client has it: with flags, not texts."""
    flags = {name: texts[name] == "true" for name in ("exact", "random_weights")}
    known = {one.name for one in fields(Provenance)}
    return Provenance(**{name: value for name, value in (texts | flags).items() if name in known})
