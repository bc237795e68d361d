"""`POST /v2/models/{model}/infer`: the Open Inference Protocol with binary tensors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from vim_embed.engines.interface import Outputs
from vim_embed.errors import InvalidInput, MalformedRequest, MethodNotAllowed
from vim_embed.http.body.reading import Limits, read_body
from vim_embed.http.deadline import begun, seconds_left
from vim_embed.http.formats.answers import narrowed, provenance, with_size
from vim_embed.http.formats.parsing import check_rows, reading_memory
from vim_embed.http.formats.v2_messages import InferRequest
from vim_embed.http.formats.v2_wire import (
    Output,
    compressed,
    infer_answer,
    read_infer,
    rendering_bytes,
    wants_compression,
)
from vim_embed.http.one_header import one_header
from vim_embed.http.openapi.schemas import v2_failures
from vim_embed.http.request_memory import answer_memory
from vim_embed.http.routes.embed import EmbedQuery
from vim_embed.http.routes.v2_state import MODEL, PREFIX, VERSION, VERSIONED, find_model, service_of
from vim_embed.http.submit import GONE, compute, timing
from vim_embed.serving.service import Service
from vim_embed.types.model_info import EMBEDDING, EmbedOptions, ModelInfo
from vim_embed.types.pixels import PixelArray

_LAST = "last_hidden_state"
_HEADER_LENGTH = "Inference-Header-Content-Length"
_INLINE_BYTES = 64 * 1024  # smaller bodies are parsed without a thread hop
_MICROSECONDS = 1e6

router = APIRouter(prefix=PREFIX, tags=["Open Inference Protocol"], responses=v2_failures())
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": _BINARY, "application/json": {"schema": {}}},
    }
}


@router.get(MODEL + "/infer", include_in_schema=False)
async def infer_by_get(request: Request, model: str) -> None:
    raise MethodNotAllowed(f"{request.url.path} takes POST: see /docs")


@router.post(MODEL + "/infer", summary="Embed", openapi_extra=_BODY, response_class=Response)
@router.post(VERSIONED + "/infer", summary="Embed", openapi_extra=_BODY, response_class=Response)
async def infer(request: Request, model: str, version: str = VERSION) -> Response:
    """Embed the input `pixel_values`; formats and parameters are described in docs/v2.md."""
    begin = begun(request)
    if request.query_params:
        raise InvalidInput(
            f"{', '.join(request.query_params)[:80]} would have no effect in the URL: options are "
            'in the body, as "parameters": {"pooling": "cls"}'
        )
    seconds_left(request, None)  # a bad header is refused before the body is read
    service = service_of(request)
    limits = Limits.of(service.settings)
    info = find_model(request, model, version)
    header_length = _header_length(request)
    try:
        body = await read_body(request, limits)
    except ClientDisconnect:
        return Response(status_code=GONE)
    asked, pixels = await _read(body, header_length, info, limits, request)
    options = _options(asked, service, info)
    timeout = seconds_left(request, asked.parameters.timeout / _MICROSECONDS or None)
    done = await compute(request, info, pixels, options, timeout=timeout, begin=begin)
    if done is None:
        return Response(status_code=GONE)
    head: dict[str, object] = {
        "model_name": info.name,
        "model_version": VERSION,
        **({} if asked.id is None else {"id": asked.id}),
        "parameters": dict(
            with_size(provenance(done.info or info, options), info, options, pixels)
        ),
    }
    chosen, accepted = _chosen(asked, done.outputs), request.headers.get("accept-encoding", "")
    with answer_memory(request, rendering_bytes(chosen)):
        answer = await asyncio.to_thread(_render, head, chosen, accepted)
    answer.headers["Server-Timing"] = timing(done, begin)
    return answer


def _header_length(request: Request) -> int | None:
    value = one_header(request, _HEADER_LENGTH)
    if value is None:
        return None
    if not value.isdecimal() or len(value) > 18:
        raise MalformedRequest(f"{_HEADER_LENGTH} {value[:40]!r} is not a number of bytes")
    return int(value)


async def _read(
    body: memoryview,
    header_length: int | None,
    info: ModelInfo,
    limits: Limits,
    request: Request,
) -> tuple[InferRequest, PixelArray]:
    native = info.preprocessing.image_size
    with reading_memory(request, len(body)) as workspace:
        if len(body) <= _INLINE_BYTES:
            asked, pixels = read_infer(body, header_length, native, workspace)
        else:
            asked, pixels = await asyncio.to_thread(
                read_infer, body, header_length, native, workspace
            )
    check_rows(pixels, limits)
    return asked, pixels


def _options(asked: InferRequest, service: Service, info: ModelInfo) -> EmbedOptions:
    """The options of the parameters, and of the outputs that are asked for."""
    given = asked.parameters
    query = EmbedQuery(
        pooling=given.pooling,
        layers=_granularity(asked, service, info),
        exact=given.exact,
        mean=given.mean,
        std=given.std,
    )
    return query.options(exact_default=service.settings.exact)


def _granularity(asked: InferRequest, service: Service, info: ModelInfo) -> str | None:
    """Which layers to compute: those of the parameter, else the coarsest that has all outputs."""
    layers = [output.name for output in asked.outputs if output.name != EMBEDDING]
    given = asked.parameters.layers
    if not layers or (given is not None and given not in info.granularities):
        return given  # an unknown one is refused with the other options
    for granularity in info.granularities if given is None else (given,):
        if set(layers) <= set(service.models.layer_names(info.name, granularity)):
            return granularity
    raise InvalidInput(
        f"no such outputs together: {', '.join(layers[:10])}; there are {EMBEDDING} and the layers "
        f"of GET /models/{info.name}/layers?granularity={given or 'blocks'}"
    )


def _chosen(asked: InferRequest, outputs: Outputs) -> list[Output]:
    """The outputs of the answer, in the order asked for; else all that were computed."""
    dtype = asked.parameters.output_dtype
    named = {EMBEDDING: outputs[_LAST], **outputs} if _LAST in outputs else outputs
    names = [output.name for output in asked.outputs] or list(outputs)
    return [Output(name, narrowed(named[name], dtype), asked.is_binary(name)) for name in names]


def _render(head: dict[str, object], outputs: Sequence[Output], accept_encoding: str) -> Response:
    content, json_length = infer_answer(head, outputs)
    headers = {} if json_length is None else {_HEADER_LENGTH: str(json_length)}
    encoding = wants_compression(accept_encoding)
    if encoding is not None:
        content = compressed(content, encoding)
        headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
    kind = "application/json" if json_length is None else "application/octet-stream"
    return Response(content, media_type=kind, headers=headers)
