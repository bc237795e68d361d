"""The media types of a body, and the pixel array that its bytes are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from vim_embed.errors import (
    InvalidInput,
    MalformedRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from vim_embed.http.body.reading import Limits
from vim_embed.http.formats.arrays import read_json, read_npy, read_safetensors
from vim_embed.http.formats.image_pool import decode
from vim_embed.http.formats.images import DecodeBudget
from vim_embed.types.model_info import ModelInfo
from vim_embed.types.pixels import PixelArray

NPY = "application/x-npy"
JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
MULTIPART = "multipart/form-data"
_ARRAYS = {NPY: read_npy, JSON: read_json, SAFETENSORS: read_safetensors}
_INLINE_BYTES = 64 * 1024  # smaller bodies are parsed without a thread hop, npy (a view) always
_FORM_CHUNK = 1024 * 1024


def media_type(request: Request) -> str:
    """The request's media type, checked against those that are taken."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in _ARRAYS or kind == MULTIPART or kind.startswith("image/"):
        return kind
    raise UnsupportedMediaType(
        f"Content-Type {kind or '(none)'!r} is not taken: send {NPY}, {JSON}, {SAFETENSORS}, "
        f"{MULTIPART} or image/*"
    )


async def parse_pixels(
    request: Request,
    kind: str,
    body: memoryview,
    model: ModelInfo,
    limits: Limits,
    *,
    seconds: float | None = None,
) -> PixelArray:
    """The pixel array of a body, encoded images included; checked for rows, not yet for values.

    seconds: that decoding may take, if less than the limits'.
    """
    if kind in _ARRAYS:
        parse = _ARRAYS[kind]
        inline = kind == NPY or len(body) <= _INLINE_BYTES
        array = parse(body) if inline else await asyncio.to_thread(parse, body)
        check_rows(array, limits)
        return array
    most = limits.decode_seconds if seconds is None else min(limits.decode_seconds, seconds)
    budget = DecodeBudget(limits.request_pixels, max(0.0, most))
    files = [("the image", body)]
    if kind == MULTIPART:
        files = await _form_files(request, body, limits)
    return await decode(files, model, budget, max_pixels=limits.image_pixels)


def check_rows(array: PixelArray, limits: Limits) -> None:
    """Raise PayloadTooLarge for a batch of more rows than a request may have."""
    if array.ndim == 4 and len(array) > limits.rows:
        raise PayloadTooLarge(
            f"{len(array)} rows are over the limit of {limits.rows}: send fewer per request"
        )


async def _form_files(
    request: Request, body: memoryview, limits: Limits
) -> list[tuple[str, memoryview]]:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), _FORM_CHUNK):
            yield bytes(body[start : start + _FORM_CHUNK])
        yield b""

    parser = MultiPartParser(request.headers, chunks(), max_files=limits.rows, max_fields=16)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        message = getattr(error, "message", str(error))
        if "Too many files" in message:
            raise PayloadTooLarge(
                f"more than {limits.rows} images in one request: send fewer"
            ) from error
        raise MalformedRequest(f"the multipart body cannot be read ({message})") from error
    try:
        uploads = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not uploads:
            raise InvalidInput(
                "the form holds no file: attach one image per part, with a file name"
            )
        return [
            (f"image {row} ({part.filename})", memoryview(await part.read()))
            for row, part in enumerate(uploads)
        ]
    finally:
        await form.close()
