"""The media types of a body, and the pixel array that its bytes are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from starlette.requests import ClientDisconnect, Request

from vim_embed.errors import (
    InvalidInput,
    MalformedRequest,
    PayloadTooLarge,
    ServiceError,
    UnsupportedMediaType,
)
from vim_embed.http.body.reading import Limits
from vim_embed.http.body.workspace import Workspace
from vim_embed.http.disconnect import unless_gone
from vim_embed.http.formats.arrays import read_json, read_npy, read_safetensors
from vim_embed.http.formats.fits import MEDIA_TYPES, check_installed, looks_like_fits
from vim_embed.http.formats.fits_query import NO_FITS, FitsQuery
from vim_embed.http.formats.image_pool import DecodeBudget, DecoderPool, File
from vim_embed.http.formats.multipart import read_files
from vim_embed.http.one_header import one_header
from vim_embed.http.request_memory import request_memory
from vim_embed.types.model_info import ModelInfo
from vim_embed.types.pixels import PixelArray

NPY = "application/x-npy"
JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
MULTIPART = "multipart/form-data"
_ARRAYS: Mapping[str, Callable[[memoryview, Workspace], PixelArray]] = {
    NPY: lambda body, _: read_npy(body),
    JSON: read_json,
    SAFETENSORS: read_safetensors,
}
_INLINE_BYTES = 64 * 1024  # smaller bodies are parsed without a thread hop, npy (a view) always
_LOG = logging.getLogger(__name__)


class Parsed(NamedTuple):
    """The pixels of a body, and, where files may have several rows, how many each of them has."""

    pixels: PixelArray
    rows_of_files: tuple[int, ...] = ()


def media_type(request: Request) -> str:
    """The request's media type, checked against those that are taken."""
    kind = (one_header(request, "Content-Type") or "").partition(";")[0].strip().lower()
    if kind in (*_ARRAYS, MULTIPART, *MEDIA_TYPES) or kind.startswith("image/"):
        return kind
    raise UnsupportedMediaType(
        f"Content-Type {kind or '(none)'!r} is not taken: send {NPY}, {JSON}, {SAFETENSORS}, "
        f"{MULTIPART}, image/* or {MEDIA_TYPES[0]}"
    )


def is_array(kind: str) -> bool:
    """Whether bodies of this media type are arrays, and no encoded images."""
    return kind in _ARRAYS


async def parse_pixels(
    request: Request,
    kind: str,
    body: memoryview,
    model: ModelInfo,
    limits: Limits,
    *,
    seconds: float | None = None,
    fits: FitsQuery = NO_FITS,
) -> Parsed:
    """The pixels of a body, encoded images included; checked for rows, not yet for values.

    seconds: that decoding may take, if less than the limits'. fits: how FITS files are read, which
    is an error where there are none. Raises ServiceError, and
    ClientDisconnect where the client left while its images were decoded.
    """
    with reading_memory(request, len(body)) as workspace:
        if kind in _ARRAYS:
            fits.check_used(False)
            parse = _ARRAYS[kind]
            inline = kind == NPY or len(body) <= _INLINE_BYTES
            if inline:
                array = parse(body, workspace)
            else:
                array = await asyncio.to_thread(parse, body, workspace)
            check_rows(array, limits)
            return Parsed(array)
        if model.channels != 3:
            raise InvalidInput(
                f"{model.name} takes {model.channels} bands, which no encoded image holds: send an "
                f"array (B, {model.channels}, H, W)"
            )
        most = limits.decode_seconds if seconds is None else min(limits.decode_seconds, seconds)
        budget = DecodeBudget(limits.request_pixels, max(0.0, most))
        named = [("the image", body)]
        if kind == MULTIPART:
            parts = await asyncio.to_thread(
                read_files, body, request.headers["content-type"], limits.rows, workspace
            )
            named = [(f"image {row} ({name})", data) for row, (name, data) in enumerate(parts)]
        files = [_file(name, data, fits, told=kind in MEDIA_TYPES) for name, data in named]
        fits.check_used(any(file.fits is not None for file in files))
        decoders: DecoderPool = request.app.state.decoders
        decoding = decoders.decode(
            files, model.preprocessing, budget, workspace, max_pixels=limits.image_pixels,
            max_rows=limits.rows,
        )  # fmt: skip
        pixels, counts = await unless_gone(request, decoding)
        return Parsed(pixels, tuple(counts) if fits.several else ())


def _file(name: str, data: memoryview, fits: FitsQuery, *, told: bool) -> File:
    """told: whether the Content-Type says that it is FITS."""
    if not (told or looks_like_fits(data)):
        return File(name, data)
    check_installed()
    return File(name, data, fits.told(), fits.several)


@contextmanager
def reading_memory(request: Request, body_bytes: int = 0) -> Iterator[Workspace]:
    """The memory in which a request's body is read.

    Whatever a reader raises is the body's fault, and no fault of the service: a body is no reason
    for a 500, which clients send again.
    """
    try:
        with request_memory(request, body_bytes) as workspace:
            yield workspace
    except (ServiceError, ClientDisconnect):
        raise
    except MemoryError as error:
        raise PayloadTooLarge("reading the body takes more memory than there is") from error
    except Exception as error:
        _LOG.exception("a body's reader failed")
        raise MalformedRequest(f"the body cannot be read ({type(error).__name__})") from error


def check_rows(array: PixelArray, limits: Limits) -> None:
    """Raise PayloadTooLarge for a batch of more rows than a request may have."""
    if array.ndim == 4 and len(array) > limits.rows:
        raise PayloadTooLarge(
            f"{len(array)} rows are over the limit of {limits.rows}: send fewer per request"
        )
