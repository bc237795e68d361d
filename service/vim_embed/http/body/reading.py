"""Request bodies: read into one buffer within the limits. What their bytes mean: `formats/`.

The HTTP processes import this too, so it imports no decoder and no numpy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.requests import Request

from vim_embed.errors import (
    MalformedRequest,
    PayloadTooLarge,
    QueueFull,
    RequestTimeout,
    ServiceError,
)
from vim_embed.http.body.buffer import BodyBuffer
from vim_embed.http.body.content_coding import Decoder, coding_of
from vim_embed.http.body.direct import RECEIVE_INTO
from vim_embed.settings import Settings

# Keys of a request's state: its body or what reading it failed with; what to call at its end.
HANDED_OVER = "handed_over"
RELEASES = "releases"
HOLDER = "holder"  # the request, as the arena knows it: set by `held_answers.py`
_DIRECT_BYTES = 256 * 1024  # larger bodies come from the socket into their memory
_DECODED_BYTES = 256 * 1024  # of a compressed body that a thread takes at once


@dataclass(frozen=True)
class Limits:
    """What a body may be."""

    body_bytes: int
    body_timeout: float
    rows: int
    image_pixels: int
    request_pixels: int
    decode_seconds: float
    least_rate: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            settings.max_body_bytes,
            settings.body_timeout,
            settings.max_rows,
            settings.max_image_pixels,
            settings.max_request_pixels,
            settings.request_timeout,
            settings.least_rate,
        )


async def read_body(request: Request, limits: Limits) -> memoryview:
    """The whole body in one buffer, which is the request's own until the answer.

    Raises PayloadTooLarge, RequestTimeout, MalformedRequest, UnsupportedEncoding or QueueFull. A
    body that an HTTP process of its own has read (server/http_process.py) is there already.
    """
    service, state = request.app.state.service, request.scope["state"]
    try:
        handed = state.get(HANDED_OVER)
        if handed is not None:
            await request.body()  # empty; after it only a disconnect comes
            if isinstance(handed, ServiceError):
                raise handed
            body: memoryview = handed
            return body
        buffer = BodyBuffer(request.app.state.arena, state[HOLDER])
        state.setdefault(RELEASES, []).append(buffer.release)
        return await receive_body(request, limits, buffer)
    except QueueFull as error:  # whoever keeps the bodies does not know how fast rows are done
        error.retry_after = service.queue.retry_after
        raise


async def receive_body(request: Request, limits: Limits, buffer: BodyBuffer) -> memoryview:
    """Read a body into its buffer, without its Content-Encoding. Raises as `read_body`."""
    coding = coding_of(", ".join(request.headers.getlist("content-encoding")))
    length = _content_length(request)
    if length is not None and length > limits.body_bytes:
        raise _too_large(limits)
    memory = None if length is None or coding is not None else buffer.allocate(length)
    try:
        async with asyncio.timeout(limits.body_timeout) as deadline:
            timeout = _BodyTimeout(deadline, limits)
            if coding is not None:
                return await _read_compressed(request, Decoder(coding), limits, timeout, buffer)
            if memory is None:
                return await _read_unsized(request, limits, timeout, buffer)
            return await _read_sized(request, memory, limits, timeout)
    except TimeoutError as error:
        raise RequestTimeout(
            f"the body arrived too slowly: no part of it within {limits.body_timeout:g} s, or "
            f"less than {limits.least_rate:g} bytes/s"
        ) from error


def _content_length(request: Request) -> int | None:
    value = request.headers.get("content-length")
    if value is None:
        return None
    if not value.isdecimal():
        raise MalformedRequest(f"Content-Length {value!r} is not a number")
    return int(value)


async def _read_sized(
    request: Request, memory: memoryview, limits: Limits, timeout: _BodyTimeout
) -> memoryview:
    length, filled = len(memory), 0
    receive_into = request.scope.get("extensions", {}).get(RECEIVE_INTO)
    if receive_into is not None and length >= _DIRECT_BYTES:
        timeout.stop()
        await receive_into(memory, timeout.left)
        return memory
    async for chunk in request.stream():
        timeout.extend(filled + len(chunk))
        if filled + len(chunk) > length:
            raise MalformedRequest("the body is longer than its Content-Length")
        memory[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    if filled != length:
        raise MalformedRequest(f"the body ended after {filled} of {length} bytes")
    return memory


async def _read_unsized(
    request: Request, limits: Limits, timeout: _BodyTimeout, buffer: BodyBuffer
) -> memoryview:
    length = 0
    async for chunk in request.stream():
        length += len(chunk)
        timeout.extend(length)
        if length > limits.body_bytes:
            raise _too_large(limits)
        buffer.append(chunk)
    return buffer.whole()


async def _read_compressed(
    request: Request, decoder: Decoder, limits: Limits, timeout: _BodyTimeout, buffer: BodyBuffer
) -> memoryview:
    length = 0
    with buffer.working(_DECODED_BYTES + decoder.memory):
        async for data in _compressed_parts(request, limits, timeout):
            decoder.feed(data)
            while piece := await asyncio.to_thread(decoder.read):
                timeout.extend()
                length += len(piece)
                if length > limits.body_bytes:
                    raise _too_large(limits, "decompressed ")
                buffer.append(piece)
        decoder.finish()
    return buffer.whole()


async def _compressed_parts(
    request: Request, limits: Limits, timeout: _BodyTimeout
) -> AsyncIterator[bytes]:
    """A body as it came, in parts that are worth a thread hop; bounded, since some never grow."""
    parts, length = bytearray(), 0
    async for chunk in request.stream():
        length += len(chunk)
        timeout.extend(length)
        if length > limits.body_bytes:
            raise _too_large(limits)
        parts += chunk
        if len(parts) >= _DECODED_BYTES:
            yield bytes(parts)
            parts.clear()
    yield bytes(parts)


class _BodyTimeout:
    """How long the next part of a body may take: less where the whole came slowly."""

    def __init__(self, timeout: asyncio.Timeout, limits: Limits) -> None:
        self._timeout = timeout
        self._limits = limits
        self._arrived = 0
        self._begin = asyncio.get_running_loop().time()

    def left(self, arrived: int) -> float:
        """Seconds until the next part has to be there. arrived: bytes so far."""
        late, limits = 0.0, self._limits
        if limits.least_rate:
            passed = asyncio.get_running_loop().time() - self._begin
            late = max(0.0, passed - arrived / limits.least_rate)
        return limits.body_timeout - late

    def extend(self, arrived: int | None = None) -> None:
        """A part came, or was worked on: wait for the next, give or take a tenth of the time."""
        self._arrived = self._arrived if arrived is None else arrived
        end, now = self._timeout.when(), asyncio.get_running_loop().time()
        wanted = now + self.left(self._arrived)
        if end is None or abs(wanted - end) > 0.1 * self._limits.body_timeout:
            self._timeout.reschedule(wanted)

    def stop(self) -> None:
        """Somebody else watches over the rest."""
        self._timeout.reschedule(None)


def _too_large(limits: Limits, kind: str = "") -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the {kind}body is over the limit of {limits.body_bytes} bytes: send fewer rows per "
        "request"
    )
