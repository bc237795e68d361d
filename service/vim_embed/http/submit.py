"""From checked pixels to an answer: deadline, queue, and clients that leave."""

from __future__ import annotations

import asyncio
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
from vim_embed.http.body.held_answers import PIECE, check_answer_fits
from vim_embed.http.body.reading import HOLDER
from vim_embed.http.disconnect import gone_first
from vim_embed.http.formats.parsing import reading_memory
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
_FLOAT32 = 4  # bytes
_SOON = 0.02  # seconds in which a client that leaves is not worth a task that watches it
_AS_THEY_ARE = frozenset(np.dtype(name) for name in WIRE_DTYPES)
GONE = 499  # nobody reads this answer; the status is for the log


async def compute(
    request: Request,
    info: ModelInfo,
    pixels: PixelArray,
    options: EmbedOptions,
    *,
    timeout: float | None,
    begin: float,
    number_bytes: int = _FLOAT32,
) -> Embedded | None:
    """Check and embed pixels whose body was read whole; None when the client left first.

    timeout: seconds from `begin` after which nobody wants the answer. number_bytes: what one number
    takes at least while the answer is made. Raises ServiceError.
    """
    service: Service = request.app.state.service
    try:
        _check_options(options, info, pixels)
        with reading_memory(request) as workspace:
            # What the request becomes is counted before it is there, and before any work for it.
            outputs = output_bytes(options, info, pixels, service.settings.max_body_bytes)
            check_answer_fits(request.app.state.arena, outputs // _FLOAT32 * number_bytes)
            if more := _copied_bytes(pixels) + (outputs if outputs > PIECE else 0):
                workspace.count(more)
            pixels = await _checked(pixels, info, service.settings.max_image_size)
        deadline = _deadline(service, timeout, begin)
        async with service.idle.using(info.name, deadline) as load_seconds:
            queued = service.queue.submit(
                EmbedRequest(
                    info.name,
                    pixels,
                    options,
                    deadline=deadline,
                    client=request.scope["state"][HOLDER].client,
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


def _check_options(options: EmbedOptions, info: ModelInfo, pixels: PixelArray) -> None:
    """Raise MalformedRequest or InvalidInput for options that the model has not."""
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


def output_bytes(options: EmbedOptions, info: ModelInfo, pixels: PixelArray, most: int) -> int:
    """What the engine gives for these pixels, float32.

    Raises PayloadTooLarge for tokens or layers of more than `most`, though the body be small.
    """
    if pixels.ndim < 3:
        return 0  # it is refused when it is looked at
    rows = len(pixels) if pixels.ndim == 4 else 1
    each = _FLOAT32 * info.row_numbers(options, *pixels.shape[-2:])
    what = "tokens" if options.pooling == "tokens" else options.layers and "layers"
    if what and rows * each > most:
        raise PayloadTooLarge(
            f"the {what} of {rows} images take {rows * each} bytes, over the limit of {most}: send "
            f"{max(1, most // each)} at once"
        )
    return rows * each


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
