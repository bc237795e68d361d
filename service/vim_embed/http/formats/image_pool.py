"""Decoding of encoded images, in threads of its own: whoever sends many delays no other request.

An answer is not late by more than the image that is being decoded: that cannot be interrupted.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vim_embed.errors import DeadlineExceeded
from vim_embed.http.formats.images import DecodeBudget, decode_image
from vim_embed.types.model_info import ModelInfo
from vim_embed.types.pixels import PixelArray

_THREADS = min(8, max(2, os.cpu_count() or 1))
_POOL = ThreadPoolExecutor(_THREADS, thread_name_prefix="decode")
File = tuple[str, memoryview]  # what it is called in messages, and its bytes


async def decode(
    files: Sequence[File], model: ModelInfo, budget: DecodeBudget, *, max_pixels: int
) -> PixelArray:
    """The images as one batch of the model's size. Raises ServiceError."""

    def decode_all() -> PixelArray:
        return np.stack(
            [
                decode_image(
                    data, model.preprocessing, max_pixels=max_pixels, place=place, budget=budget
                )
                for place, data in files
            ]
        )

    job = _POOL.submit(contextvars.copy_context().run, decode_all)
    answer = asyncio.wrap_future(job)
    await asyncio.wait({answer}, timeout=budget.seconds_left)
    if not answer.done() and job.cancel():
        raise DeadlineExceeded(f"no thread was free to decode within {budget.seconds:g} s")
    return await answer
