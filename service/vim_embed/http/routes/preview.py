"""`POST /preview`: what a model sees of an encoded image or FITS file, as a PNG."""

from __future__ import annotations

import asyncio
import io
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from vim_embed.errors import (
    DeadlineExceeded,
    Draining,
    InvalidInput,
    MalformedRequest,
    NotReady,
    PayloadTooLarge,
    QueueFull,
    RequestTimeout,
    UnknownModel,
    UnsupportedEncoding,
    UnsupportedMediaType,
    WorkerFailed,
)
from vim_embed.http.body.reading import Limits, read_body
from vim_embed.http.formats.fits_query import FitsQuery
from vim_embed.http.formats.parsing import MULTIPART, is_array, media_type, parse_pixels
from vim_embed.http.openapi.schemas import answers
from vim_embed.http.routes.embed import check_once
from vim_embed.http.submit import GONE
from vim_embed.serving.service import Service
from vim_embed_pixels.clipping import clipped

router = APIRouter()
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_EXAMPLE_IMAGE = {"example_image": {"externalValue": "/page/example.png"}}
_REQUEST = {
    "requestBody": {
        "required": True,
        "content": {
            "image/png": {**_BINARY, "examples": _EXAMPLE_IMAGE},
            "image/jpeg": _BINARY,
            "application/fits": _BINARY,
        },
    },
}
_SHOWN = {"content": {"image/png": {**_BINARY, "examples": {"example_image": {"summary": "PNG"}}}}}


class PreviewQuery(FitsQuery):
    """Query parameters of `/preview`."""

    model: str | None = Field(None, description="a loaded model's name or Hub id")


@router.post(
    "/preview",
    summary="What a model sees of an image",
    openapi_extra=_REQUEST,
    response_class=Response,
    responses=answers(
        _SHOWN, DeadlineExceeded, Draining, InvalidInput, MalformedRequest, NotReady,
        PayloadTooLarge, QueueFull, RequestTimeout, UnknownModel, UnsupportedEncoding,
        UnsupportedMediaType, WorkerFailed,
    ),
)  # fmt: skip
async def preview(request: Request, query: Annotated[PreviewQuery, Query()]) -> Response:
    """The pixels of one encoded image or FITS file as `/embed` gives them to the model, and the
    shares of them that are black and white."""
    check_once(request.query_params)
    service: Service = request.app.state.service
    limits = Limits.of(service.settings)
    info = service.ready_model(query.model)
    kind = media_type(request)
    if is_array(kind) or kind == MULTIPART:
        raise UnsupportedMediaType("a preview is of one encoded image or FITS file: send its bytes")
    try:
        body = await read_body(request, limits)
        if query.several:
            raise InvalidInput("a preview is of one image: name its HDU, and leave stack out")
        pixels, _ = await parse_pixels(request, kind, body, info, limits, fits=query)
    except ClientDisconnect:
        return Response(status_code=GONE)
    image = np.asarray(pixels[0], np.uint8)
    shares = clipped(image)
    headers = {
        "X-Vim-Embed-Black": f"{shares.black:.6f}",
        "X-Vim-Embed-White": f"{shares.white:.6f}",
    }
    return Response(await asyncio.to_thread(_png, image), media_type="image/png", headers=headers)


def _png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(file, "PNG")
    return file.getvalue()
