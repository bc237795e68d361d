"""`POST /embed`: pixels in, embeddings out."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import lru_cache, partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from vim_embed.errors import (
    ERRORS,
    Conflict,
    Forbidden,
    InvalidInput,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
)
from vim_embed.http.body.reading import Limits, read_body
from vim_embed.http.deadline import begun, seconds_left
from vim_embed.http.formats.answers import (
    choose_format,
    number_bytes,
    provenance,
    render,
    rendering_bytes,
    with_fits,
    with_size,
)
from vim_embed.http.formats.fits_query import FitsQuery
from vim_embed.http.formats.parsing import JSON, media_type, parse_pixels
from vim_embed.http.openapi import examples
from vim_embed.http.openapi.schemas import (
    EmbedAnswer,
    EmbedBody,
    answers,
    inline_schema,
    json_answer,
)
from vim_embed.http.request_memory import answer_memory
from vim_embed.http.submit import (
    GONE,
    compute,
    timing,
)
from vim_embed.serving.service import Service
from vim_embed.types.model_info import EmbedOptions
from vim_embed.types.pixels import PixelError, check_options
from vim_embed.types.preprocessing import PerChannel

_KNOWN_QUERIES = 256
_INLINE_BYTES = 1024 * 1024  # answers that take less memory are made without a thread hop


class EmbedQuery(FitsQuery):
    """Query parameters of `/embed`; see docs/http.md."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(None, description="a loaded model's name or Hub id")
    pooling: str = Field("mean", description="one of the model's poolings")
    layers: str | None = Field(None, description="blocks, residual, leaves or all")
    dtype: Literal["float32", "float16"] = Field("float32", description="dtype of the answer")
    encoding: Literal["float", "base64"] = Field("float", description="of arrays in JSON answers")
    exact: bool | None = Field(None, description="the same bytes whatever shares the batch")
    timeout: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="seconds until the answer is of no use"
    )
    mean: str | None = Field(None, description="three numbers that replace the model's mean")
    std: str | None = Field(None, description="three numbers that replace the model's std")

    def options(self, *, exact_default: bool) -> EmbedOptions:
        """What the engine needs to know. Raises InvalidInput."""
        try:
            return check_options(
                EmbedOptions(
                    pooling=self.pooling,
                    layers=self.layers,
                    mean=_triple("mean", self.mean),
                    std=_triple("std", self.std),
                    exact=exact_default if self.exact is None else self.exact,
                )
            )
        except PixelError as error:
            raise InvalidInput(str(error)) from error


def check_once(query: QueryParams) -> None:
    """Raise InvalidInput for a parameter that is there twice."""
    if len(query.multi_items()) > len(query):
        [(name, _)] = Counter(name for name, _ in query.multi_items()).most_common(1)
        raise InvalidInput(f"the parameter {name[:40]!r} is there twice: which one is meant?")


@lru_cache(_KNOWN_QUERIES)
def read_query(query: bytes) -> EmbedQuery:
    """A query string. Raises InvalidInput for a parameter that is there twice, of which one would
    have no effect, and RequestValidationError.

    FastAPI's own reading costs a fifth of all the Python of a small request.
    """
    try:
        given = QueryParams(query)
        check_once(given)
        return EmbedQuery.model_validate(dict(given))
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_EXAMPLE_IMAGE = {"example_image": {"externalValue": "/page/example.png"}}
_JSON_EXAMPLES = {
    "one_image": {
        "summary": "One small image as base64",
        "value": {"inputs": examples.PIXELS},
    },
    "malformed_request": {
        "summary": "Fewer bytes than the shape promises",
        "value": {"inputs": {**examples.PIXELS, "shape": [2, 3, 16, 16]}},
    },
    "invalid_input": {
        "summary": "A matrix, where images are wanted",
        "value": {"inputs": [[0.1, 0.2], [0.3, 0.4]]},
    },
}
_REQUEST = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": inline_schema(EmbedBody),
                "examples": _JSON_EXAMPLES,
            },
            "application/x-npy": _BINARY,
            "application/vnd.safetensors": _BINARY,
            "image/png": {**_BINARY, "examples": _EXAMPLE_IMAGE},
            "image/jpeg": _BINARY,
            "application/fits": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
        },
    },
}
_EMBEDDED = json_answer(
    EmbedAnswer,
    one_image={"embedding": [[0.12, -0.53, 1.07]], "provenance": examples.PROVENANCE},
)
_EMBEDDED["content"] |= {
    "application/x-npy": {**_BINARY, "examples": {"example_image": {"summary": "(1, D) float32"}}},
    "application/vnd.safetensors": _BINARY,
}
_OF_OTHER_ROUTES = (NotFound, MethodNotAllowed, Forbidden, Conflict)
_REFUSALS = [kind for kind in ERRORS if kind not in _OF_OTHER_ROUTES]


async def embed(request: Request, query: Annotated[EmbedQuery, Query()]) -> Response:
    """Embed a batch of images; formats, parameters and errors are described in docs/http.md."""
    begin = begun(request)
    service: Service = request.app.state.service
    timeout = seconds_left(request, query.timeout)
    limits = Limits.of(service.settings)
    info = service.ready_model(query.model)
    options = query.options(exact_default=service.settings.exact)
    kind = media_type(request)
    answer_kind = choose_format(
        request.headers.get("accept"), kind, layers=options.layers is not None
    )
    if answer_kind != JSON and "encoding" in query.model_fields_set:
        raise InvalidInput(
            f"encoding would have no effect on an answer in {answer_kind}: it is of JSON, which "
            f"Accept: {JSON} asks for"
        )
    try:
        body = await read_body(request, limits)
        left = None if timeout is None else begin + timeout - time.monotonic()
        pixels, files = await parse_pixels(
            request, kind, body, info, limits, seconds=left, fits=query
        )
    except ClientDisconnect:
        return Response(status_code=GONE)
    number = number_bytes(answer_kind, query.dtype)
    done = await compute(
        request, info, pixels, options, timeout=timeout, begin=begin, number_bytes=number
    )
    if done is None:
        return Response(status_code=GONE)
    make_answer = partial(
        render,
        done.outputs,
        answer_kind,
        origin=with_fits(
            with_size(provenance(done.info or info, options), info, options, pixels), query, files
        ),
        dtype=query.dtype,
        encoding=query.encoding,
        layers=options.layers is not None,
        timing=timing(done, begin),
    )
    size = rendering_bytes(done.outputs, answer_kind, query.dtype)
    with answer_memory(request, size):
        return make_answer() if size < _INLINE_BYTES else await asyncio.to_thread(make_answer)


class _QueryOnlyRoute(APIRoute):
    """A route whose handler needs nothing of FastAPI's but the document that it makes of it.

    FastAPI's own handler, which looks for bodies, cookies, headers and dependencies, is a fifth of
    all the Python of a small request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            return await embed(request, read_query(request.scope["query_string"]))

        return handle


def add_route(router: APIRouter) -> None:
    """Add `POST /embed`; to the application's own router, so that one look finds it."""
    router.add_api_route(
        "/embed",
        embed,
        methods=["POST"],
        route_class_override=_QueryOnlyRoute,
        tags=["Embedding"],
        summary="Embed images",
        openapi_extra=_REQUEST,
        response_class=Response,
        responses=answers(_EMBEDDED, *_REFUSALS),
    )


def _triple(name: str, text: str | None) -> PerChannel | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise MalformedRequest(
            f"{name} must be three numbers (one a channel) with commas between, as 0.5,0.5,0.5; "
            f"got {text!r}"
        ) from error
