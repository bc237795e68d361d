"""From checked pixels to an answer: deadline, queue, and clients that leave."""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import replace

import numpy as np
from fastapi import Request

from vim_embed.batching.request import Embedded, EmbedRequest
from vim_embed.errors import (
    DeadlineExceeded,
    InvalidInput,
    MalformedRequest,
    PayloadTooLarge,
    ServiceError,
)
from vim_embed.http.auth import bearer
from vim_embed.http.disconnect import gone_first
from vim_embed.http.formats.parsing import reading_memory
from vim_embed.http.forwarded import share_of
from vim_embed.serving.service import Service
from vim_embed.types.model_info import EmbedOptions, ModelInfo
from vim_embed.types.pixels import (
    WIRE_DTYPES,
    PixelArray,
    PixelError,
    check_bytes,
    check_options,
    check_pixels,
)

_INLINE_BYTES = 1024 * 1024
_SOON = 0.02  # seconds in which a client that leaves is not worth a task that watches it
_AS_THEY_ARE = frozenset(np.dtype(name) for name in WIRE_DTYPES)
GONE = 499  # nobody reads this answer; the status is for the log


def client_of(request: Request) -> str:
    """Whose share of the queue a request takes: its key's (as a digest), else its address's.

    Where no keys are set, a key is nobody's: callers could invent one for each request.
    """
    if request.app.state.keys:
        key = bearer(request.headers.get("authorization", ""))
        return hashlib.sha256(key.encode()).hexdigest()
    return share_of(request.client.host) if request.client is not None else ""


async def compute(
    request: Request,
    info: ModelInfo,
    pixels: PixelArray,
    options: EmbedOptions,
    *,
    timeout: float | None,
    begin: float,
) -> Embedded | None:
    """Check and embed pixels whose body was read whole; None when the client left first.

    timeout: seconds from `begin` after which nobody wants the answer. Raises ServiceError.
    """
    service: Service = request.app.state.service
    try:
        _check_fit(options, info, pixels, service.settings.max_body_bytes)
        with reading_memory(request) as workspace:
            if copied := _copied_bytes(pixels):
                workspace.count(copied)
            pixels = await _checked(pixels, info, service.settings.max_image_size)
        deadline = _deadline(service, timeout, begin)
        async with service.idle.using(info.name, deadline) as load_seconds:
            queued = service.queue.submit(
                EmbedRequest(
                    info.name,
                    pixels,
                    options,
                    deadline=deadline,
                    client=client_of(request),
                    request_id=request.scope["state"]["request_id"],
                )
            )
            done = await _answer_or_gone(request, queued, deadline, begin)
    except ServiceError as error:
        service.metrics.failed(info.name, error.code)
        raise
    if done is not None:
        done = replace(done, load_seconds=load_seconds)
        service.metrics.embedded(info.name, done, time.monotonic() - begin)
        service.traces.embedded(info.name, queued.rows, begin, queued.submitted, done)
    return done


def _deadline(service: Service, timeout: float | None, begin: float) -> float:
    deadline = time.monotonic() + service.settings.request_timeout
    if timeout is None:
        return deadline
    deadline = min(deadline, begin + timeout)
    if time.monotonic() > deadline:
        raise DeadlineExceeded(f"reading the body took longer than the timeout of {timeout:g} s")
    return deadline


def _check_fit(options: EmbedOptions, info: ModelInfo, pixels: PixelArray, most: int) -> None:
    """Raise MalformedRequest or InvalidInput for options that the model has not, PayloadTooLarge
    for tokens of more than `most` bytes, float32.
    """
    numbers = {1: "one number", 3: "three numbers"}.get(info.channels, f"{info.channels} numbers")
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is not None and len(values) != info.channels:
            raise MalformedRequest(
                f"{name} must be {numbers} for {info.name}, with commas between; got {len(values)}"
            )
    try:
        check_options(options, info)
        check_bytes(pixels, options, info)
    except PixelError as error:
        raise InvalidInput(str(error)) from error
    if options.pooling == "tokens" and info.tokens is not None:
        rows, columns = info.grid(*pixels.shape[-2:])
        each = 4 * info.dim * (rows * columns + len(info.tokens.special))
        if pixels.ndim == 4 and len(pixels) * each > most:
            raise PayloadTooLarge(
                f"the tokens of {len(pixels)} images take {len(pixels) * each} bytes, over the "
                f"limit of {most}: send {max(1, most // each)} at once"
            )


async def _checked(pixels: PixelArray, info: ModelInfo, size: int) -> PixelArray:
    try:
        if pixels.nbytes <= _INLINE_BYTES or _only_looked_over(pixels):
            return check_pixels(pixels, info, max_size=size)
        return await asyncio.to_thread(check_pixels, pixels, info, max_size=size)
    except PixelError as error:
        raise InvalidInput(str(error)) from error


def _copied_bytes(pixels: PixelArray) -> int:
    """What checking them adds, at most: those of other layouts and dtypes are copied."""
    return 0 if pixels.dtype in _AS_THEY_ARE and pixels.flags.c_contiguous else pixels.nbytes


def _only_looked_over(pixels: PixelArray) -> bool:
    """Whether checking them reads no pixel, whatever their number: no thread hop is worth it."""
    return pixels.dtype == np.uint8 and pixels.flags.c_contiguous


async def _answer_or_gone(
    request: Request, queued: EmbedRequest, deadline: float, begin: float
) -> Embedded | None:
    """The answer, or None when the client left first. Raises what the request failed with."""
    answer = asyncio.wrap_future(queued.future)
    answer.add_done_callback(_read)  # a failure that nobody waits for any more is no log line
    gone = False
    try:
        soon = min(_SOON, max(0.0, deadline - time.monotonic()))
        await asyncio.wait({answer}, timeout=soon)
        if not answer.done():
            gone = await gone_first(request, answer, max(0.0, deadline - time.monotonic()))
    finally:
        if not answer.done():
            queued.cancel()
    if answer.done() and not answer.cancelled():
        return queued.future.result()
    if gone:
        return None
    raise DeadlineExceeded(f"no answer within {deadline - begin:.3g} s")


def _read(answer: asyncio.Future[Embedded]) -> None:
    if not answer.cancelled():
        answer.exception()


def timing(done: Embedded, begin: float) -> str:
    """The value of `Server-Timing`, in milliseconds. begin: of the request."""
    load = {"load": done.load_seconds} if done.load_seconds else {}
    parts = load | {
        "queue": done.queue_seconds,
        "forward": done.forward_seconds,
        "total": time.monotonic() - begin,
    }
    return ", ".join(f"{name};dur={1000 * seconds:.3f}" for name, seconds in parts.items())
